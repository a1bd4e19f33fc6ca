"""The method step by step: a fork, who sees whom, an answer, a reward, an update. `python examples/tour.py`"""

from __future__ import annotations

from itertools import islice

import parallel_r1 as pr
from parallel_r1.answers.parser import parse
from parallel_r1.answers.rollout import group
from parallel_r1.answers.trace import EXACT_SCORER
from parallel_r1.answers.visibility import layout
from parallel_r1.generation.rollouts import answer
from parallel_r1.tasks.load import load_task
from parallel_r1.training.algorithms.grpo import GRPO
from parallel_r1.training.batch import collate, score
from parallel_r1.training.rewards.base import apply_reward
from parallel_r1.training.rewards.language import parse_reward

policy = pr.load("models/tiny-base")

# 1. An answer is a tree written as text. The tags are single tokens; parsing never fails, it reports defects.
text = "<Parallel><Path>3*5=15</Path><Path>7-5=2, 2*3=6</Path></Parallel>\n<Summary>15</Summary>\nFinal Answer: 3*5+7"
trace = parse(policy.encode(text), policy.tags)
print("forks", trace.forks, "| defects", trace.defects)

# 2. One relation defines who sees whom. Paths are blind to each other and stand at the same positions.
laid = layout(trace.runs)
for span in trace.spans:
    print(f"  {'sampled' if span.sampled else 'given  '}  {span.address!s:<12} {policy.decode(span.token_ids)!r}")
print("critical path", laid.critical_path, "of", len(laid.positions), "tokens")

# 3. Sampling: decode to a fork, run the paths at once, join, go on. The tiny base has not learnt to fork yet.
task = load_task("countdown-easy")
problems = list(islice(task.problems("train", seed=0), 4))
sampling = pr.Sampling(paths=4, budget=pr.Budget(critical_path=60, path=34, forks=1))
rollouts = answer(policy, task, problems, 8, sampling, seed=0)
print("\n" + rollouts[0].problem.prompt + rollouts[0].text)

# 4. What is sampled is what is scored. Forks are forced here, so that a model that never forks can be measured too.
print("\nlargest difference of log-probabilities:", pr.parity(policy, "isolated", paths=4).max_abs)

# 5. Rewards are functions; an algorithm turns the rewards of groups into samples with advantages.
reward = parse_reward("alternate(accuracy(), bonus(0.2), period=10, second=2)")
groups = [apply_reward(members, reward, step=1) for members in group(rollouts)]
print("rewards", [rollout.reward for rollout in groups[0].rollouts])
algorithm = GRPO(clip_high=0.28)
samples = [sample for credited in algorithm.credit(groups) for sample in credited]

# 6. One loss over one batch of samples. Only sampled tokens count.
batch = collate(samples, EXACT_SCORER["isolated"]).to(policy.model.device)
loss, metrics = algorithm.loss(score(policy.model, batch), batch, tokens=int(batch.sampled.sum()))
loss.backward()
print("loss", round(loss.item(), 4), metrics)
