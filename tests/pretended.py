"""A pretended CUDA device, on a machine that has none: real numbers on the CPU, and a mark on every storage.

torch's own fake tensors have shapes and no numbers, so they cannot follow code whose shapes depend on values: sampling,
boolean indexing, `nonzero`. Here every operation computes on the CPU, and two modes keep account of where its tensors
would be: `_Names` answers Python's questions (`tensor.device`, `.to("cuda")`, `torch.zeros(.., device="cuda")`), and
`_Watch` sees every operation and raises `Mixed` where CUDA would refuse: two tensors with a dimension or more on two
devices. A tensor without dimensions on the CPU may mix, `copy_` may, and indices on the CPU may index a tensor on CUDA.

What this does not see: kernels, memory, streams, and what happens inside an operation.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")


class Mixed(RuntimeError):
    """An operation on tensors of both devices."""


class Marks:
    """Where storages are; one that is not noted may be anywhere, such as a constant that torch made inside.

    Every mark holds a weak reference to its storage: as long as it does, no later storage can have the same address
    and pass for the one that was marked.
    """

    def __init__(self) -> None:
        self.where: dict[int, tuple[torch.device, StorageWeakRef]] = {}

    def of(self, tensor: torch.Tensor) -> torch.device | None:
        marked = self.where.get(tensor.untyped_storage()._cdata)
        return marked[0] if marked else None

    def put(self, tensor: torch.Tensor, device: torch.device | None) -> None:
        storage = tensor.untyped_storage()
        if device is not None:
            self.where[storage._cdata] = device, StorageWeakRef(storage)


FREE = {"copy_", "_to_copy", "set_", "lift_fresh"}
FACTORIES = {torch.tensor, torch.zeros, torch.ones, torch.empty, torch.full, torch.arange, torch.rand, torch.randint}
INDEXING = {"index", "index_put_", "_index_put_impl_", "_unsafe_index", "index_put"}


class _Watch(TorchDispatchMode):
    def __init__(self, marks: Marks) -> None:
        super().__init__()
        self.marks = marks

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._overloadpacket.__name__
        checked = args[:1] + args[2:] if name in INDEXING else args
        tensors = [each for each in tree_leaves((args, kwargs or {})) if torch.is_tensor(each)]
        present = {
            self.marks.of(each): each
            for each in tree_leaves((checked, kwargs or {}))
            if torch.is_tensor(each) and each.dim()
        }
        if name in INDEXING and self.marks.of(args[0]) == CPU:
            present |= {self.marks.of(each): each for each in args[1] if each is not None and each.dim()}
        if CUDA in present and CPU in present and name not in FREE:
            shapes = ", ".join(f"{tuple(each.shape)} on {self.marks.of(each)}" for each in tensors)
            raise Mixed(f"{func} of {shapes}")
        before = {each.untyped_storage()._cdata for each in tensors}
        found = func(*args, **(kwargs or {}))
        places = [self.marks.of(each) for each in tensors]
        device = CUDA if CUDA in places and name != "_to_copy" else next((at for at in places if at), None)
        if name == "_to_copy":
            device = self.marks.of(args[0])
        for each in tree_leaves(found):
            if torch.is_tensor(each) and each.untyped_storage()._cdata not in before:
                self.marks.put(each, device)
        return found


class _Names(TorchFunctionMode):
    def __init__(self, marks: Marks) -> None:
        super().__init__()
        self.marks = marks

    def device_of(self, tensor: torch.Tensor) -> torch.device:
        return self.marks.of(tensor) or CPU

    def move(self, tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        if self.device_of(tensor) == device:
            return tensor
        moved = tensor.clone()
        self.marks.put(moved, device)
        return moved

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == torch.Tensor.device.__get__:
            return self.device_of(args[0])
        if func == torch.Tensor.is_cuda.__get__:
            return self.device_of(args[0]) == CUDA
        if func in (torch.Tensor.cuda, torch.Tensor.cpu):
            return self.move(args[0], CUDA if func is torch.Tensor.cuda else CPU)
        if func is torch.Tensor.to:
            return self.to(*args, **kwargs)
        if func in (torch.Tensor.numpy, torch.Tensor.__array__) and self.device_of(args[0]) == CUDA:
            raise Mixed("numpy of a tensor on CUDA")
        device = _device(kwargs["device"]) if kwargs.get("device") is not None else None
        if device is not None:
            kwargs["device"] = CPU
        found = func(*args, **kwargs)
        if device is not None or func in FACTORIES:
            tree_map_only(torch.Tensor, lambda each: self.marks.put(each, device or CPU), found)
        return found

    def to(self, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """`Tensor.to` in its forms: a device, a dtype, a device and a dtype, another tensor."""
        device = kwargs.pop("device", None)
        rest = []
        for value in args:
            if torch.is_tensor(value):
                device, rest = self.device_of(value), [*rest, value.dtype]
            elif isinstance(value, str | torch.device):
                device = value
            elif isinstance(value, torch.dtype):
                rest.append(value)
        found = torch.Tensor.to(tensor, *rest, **kwargs) if rest or kwargs else tensor
        return found if device is None else self.move(found, _device(device))


def _device(device: Any) -> torch.device:
    return CUDA if torch.device(device).type == "cuda" else CPU


@contextlib.contextmanager
def pretended_cuda(monkeypatch: Any) -> Iterator[None]:
    """Inside, `cuda` is a device."""
    marks = Marks()
    names, real = _Names(marks), torch.from_numpy

    def from_numpy(values: Any) -> torch.Tensor:
        tensor = real(values)
        marks.put(tensor, CPU)
        return tensor

    monkeypatch.setattr(torch, "from_numpy", from_numpy)
    with _Watch(marks), names:
        yield
