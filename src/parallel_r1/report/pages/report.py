"""The report of a run: one HTML file, read from top to bottom, that needs nothing else."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path

from parallel_r1.files import write_text
from parallel_r1.report.pages import pictures, sections
from parallel_r1.report.pages.examples import examples
from parallel_r1.report.pages.page import Section, page
from parallel_r1.report.pages.run import Run, read_run
from parallel_r1.report.pages.saved import tokenizer_of
from parallel_r1.report.pages.viewer import data_blocks, mount, viewer_script, viewer_style

SectionOf = Callable[[Run], str | None]
"""The content of a section as HTML; None if the run has nothing for it."""
SECTIONS: list[tuple[str, SectionOf]] = [
    ("What was trained", sections.trained),
    ("Results", sections.results),
    ("Comparisons", sections.comparisons),
    ("Training", pictures.training_curves),
    ("How the strategy evolves", pictures.evolution),
    ("Frontier", pictures.frontier),
]
"""The sections before the examples, by title. One that is added here is shown."""
LAST: list[tuple[str, SectionOf]] = [("Warnings", sections.warnings), ("Environment", sections.environment)]
"""The sections behind the examples, which may have added notes."""
EXAMPLES = "answers"
ABOUT = (
    "A language model that learns to think in parallel: it opens a fork, follows several paths that cannot see each "
    "other, joins them in a summary, and goes on."
)


def report(run: Run) -> str:
    """The report of a run as a page."""
    shown = _sections(run, SECTIONS)
    blocks, content = _examples(run)
    shown.append(Section("Answers", content, EXAMPLES))
    shown += _sections(run, LAST)
    lead = f'<p class="lead">{ABOUT}</p>{_unfinished(run)}{sections.headline(run)}'
    return page(
        run.name,
        shown,
        lead=lead,
        after=blocks,
        style=viewer_style() if blocks else "",
        script=viewer_script() if blocks else "",
    )


def write_report(path: Path, out: Path | None = None) -> Path:
    """Write the report of a run folder.

    Args:
        out: the file to write; RUN/report.html if None, which replaces the report that is there.

    Returns:
        The file.

    Raises:
        UserError: there is no run, or the file cannot be written.
    """
    file = out or path / "report.html"
    write_text(file, report(read_run(path)))
    return file


def _sections(run: Run, parts: list[tuple[str, SectionOf]]) -> list[Section]:
    contents = [(title, content(run)) for title, content in parts]
    return [Section(title, html, title.lower().replace(" ", "-")) for title, html in contents if html is not None]


def _examples(run: Run) -> tuple[str, str]:
    """The data of the viewer, and the section around it."""
    notes: set[str] = set()
    blocks, count = data_blocks(EXAMPLES, examples(run, notes), tokenizer_of(run.path))
    run.notes.extend(sorted(notes))
    if not count:
        why = (
            "its first step of reinforcement learning saves some"
            if run.unfinished
            else "steps of an RL stage save them"
        )
        return "", sections.paragraph(f"The run has no saved answers: {why}.", "quiet")
    words = (
        f"{count:,} of the saved answers. A box is a token, hollow if the runtime gave it; the strong line is the "
        "critical path. Point at a token for its probability; ? lists the keys."
    )
    command = f'<p class="quiet">All of them: <code>parallel-r1 show {escape(str(run.path))} --html FILE</code></p>'
    return blocks, sections.paragraph(words) + mount(EXAMPLES) + command


def _unfinished(run: Run) -> str:
    """A remark on a run that is still being written; empty for a finished one."""
    if not run.unfinished:
        return ""
    done = max((row.get("step", 0) for row in run.metrics), default=0)
    planned = sum(stage.steps for stage in run.recipe.stages.values()) if run.recipe else None
    of = f" of {planned:,}" if planned else ""
    more = "The report shows what is there; the same training command goes on."
    return sections.paragraph(f"This run is unfinished: {done:,}{of} steps. {more}", "note")
