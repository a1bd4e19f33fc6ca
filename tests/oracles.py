"""Slow and obvious versions of fast code, written from the definitions token by token."""

from parallel_r1.answers.trace import Address


def sees(addresses: list[Address], i: int, j: int) -> bool:
    """Whether token i sees token j: not later, and no strangers."""
    if j > i:
        return False
    for place in range(min(len(addresses[i]), len(addresses[j]))):
        (fork_i, path_i), (fork_j, path_j) = addresses[i][place], addresses[j][place]
        if fork_i != fork_j or path_i != path_j:
            return not (fork_i == fork_j and path_i != path_j)
    return True


def mask(addresses: list[Address]) -> list[list[bool]]:
    return [[sees(addresses, i, j) for j in range(len(addresses))] for i in range(len(addresses))]


def positions(addresses: list[Address]) -> list[int]:
    """One more than the largest position that a token sees among those before it."""
    found: list[int] = []
    for i in range(len(addresses)):
        found.append(max((found[j] + 1 for j in range(i) if sees(addresses, i, j)), default=0))
    return found


def read_before(addresses: list[Address], i: int) -> list[int]:
    """What the writer of token i has read when the token is drawn, itself included: all text before it, except what
    other paths of a fork that it stands in have written."""
    return [j for j in range(i + 1) if sees(addresses, i, j)]


def views(mask: list[list[bool]]) -> list[list[int]]:
    """For every place of a row the places that it sees, itself included."""
    return [[j for j, seen in enumerate(row) if seen] for row in mask]


def whole_answer_loss(answers, low, high, mean):
    """The loss of GSPO (`mean`) and of RLOO: the mean over answers of the clipped surrogate, with the ratio of the
    answer from the mean, or the sum, of its sampled tokens' log-ratios.

    Args:
        answers: for every answer its advantage and its tokens as (sampled, new, old): log-probabilities as
            0-dimensional tensors and numbers.
    """
    total = 0.0
    for advantage, tokens in answers:
        log_ratio, count = 0.0, 0
        for sampled, new, old in tokens:
            if sampled:
                log_ratio, count = log_ratio + (new - old), count + 1
        ratio = (log_ratio / count if mean else log_ratio).exp()
        clipped = min(max(ratio, 1 - low), 1 + high)
        total = total + min(ratio * advantage, clipped * advantage)
    return -total / len(answers)


def leave_one_out(rewards):
    """The advantage of every answer: its reward less the mean of the others'."""
    advantages = []
    for mine in range(len(rewards)):
        others = [reward for other, reward in enumerate(rewards) if other != mine]
        advantages.append(rewards[mine] - sum(others) / len(others))
    return advantages
