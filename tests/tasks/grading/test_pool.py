"""The processes that compare what our rules leave open."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from parallel_r1 import errors
from parallel_r1.errors import UserError
from parallel_r1.tasks.grading import grader as pool
from parallel_r1.tasks.grading.equal import compare
from parallel_r1.tasks.grading.extract import final_answer
from parallel_r1.tasks.grading.grader import Grader


def undecided(number):
    """A right pair (answer, reference) that only math-verify decides."""
    return f"x! + {number}", f"{number} + x!"


@pytest.fixture(scope="module")
def grader():
    with_one = Grader(size=1)
    yield with_one
    with_one.close()


@pytest.fixture
def strict():
    """A grader that has no patience."""
    with_limit = Grader(limit=0.3, size=1)
    yield with_limit
    with_limit.close()


def hostile(trap):
    return [
        "9^{9^{9^{9^9}}}",
        "(10^{10^{10}})!",
        r"\sin(10^{10^{10}})",
        r"\binom{10^{9}}{10^{8}}",
        "((" * 200 + "8" + "))" * 200,
        "9" * 900,
        "2^{" * 200 + "}" * 200,
        "+" * 900 + "7",
        r"\sqrt" * 190 + "7",
        "|" * 900,
        r"\int_0^{10^{9}} e^{x^{x^x}} dx",
        "7" * 1_000_000,
        "(" * 1_000_000,
        r"\boxed{" * 140_000,
        f"__import__('os').system('touch {trap}')",
        f"$(touch {trap}); `touch {trap}`",
        rf"\input{{|touch {trap}}} \write18{{touch {trap}}}",
        f"open('{trap}', 'w').close() or 7",
        "7\0",
        "\u202e7\u202c",
        "7\u200f",
        "\ud800",
    ]


def test_the_pairs_of_these_tests_are_left_to_math_verify():
    assert all(isinstance(compare(*undecided(number)), tuple) for number in range(1, 5))


def test_hostile_answers_among_others_are_wrong_and_the_others_are_not_affected(tmp_path, strict):
    trap = tmp_path / "trap"
    bad = [(text, "7") for text in hostile(trap)]
    good = [(f"{number}.0", str(number)) for number in range(200 - len(bad))] + [
        undecided(number) for number in range(3, 6)
    ]
    started = time.monotonic()
    assert strict.grade(bad + good) == [False] * len(bad) + [True] * len(good)
    assert time.monotonic() - started < 60
    assert not trap.exists()
    assert strict.right(*undecided(2))
    for text in hostile(trap):
        for find in ("strict", "lenient"):
            assert final_answer(text, find) in (None, "7")


def test_several_threads_grade_at_once_with_hostile_answers_among_them(strict):
    """More threads than processes, the same pairs in all of them, and towers in some."""
    pairs = [undecided(number) for number in range(6, 12)]
    start = threading.Barrier(4)

    def work(number):
        start.wait()
        towers = [(rf"x! + 9^{{9^{{9^{number}}}}}", "7 + x!")] if number % 2 else []
        return strict.grade(towers + pairs)[len(towers) :]

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(work, range(4))) == [[True] * len(pairs)] * 4


def test_all_processes_work_for_one_call_and_for_many_threads():
    two = Grader(size=2)
    try:
        assert two.grade([undecided(number) for number in range(20, 60)]) == [True] * 40
        assert len(two.workers) == 2
        assert all(worker.served for worker in two.workers)
        before = [worker.served for worker in two.workers]
        with ThreadPoolExecutor(4) as threads:
            assert all(threads.map(lambda number: two.right(*undecided(number)), range(60, 100)))
        assert sum(worker.served for worker in two.workers) == sum(before) + 40
        processes = [worker.process for worker in two.workers]
    finally:
        two.close()
    assert all(process.poll() is not None for process in processes)
    assert not two.workers


@pytest.mark.parametrize("killed_by", [signal.SIGKILL, signal.SIGTERM])
def test_an_idle_process_that_was_killed_is_replaced(grader, killed_by):
    assert grader.right(*undecided(100))
    (worker,) = grader.workers
    os.kill(worker.process.pid, killed_by)
    worker.process.wait()
    assert grader.right(*undecided(101 + killed_by))
    assert grader.workers[0] is not worker


def test_a_process_that_is_killed_at_work_gets_a_second_try(grader, monkeypatch):
    assert grader.right(*undecided(200))
    (worker,) = grader.workers
    ask, asked = pool.Worker.ask, []

    def killed(self, pair):
        asked.append(pair)
        if len(asked) == 1:
            os.kill(self.process.pid, signal.SIGSTOP)  # so that the pair is not compared before the end
            os.kill(self.process.pid, signal.SIGKILL)
        return ask(self, pair)

    monkeypatch.setattr(pool.Worker, "ask", killed)
    assert grader.right(*undecided(201))
    assert len(asked) == 2
    assert worker not in grader.workers


def test_a_process_is_renewed_when_it_has_served_its_time(grader, monkeypatch):
    assert grader.right(*undecided(300))
    worker = grader.workers[0]
    monkeypatch.setattr(pool, "SERVED", worker.served + 2)
    assert grader.grade([undecided(number) for number in range(301, 304)]) == [True] * 3
    assert worker.process.poll() is not None
    assert worker not in grader.workers


def test_verdicts_are_remembered_under_the_texts_and_the_oldest_are_forgotten(grader, monkeypatch):
    monkeypatch.setattr(pool, "KEPT", 4)
    own = Grader(size=1)
    pairs = [(f"{number}.0", str(number)) for number in range(6)]
    assert own.grade(pairs) == [True] * 6
    assert list(own.verdicts) == [(gold, answer) for answer, gold in pairs[2:]]
    monkeypatch.setattr(pool, "compare", None)
    assert own.grade(pairs[2:]) == [True] * 4  # nobody compared
    with pytest.raises(TypeError):
        own.grade(pairs[:1])


def test_a_remembered_verdict_costs_one_look_up_however_many_there_are(monkeypatch):
    """The time of a look-up among 100,000 verdicts is that among a few, and no memory is used for it."""
    own = Grader(size=1)
    own.right("7.0", "7")
    monkeypatch.setattr(pool, "compare", None)

    def seconds():
        started = time.process_time()
        for _ in range(2000):
            own.right("7.0", "7")
        return time.process_time() - started

    few = min(seconds() for _ in range(3))
    own.verdicts.update({(str(number), ""): False for number in range(100_000)})
    assert min(seconds() for _ in range(3)) < 20 * few  # copying the table takes a thousand times as long


def test_a_library_that_cannot_be_loaded_is_one_clear_line(tmp_path, monkeypatch):
    (tmp_path / "math_verify.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    broken = Grader(size=1)
    for _ in range(2):  # the failure is not remembered as a verdict
        with pytest.raises(UserError, match="import math_verify"):
            broken.right(*undecided(1))
    monkeypatch.setattr(errors, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"parallel-r1\[math\]"):
        Grader()
