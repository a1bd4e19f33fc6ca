"""The rollout server of the test shim `verl_on_cpu`: no claim that verl supports CPUs."""

from __future__ import annotations

import asyncio
from typing import Any

import ray
import torch
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica, TokenOutput

SERVER = "stand_in_server"


@ray.remote(num_cpus=0, max_concurrency=1000)
class Server:
    """Continues texts with a Hugging Face model."""

    def __init__(self, path: str) -> None:
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(1)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self.lock, self.step, self.calls = asyncio.Lock(), 0, 0

    async def generate(self, prompt_ids: Any, sampling_params: Any, request_id: str, **_: Any) -> TokenOutput:
        async with self.lock:
            self.calls += 1
            tokens, logprobs = await asyncio.to_thread(self.continue_text, list(prompt_ids), sampling_params)
        return TokenOutput(
            token_ids=tokens, log_probs=logprobs, stop_reason="completed", extra_fields={"global_steps": self.step}
        )

    @torch.no_grad()
    def continue_text(self, ids: list[int], params: dict[str, Any]) -> tuple[list[int], list[float]]:
        generator = torch.Generator().manual_seed(params["seed"])
        stops, bias = set(params["stop_token_ids"]), params.get("logit_bias", {})
        tokens: list[int] = []
        logprobs: list[float] = []
        cache, fed = None, torch.tensor([ids])
        while len(tokens) < params["max_tokens"]:
            out = self.model(input_ids=fed, past_key_values=cache, use_cache=True)
            cache, logits = out.past_key_values, out.logits[0, -1]
            for token, value in bias.items():
                logits[int(token)] += value
            scores = torch.log_softmax(logits / params["temperature"], -1)
            token = int(torch.multinomial(scores.exp(), 1, generator=generator))
            tokens.append(token)
            logprobs.append(float(scores[token]))
            if token in stops:
                break
            fed = torch.tensor([[token]])
        return tokens, logprobs

    async def set_weights(self, weights: dict[str, torch.Tensor], step: int) -> None:
        async with self.lock:
            missing, unexpected = self.model.load_state_dict(weights, strict=False)
            assert not unexpected, unexpected
            assert set(missing) <= {"lm_head.weight"}, missing
            self.step = step or 0

    async def idle(self, *_: Any, **__: Any) -> None: ...

    sleep = wake_up = abort_all_requests = resume_generation = clear_kv_cache = idle


class Replica(RolloutReplica):
    """One server."""

    async def launch_servers(self) -> None:
        name = f"{SERVER}_{self.replica_rank}"
        model: Any = self.model_config
        self.servers = [Server.options(name=name).remote(model["path"])]
        self._server_handle, self._server_address = self.servers[0], name


class Adapter(BaseRollout):
    """Hands new weights to the server, from the worker that learns."""

    def __init__(self, config: Any, model_config: Any, device_mesh: Any, replica_rank: int = 0) -> None:
        super().__init__(config, model_config, device_mesh)
        self.replica_rank = 0

    async def resume(self, tags: list[str]) -> None: ...

    async def release(self) -> None: ...

    async def update_weights(self, weights: Any, wire_format: str = "", global_steps: int = 0, **_: Any) -> None:
        whole = {name: value.detach().float().cpu().clone() for name, value in weights}
        if torch.distributed.get_rank() == 0:
            await ray.get_actor(f"{SERVER}_0").set_weights.remote(whole, global_steps)
