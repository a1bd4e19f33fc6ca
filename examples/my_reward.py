"""A reward of one's own: a correct answer earns up to `weight` more when its critical path is short for its group.

In a recipe, name this file and then the reward, alone or inside others:

    imports = ["my_reward.py"]
    [stages.rl]
    reward = "alternate(accuracy(), quick(0.3))"

In Python, import this file, or write the same function in a notebook cell, and pass the reward to training:

    import parallel_r1 as pr
    from my_reward import quick
    for step in pr.rl(policy, task="countdown-easy", reward=quick(0.3), steps=50): print(step.metrics)
"""

from __future__ import annotations

import parallel_r1 as pr


@pr.reward
def quick(outcome: pr.Outcome, weight: float = 0.2, wrong: float = -1.0) -> dict[str, float]:
    """1 if correct, else `wrong`; and for a correct answer `weight` times the share of the correct answers to the same
    problem whose critical path is longer. The terms are logged one by one, as `reward_accuracy` and `reward_quick`."""
    if not outcome.correct:
        return {"accuracy": wrong, "quick": 0.0}
    rivals = [other for other in outcome.group if other.correct]
    slower = sum(other.critical_path > outcome.critical_path for other in rivals)
    return {"accuracy": 1.0, "quick": weight * slower / max(1, len(rivals))}
