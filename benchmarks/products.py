"""What matrix products cost with weights as they are, and with weights that oneDNN has packed beforehand.

For the shapes of a layer: `plain` is what the engine does, `torch.nn.functional.linear`; `packed` is oneDNN's own
product, as a compiler that may freeze weights would call it. Packing itself is not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from measure import alternate, arguments, policy, ratio, report
from torch import Tensor
from torch.nn.functional import linear

ANSWERS = 64
"""Rows of a step."""
CALLS = 200
"""Products that one time is of."""


def packed(weight: Tensor) -> Callable[[Tensor], Tensor]:
    """The product with a weight that is packed for the rows of a step."""
    mkldnn = torch.ops.mkldnn
    ready = mkldnn._reorder_linear_weight(weight, ANSWERS)
    return lambda x: mkldnn._linear_pointwise(x, ready, None, "none", [], "")


def clocked(product: Callable[[Any], Tensor], x: Any, calls: int) -> Callable[[], float]:
    """Calls it some times, and says how long one took."""

    def act() -> float:
        started = time.perf_counter()
        for _ in range(calls):
            product(x)
        return (time.perf_counter() - started) / calls

    return act


@torch.no_grad()
def main() -> None:
    options = arguments(__doc__).parse_args()
    rows, details = [], []
    for name in options.model:
        layer = policy(name).model.get_decoder().layers[0]
        weights = {part: found.weight for part, found in layer.named_modules() if isinstance(found, torch.nn.Linear)}
        for part, weight in weights.items():
            x = torch.randn(ANSWERS, weight.shape[1], generator=torch.Generator().manual_seed(options.seed))
            ways = {"plain": lambda x, weight=weight: linear(x, weight), "packed": packed(weight)}
            torch.testing.assert_close(ways["packed"](x), ways["plain"](x), rtol=1e-3, atol=1e-3)
            calls = 2 if options.quick else CALLS
            times = alternate({way: clocked(act, x, calls) for way, act in ways.items()}, options.runs)
            at = {"model": name, "product": part.split(".")[-1], "shape": " x ".join(map(str, weight.T.shape))}
            rows.append(at | ratio(times, "plain", "packed"))
            details.append(at | {"seconds": times})
    report(options, "products", "Products with packed weights", rows, details=details)


if __name__ == "__main__":
    main()
