"""A comparison of models as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from parallel_r1.evaluation.frontier import Frontier
from parallel_r1.report.frontiers import frontier_figure
from parallel_r1.report.pages.page import Section, page, table_html
from parallel_r1.report.pages.pictures import figure_html
from parallel_r1.report.pages.sections import COST_TERMS, paragraph
from parallel_r1.report.style import can_draw
from parallel_r1.table import Table

TERMS = (
    "p is that of a paired sign-flip test over problems, p (Holm) is corrected for all pairs of the task. Problems "
    "needed, answers needed: how many problems, or answers to each of these problems, find a difference of this size "
    f"with a probability of 80 %. {COST_TERMS}"
)


def leaderboard(tables: Sequence[Table], lines: Sequence[str], curves: Mapping[str, Sequence[Frontier]]) -> str:
    """The page: tables, the picture of accuracy against cost if several budgets were measured, and remarks.

    Args:
        tables, lines: of `comparison_report`.
        curves: by task.
    """
    names = list(dict.fromkeys(one.name for several in curves.values() for one in several))
    sections = [Section("Results", "".join(map(table_html, tables)) + paragraph(TERMS, "quiet"), "results")]
    if can_draw() and any(len(one.points) > 1 for several in curves.values() for one in several):
        picture = figure_html(frontier_figure(curves), "Accuracy under several budgets, with 95 % intervals.")
        sections.append(Section("Accuracy against cost", picture, "cost"))
    if lines:
        sections.append(
            Section("Remarks", f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>", "remarks")
        )
    return page(f"Comparison of {len(names)} models", sections, lead=paragraph(", ".join(names), "lead"))
