"""The report at the end of a training command."""

from parallel_r1.cli.runs import _report
from parallel_r1.report.pages import report
from parallel_r1.runs.folder import RunFolder


def test_a_report_that_cannot_be_written_fails_no_run(tmp_path, monkeypatch, capsys):
    """Whatever goes wrong, a line says so and how to try again."""
    run = RunFolder(tmp_path / "run")
    assert _report(run) is None
    assert f"warning: no report: expected a run folder; found no folder {run.path}" in capsys.readouterr().err

    def broken(path):
        raise ZeroDivisionError("x / 0")

    monkeypatch.setattr(report, "write_report", broken)
    assert _report(run) is None
    said = capsys.readouterr().err
    assert f"no report: ZeroDivisionError: x / 0; `parallel-r1 report {run.path}` tries again" in said
    assert said.count("\n") == 1
