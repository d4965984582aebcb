"""Sweeps in processes: killed, interrupted, with a trial that dies, on a full disk, several points at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path

import psutil
import pytest

from openclaw_opt.errors import MachineError
from openclaw_opt.publish import read_manifest
from openclaw_opt.report import read_report
from openclaw_opt.store import Store
from openclaw_opt.sweep.local import Local, last_line
from openclaw_opt.sweep.state import SweepRecord, read_state
from openclaw_opt.sweep.trial import Job
from openclaw_opt.turns import SharedTurns, Turns
from tests.sweeps import AUTO, FORMATS, Inline, Write, asked, by_name, run
from tests.test_disk import mounted

TWO = ("passes:\n", "passes:\n  - prune: {ffn: 0.4, query_heads: 0.5}\n")
GRID = ("passes.quantize.format=off,int8,int8_weight_only", "passes.prune.ffn=0,0.4", "passes.prune.query_heads=0,0.5")
"""Twelve points."""


def command(file: Path, cache: Path, out: Path, *more: str, grid: tuple[str, ...] = GRID) -> list[str]:
    axes = [word for one in grid for word in ("--grid", one)]
    where = ["--cache", str(cache), "-o", str(out)]
    return [sys.executable, "-m", "openclaw_opt", "sweep", str(file), *axes, *where, *more]


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(list(arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def until_done(child: subprocess.Popen[str], out: Path, count: int) -> SweepRecord:
    """Wait for so many points; the state then."""
    for _ in range(6000):
        state = read_state(out)
        if state is not None and sum(point.status == "done" for point in state.points) >= count:
            return state
        assert child.poll() is None, child.communicate()[1]
        time.sleep(0.05)
    raise AssertionError("it does not go on")


def descendants(child: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(child.pid).children(recursive=True)


@pytest.mark.slow
def test_a_sweep_of_twelve_points_killed_twice_ends_as_one_that_was_not(write_recipe: Write, tmp_path: Path) -> None:
    file = write_recipe(TWO, AUTO)
    whole = start(*command(file, tmp_path / "cache", tmp_path / "whole"))
    told = whole.communicate()
    assert whole.returncode == 0, told
    out, stamps = tmp_path / "killed", dict[str, int]()
    for count in (3, 8):
        child = start(*command(file, tmp_path / "other-cache", out))
        state = until_done(child, out, count)
        left = descendants(child)
        child.kill()
        child.communicate()
        assert psutil.wait_procs(left, timeout=10)[1] == [], "trials end with their sweep"
        reports = {p.name: out / "points" / p.name / "report.json" for p in state.points if p.status == "done"}
        assert {name: reports[name].stat().st_mtime_ns for name in stamps} == stamps, "what was finished was not redone"
        stamps = {name: report.stat().st_mtime_ns for name, report in reports.items()}
    last = start(*command(file, tmp_path / "other-cache", out))
    told = last.communicate()
    assert last.returncode == 0, told
    undisturbed, resumed = read_state(tmp_path / "whole"), read_state(out)
    assert undisturbed is not None
    assert resumed is not None
    assert len(undisturbed.points) == 12
    assert (resumed.front, resumed.contenders, resumed.best) == (
        undisturbed.front,
        undisturbed.contenders,
        undisturbed.best,
    )
    assert {p.name: p.values for p in resumed.points} == {p.name: p.values for p in undisturbed.points}
    assert not list((tmp_path / "other-cache").glob(".work-*"))


@pytest.mark.slow
def test_ctrl_c_ends_the_trials_and_the_next_run_goes_on(write_recipe: Write, tmp_path: Path) -> None:
    file, cache, out = write_recipe(TWO, AUTO), tmp_path / "cache", tmp_path / "out"
    child = start(*command(file, cache, out, "--jobs", "2", grid=GRID[:2]))
    until_done(child, out, 1)
    left = descendants(child)
    child.send_signal(signal.SIGINT)
    _, told = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "run the same command to go on" in told
    assert "Traceback" not in told
    assert psutil.wait_procs(left, timeout=10)[1] == []
    stopped = read_state(out)
    assert stopped is not None
    assert {point.status for point in stopped.points} <= {"done", "waiting"}
    done = start(*command(file, cache, out, "--jobs", "2", grid=GRID[:2]))
    _, told = done.communicate()
    assert done.returncode == 0, told
    assert "of them from an earlier run" in told


# ---- a trial that dies


def job(tmp_path: Path, recipe: Path, name: str, **changes: object) -> Job:
    facts = {"recipe": recipe, "output": tmp_path / name, "log": tmp_path / f"{name}.log", "store": tmp_path / "cache"}
    return Job(**{"name": name, "target": "host", "early": False, "shared": False, **facts, **changes})  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGSEGV, 139), (signal.SIGKILL, 137)])
def test_a_trial_that_dies_is_one_failed_point(
    write_recipe: Write, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    def kill(name: str, fraction: float, text: str) -> None:
        server = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
        if name == "victim":
            for child in psutil.Process(server).children():
                os.kill(child.pid, number)

    file = write_recipe()
    died, lived = Local(1, kill).run([job(tmp_path, file, "victim"), job(tmp_path, file, "other")])
    assert (died.status, died.exit_code) == ("failed", code)
    assert died.error.startswith(f"the process was ended by {number.name}")
    assert (lived.status, lived.exit_code) == ("done", 0)
    assert read_report(tmp_path / "other").exit_code == 0


@pytest.mark.slow
def test_a_bug_in_a_trial_is_its_last_line_and_its_log(write_recipe: Write, tmp_path: Path) -> None:
    (broken,) = Local(1, lambda *_: None).run([job(tmp_path, write_recipe(), "broken", store=None)])
    assert (broken.status, broken.exit_code) == ("failed", 1)
    assert broken.error.startswith("the process ended with 1: TypeError: ")
    assert "Traceback" in (tmp_path / "broken.log").read_text()


@pytest.mark.slow
def test_an_error_of_a_trial_is_its_outcome_and_in_its_log(tmp_path: Path) -> None:
    (failed,) = Local(1, lambda *_: None).run([job(tmp_path, tmp_path / "none.yaml", "none")])
    assert (failed.status, failed.exit_code) == ("failed", 2)
    assert "no such recipe" in failed.error
    assert "no such recipe" in last_line(tmp_path / "none.log") + (tmp_path / "none.log").read_text()


# ---- several at once


@pytest.mark.slow
def test_points_at_once_make_each_pass_once(write_recipe: Write, tmp_path: Path) -> None:
    out = tmp_path / "out"
    state = run(asked(write_recipe(AUTO), FORMATS), tmp_path / "cache", out, Local(2, lambda *_: None))
    assert (state.exit_code, len(state.points)) == (0, 2)
    assert state.notes == (
        "points were built at the same time; while one was timed, the others on that machine paused",
    )
    made: Counter[str] = Counter()
    for point in state.points:
        manifest = read_manifest(out / "points" / point.name)
        assert manifest is not None
        made.update(one["key"] for one in manifest.data["passes"] if not one["cached"])
    assert set(made.values()) == {1}
    assert set(made) == {key for point in state.points for key in point.passes.values()}


def test_a_timing_waits_for_work_and_work_for_a_timing(tmp_path: Path) -> None:
    turns, order = SharedTurns(tmp_path / "turns"), list[str]()
    working, release = threading.Event(), threading.Event()

    def work(name: str) -> None:
        with turns.working():
            order.append(f"{name} in")
            working.set()
            release.wait(10)
            order.append(f"{name} out")

    def timing() -> None:
        with turns.timing():
            order.append("timing")

    first = threading.Thread(target=work, args=("first",))
    first.start()
    assert working.wait(10)
    timed = threading.Thread(target=timing)
    timed.start()
    time.sleep(0.2)
    late = threading.Thread(target=work, args=("late",))
    late.start()
    time.sleep(0.2)
    assert order == ["first in"], "the timing waits for work that runs, and work that comes later waits for the timing"
    release.set()
    for thread in (first, timed, late):
        thread.join(10)
    assert order == ["first in", "first out", "timing", "late in", "late out"]


def test_work_runs_side_by_side(tmp_path: Path) -> None:
    one, other = SharedTurns(tmp_path / "turns"), SharedTurns(tmp_path / "turns")
    with one.working(), other.working():
        pass
    with Turns().working(), Turns().timing():
        pass


def test_an_entry_is_made_by_one(tmp_path: Path) -> None:
    store, made = Store(tmp_path), list[int]()

    def make() -> None:
        with store.claimed("k" * 64):
            if store.find("k" * 64) is None:
                with store.making() as folder:
                    time.sleep(0.1)
                    made.append(1)
                    store.keep(folder, "k" * 64, {"kind": "x"})

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert made == [1]


# ---- a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path / "small", 450)


@pytest.mark.slow
def test_a_full_disk_ends_the_sweep_and_space_lets_it_go_on(
    write_recipe: Write, tmp_path: Path, small_disk: Path
) -> None:
    """Room for one point."""
    what, out = asked(write_recipe(AUTO), FORMATS), small_disk / "out"
    with pytest.raises(MachineError, match="the disk is full") as caught:
        run(what, tmp_path / "cache", out)
    assert "run the same command" in caught.value.fix
    state = read_state(out)
    assert state is not None, "what was written before is whole"
    done = [point.name for point in state.points if point.status == "done"]
    assert len(done) < 2
    subprocess.run(["mount", "-o", "remount,size=8000k", str(small_disk)], check=True)
    executor = Inline()
    state = run(what, tmp_path / "cache", out, executor)
    assert state.exit_code == 0
    assert set(executor.ran) == set(by_name(state)) - set(done)
