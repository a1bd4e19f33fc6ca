"""Weights as oneDNN packs them: on a CPU products of a step with larger weights take 0.5 to 0.8 of the time."""

from __future__ import annotations

import copy
import itertools
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

FEWEST = 100_000
"""Numbers of the smallest weight that gains; measured with `benchmarks/products.py`."""
ROWS = 64
"""Rows that weights are packed for. They are exact for any other number of rows too."""


class PackedLinear(nn.Module):
    """A linear layer with a packed copy of its weight.

    Args:
        linear: the layer; its weight stays where it is, and may learn.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.packed: Tensor
        self.of: tuple[int, int] | None = None
        self.index = next(_numbers)
        _layers[self.index] = self
        self.pack()

    def pack(self) -> None:
        """Pack the weight again if it has changed."""
        now = self.weight.data_ptr(), self.weight._version
        if now != self.of:
            self.packed, self.of = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), ROWS), now

    def forward(self, x: Tensor) -> Tensor:  # plain types: a compiler reads it
        """The product of [.., d] with the weight, [.., e]."""
        if torch.compiler.is_compiling():
            return torch.ops.parallel_r1.packed_linear(x, self.index, len(self.weight))
        return self.product(x)

    def product(self, x: Tensor) -> Tensor:
        """The same, uncompiled."""
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


_layers: WeakValueDictionary[int, PackedLinear] = WeakValueDictionary()
"""A packed weight is opaque, so the graph of a compiled model takes the number of its layer instead."""
_numbers = itertools.count()
_library = torch.library.Library("parallel_r1", "FRAGMENT")
_library.define("packed_linear(Tensor x, int layer, int size) -> Tensor")
_library.impl("packed_linear", lambda x, layer, _: _layers[layer].product(x), "CPU")


@torch.library.register_fake("parallel_r1::packed_linear", lib=_library)
def _(x: Tensor, layer: int, size: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], size)


def size(part: nn.Module) -> int:
    """How many numbers of a part of a model are packed on a CPU; 0 if it gains nothing."""
    if type(part) is not nn.Linear or part._forward_hooks or part._forward_pre_hooks:
        return 0  # hooks would be lost, and so would what adapters and quantisers derive
    weight = part.weight
    if weight.is_inference():
        return 0  # loaded in torch.inference_mode: nothing says when it changes
    return weight.numel() if weight.dtype == torch.float32 and weight.numel() >= FEWEST else 0


def with_packed(model: PreTrainedModel) -> PreTrainedModel:
    """A model with the same weights, and packed copies of those that gain; the model itself if none does."""
    layers = [name for name, part in model.named_modules() if size(part)]
    if not layers or model.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return model
    shared = {id(part): part for part in (*model.parameters(), *model.buffers())}
    model = copy.deepcopy(model, shared)
    for name in layers:
        model.set_submodule(name, PackedLinear(model.get_submodule(name)))
    return model


@torch.no_grad()
def follow(model: PreTrainedModel) -> None:
    """Pack the weights of a model again that have changed since."""
    for part in model.modules():
        if isinstance(part, PackedLinear):
            part.pack()
