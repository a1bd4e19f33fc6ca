"""The process in which math-verify runs. It reads pairs of answers, one a line, and writes one byte per pair.

It is started by its file name and imports nothing of the project. Answers may be hostile, so its memory is limited, and
the kernel limits the processor time of every pair: at the limit the process ends, wherever it is, and no verdict
depends on how busy the machine is. math-verify's own time limit, a signal that Python has to handle, does not end one
long operation on big integers.
"""

import contextlib
import json
import logging
import os
import resource
import signal
import sys

READY, WRONG, RIGHT = b"r", b"0", b"1"
MEMORY = 2 << 30  # bytes


def main(limit: float) -> None:
    """Compare pairs until the input ends.

    Args:
        limit: processor time of one pair, in seconds.
    """
    with contextlib.suppress(ValueError, OSError):  # not every system can limit it
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse, verify

    logging.disable()
    # math-verify would strip units that are only letters: 3x + 2d would be 3x + 2.
    shape = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all")
    config = [LatexExtractionConfig(normalization_config=shape)]

    def equal(texts: tuple[str, str]) -> bool:
        gold, answer = (parse(f"${text}$", config, parsing_timeout=None) for text in texts)
        return verify(gold, answer, timeout_seconds=None)

    equal(("(x+1)^2", "x^2+2x+1"))  # the first comparison fills tables, and is by far the slowest
    os.write(1, READY)
    for line in sys.stdin.buffer:
        texts = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, limit)
        right = equal(texts)
        signal.setitimer(signal.ITIMER_PROF, 0)
        os.write(1, RIGHT if right else WRONG)


if __name__ == "__main__":
    main(float(sys.argv[1]))
