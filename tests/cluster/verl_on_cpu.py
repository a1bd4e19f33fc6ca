"""A test shim, and no claim that verl supports CPUs: it lets verl's unmodified trainer take a few steps without a GPU.

It is loaded by verl itself (VERL_USE_EXTERNAL_MODULES=verl_on_cpu, VERL_PLATFORM=cpu) and gives it three stand-ins:

* a platform whose device is the CPU, whose collectives are gloo, and which asks Ray for a resource called GPU that the
  test declares;
* a process group with one backend for the one device that there is;
* a rollout server that continues texts with a Hugging Face model, one call at a time, in place of vLLM.

Everything else that runs is verl's.
"""

from __future__ import annotations

import contextlib
import os
from types import SimpleNamespace
from typing import Any

import torch
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry

NAME = "hf_on_cpu"


def _nothing(*_: Any, **__: Any) -> int:
    return 0


DEVICE = SimpleNamespace(
    **dict.fromkeys(
        ("max_memory_allocated", "max_memory_reserved", "memory_allocated", "memory_reserved", "current_device"),
        _nothing,
    ),
    **dict.fromkeys(
        ("empty_cache", "synchronize", "set_device", "reset_peak_memory_stats", "ipc_collect", "manual_seed",
         "manual_seed_all"),
        _nothing,
    ),
    is_available=lambda: True,
    device_count=lambda: 1,
    mem_get_info=lambda *_: (1 << 34, 1 << 34),
    get_rng_state=torch.get_rng_state,
    set_rng_state=torch.set_rng_state,
    get_device_name=lambda *_: "CPU",
)  # fmt: skip


@PlatformRegistry.register(platform="cpu")
class CPU(PlatformBase):
    """The CPU as verl's platform."""

    device_name = property(lambda self: "cpu")
    vendor_name = property(lambda self: "cpu")
    device_module = property(lambda self: DEVICE)

    def is_available(self) -> bool:
        return True

    def current_device(self) -> Any:
        return "cpu"

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None: ...

    def synchronize(self, device_index: int | None = None) -> None: ...

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    def set_allocator_settings(self, settings: str) -> None: ...

    def empty_cache(self) -> None: ...

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "STAND_IN_VISIBLE_DEVICES"

    def nvtx_range(self, msg: str) -> Any:
        return contextlib.nullcontext()

    def profiler_start(self) -> None: ...

    def profiler_stop(self) -> None: ...

    def ray_resource_name(self) -> str:
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return []

    def is_ipc_supported(self) -> bool:
        return False

    def cudart(self) -> Any:
        return None


def _join_processes(timeout_second: Any = None, backend: Any = None) -> None:
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group(
            "gloo",
            rank=int(os.environ.get("RANK", 0)),
            world_size=int(os.environ.get("WORLD_SIZE", 1)),
            init_method=os.environ.get("DIST_INIT_METHOD"),
        )


def _install() -> None:
    import verl.utils.distributed
    from verl.workers.rollout import base, replica

    verl.utils.distributed.initialize_global_process_group_ray = _join_processes
    base._ROLLOUT_REGISTRY[NAME, "async"] = f"{__name__}_rollout.Adapter"
    replica.RolloutReplicaRegistry.register(NAME, _load_replica)


def _load_replica() -> Any:
    from verl_on_cpu_rollout import Replica

    return Replica


_install()
