"""A training loop of your own: GRPO written out, in the fewest lines. `python examples/my_loop.py [STEPS]`

`pr.rl` is this loop with checkpoints, several processes, micro-batches and metrics. Write your own where you need a
different order of things: other sources of problems, several policies, a curriculum that looks at the rewards.
"""

from __future__ import annotations

import sys
from itertools import islice

import torch

import parallel_r1 as pr
from parallel_r1.answers.rollout import group
from parallel_r1.generation.rollouts import answer
from parallel_r1.tasks.load import load_task
from parallel_r1.training.algorithms.grpo import GRPO
from parallel_r1.training.batch import collate, score
from parallel_r1.training.rewards.base import apply_reward
from parallel_r1.training.rewards.language import parse_reward

policy = pr.load("models/tiny-base")
task = load_task("countdown-easy")
reward = parse_reward("accuracy()")
algorithm = GRPO(clip_high=0.28)
sampling = pr.Sampling(sampler="sequential", budget=pr.Budget(critical_path=48))
generator = pr.make_generator(policy)
optimizer = torch.optim.AdamW(policy.model.parameters(), lr=1e-4)
problems = task.problems("train", seed=0)

for step in range(1, int(sys.argv[1] if len(sys.argv) > 1 else 10) + 1):
    # 1. Draw 8 answers to each of 8 problems and let the task judge them.
    rollouts = answer(policy, task, list(islice(problems, 8)), 8, sampling, seed=step, generator=generator)
    # 2. Rewards by group, advantages by algorithm: a list of samples for every group.
    groups = [apply_reward(members, reward, step) for members in group(rollouts)]
    samples = [sample for credited in algorithm.credit(groups) for sample in credited]
    # 3. One batch, one loss over its sampled tokens, one update. `causal` is the exact scorer of `sequential`.
    batch = collate(samples, "causal").to(policy.model.device)
    loss, metrics = algorithm.loss(score(policy.model, batch), batch, int(batch.sampled.sum()))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    policy.version += 1
    print(f"step {step}: accuracy {sum(rollout.correct for rollout in rollouts) / len(rollouts):.2f}, {metrics}")
