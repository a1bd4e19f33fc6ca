"""How long scoring, the update and the hand-over of weights take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from parallel_r1.runs.scale.answers import Outline
from parallel_r1.runs.scale.hardware import GPU, NODE, Assumptions
from parallel_r1.runs.scale.memory import Layout, Needs, scores_copies
from parallel_r1.runs.scale.model import Shape
from parallel_r1.training.settings import RL


@dataclass(frozen=True)
class Learning:
    """What a step learns from.

    Attributes:
        tokens: tokens of all answers with their prompts, and the copies that the scorer reads.
        flops: arithmetic operations of one forward pass through all of them.
        longest: those of the answer that takes most of them; a GPU has at least this one.
        scored: forward passes before the update: under the policy before it, which verl always computes, and under a
            reference policy if the algorithm has one.
        factor: operations of the update in forward passes: 1 for the forward pass, 1 for the gradient of activations, 1
            for that of weights, for as many as learn, and 1 more if activations are computed again.
    """

    tokens: int
    flops: float
    longest: float
    scored: int
    factor: float

    def seconds(self, needs: Needs, layout: Layout) -> dict[str, float]:
        """Seconds of `score` and `update`, and their sum by what bounds it: `arithmetic`, and `network` for what
        gathering weights and reducing gradients takes beyond it.

        Source: FSDP (arXiv 2304.11277): a pass gathers the weights, the backward pass once more, and the gradients are
        reduced and scattered.
        """
        gpu, assumed = needs.gpu, needs.assumed
        flops = max(self.flops / layout.learning, self.longest)
        passes = math.ceil(max(1.0, self.tokens / layout.learning / needs.row))
        gathering = passes * gather_seconds(2 * needs.shape.parameters, gpu, assumed, layout.learning)
        reducing = passes * gather_seconds(assumed.weight_bytes * needs.shape.learning, gpu, assumed, layout.learning)
        score = self.scored * flops / (gpu.flops * assumed.score_arithmetic)
        update = self.factor * flops / (gpu.flops * assumed.train_arithmetic)
        waits = max(0.0, self.scored * gathering - score), max(0.0, 2 * gathering + reducing - update)
        return {
            "score": score + waits[0],
            "update": update + waits[1],
            "arithmetic": score + update,
            "network": sum(waits),
        }


def learning_of(stage: RL, answers: Sequence[Outline], shape: Shape) -> Learning:
    """What a step of a stage learns from."""
    copies = scores_copies(stage)
    rows = [answer.prompt + answer.total + (answer.copies if copies else 0) for answer in answers]
    work = [size * shape.token_flops + shape.attention_flops * size * size / 2 for size in rows]
    return Learning(
        tokens=sum(rows),
        flops=sum(work),
        longest=max(work),
        scored=1 + ("reference" in stage.algorithm.needs),
        factor=2 + shape.learning / shape.parameters + stage.recompute,
    )


def gather_seconds(size: int, gpu: GPU, assumed: Assumptions, gpus: int) -> float:
    """Seconds in which every GPU gathers `size` bytes that all of them hold in parts; reducing them takes as long.
    Within a node NVLink bounds it, in one direction; across nodes the ports of a node take it in together."""
    if gpus == 1:
        return 0.0
    link = gpu.link / 2 if gpus <= NODE else min(gpu.link / 2, NODE * gpu.network)
    return size * (gpus - 1) / gpus / (link * assumed.link_share)


def sync_seconds(shape: Shape, gpu: GPU, assumed: Assumptions, layout: Layout) -> float:
    """Seconds to hand new weights to the servers, in bf16."""
    return assumed.sync_overhead + gather_seconds(2 * shape.parameters, gpu, assumed, layout.gpus)
