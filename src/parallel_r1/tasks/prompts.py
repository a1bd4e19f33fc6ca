"""Instructions that stand around the statement of a problem."""

from __future__ import annotations

from parallel_r1.answers.syntax import (
    FINAL_ANSWER,
    FORK_CLOSE,
    FORK_OPEN,
    PATH_CLOSE,
    PATH_OPEN,
    SUMMARY_CLOSE,
    SUMMARY_OPEN,
)

PARALLEL = f"""Solve the problem step by step. Where several independent views of a step would help, open a block:
{FORK_OPEN}{PATH_OPEN}one line of thought{PATH_CLOSE}{PATH_OPEN}another one{PATH_CLOSE}{FORK_CLOSE}
{SUMMARY_OPEN}what they found, compared and put together{SUMMARY_CLOSE}
A block has two paths or more, and no path knows of the others. Its summary follows at once, and the solution goes on \
from there. Open a block as often as it helps, and not where it does not. Write the answer alone on the last line, \
after "{FINAL_ANSWER}".

Problem: {{problem}}

Solution:
"""
PLAIN = f"""Solve the problem step by step. Write the answer alone on the last line, after "{FINAL_ANSWER}".

Problem: {{problem}}

Solution:
"""
