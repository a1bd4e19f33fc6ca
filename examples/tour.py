"""The method in one sitting: a fork, who sees whom, an answer, a reward, an update. `python examples/tour.py`"""

from __future__ import annotations

from itertools import islice

from parallel_r1 import models
from parallel_r1.answers.parser import parse
from parallel_r1.answers.trace import EXACT_SCORER
from parallel_r1.answers.visibility import layout
from parallel_r1.evaluation.parity import measure
from parallel_r1.generation.rollouts import answer
from parallel_r1.generation.settings import Budget, Sampling
from parallel_r1.tasks.base import load_task
from parallel_r1.training.algorithms.grpo import GRPO
from parallel_r1.training.batch import collate, score
from parallel_r1.training.rewards.language import parse_reward
from parallel_r1.training.rewards.outcome import Outcome
from parallel_r1.training.sample import Sample

policy = models.load("models/tiny-base")

# 1. An answer is a tree written as text. The tags are single tokens; parsing never fails, it reports defects.
text = "<Parallel><Path>3*5=15</Path><Path>7-5=2, 2*3=6</Path></Parallel>\n<Summary>15</Summary>\nFinal Answer: 3*5+7"
trace = parse(policy.encode(text), policy.tags)
print("forks", trace.forks, "| defects", trace.defects)

# 2. One relation says who sees whom. Paths are blind to each other and stand at the same positions.
laid = layout(trace.runs)
for span in trace.spans:
    print(f"  {'sampled' if span.sampled else 'given  '}  {span.address!s:<12} {policy.decode(span.token_ids)!r}")
print("critical path", laid.critical_path, "of", len(laid.positions), "tokens")

# 3. Drawing: decode to a fork, run the paths at once, join, go on. The tiny base has not learnt to fork yet.
task = load_task("countdown-easy")
problems = list(islice(task.problems("train", seed=0), 4))
sampling = Sampling(paths=4, budget=Budget(critical_path=60, path=34, forks=1))
rollouts = answer(policy, task, problems, 8, sampling, seed=0)
print("\n" + rollouts[0].problem.prompt + rollouts[0].text)

# 4. What is sampled is what is scored: forks are forced here, so that any model shows it.
print("\nlargest difference of log-probabilities:", measure(policy, "isolated", ["isolated"], paths=4)[0].max_abs)

# 5. Rewards are functions; an algorithm turns the rewards of a group into advantages.
reward = parse_reward("alternate(accuracy(), bonus(0.2), period=10, second=2)")
rewards = [sum(reward(Outcome.of(rollout)).values()) for rollout in rollouts]
algorithm = GRPO(clip_high=0.28)
groups = algorithm.advantages([rewards[start : start + 8] for start in range(0, len(rewards), 8)])
print("rewards", rewards[:8])

# 6. One loss over one batch of samples. Only sampled tokens count.
advantages = [advantage for group in groups for advantage in group]
samples = [Sample(rollout.trace, advantage) for rollout, advantage in zip(rollouts, advantages, strict=True)]
batch = collate(samples, EXACT_SCORER["isolated"]).to(policy.model.device)
value, metrics = algorithm.loss(score(policy.model, batch), batch, int(batch.sampled.sum()))
value.backward()
print("loss", round(value.item(), 4), metrics)
