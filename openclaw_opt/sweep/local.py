"""Trials on this machine: each in a process of its own, so that a crash is one failed point.

The processes come from a fork server that has imported the libraries once. Each writes what it prints into its log; when it
ends without an outcome, its exit code and the last line of the log are the outcome. They end with this process, however
it ends.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from openclaw_opt import interrupts
from openclaw_opt.errors import MachineError
from openclaw_opt.sweep.trial import Job, Outcome, run_trial
from openclaw_opt.targets import Target

POLL_S = 0.5
STOP_S = 10.0
EVERY_S = 0.2
"""Between two messages of a trial about where it is."""
PARENT_DIED = 1
"""PR_SET_PDEATHSIG of prctl(2)."""


@dataclass
class _Running:
    job: Job
    process: ForkServerProcess
    pipe: connection.Connection
    began: float
    outcome: Outcome | None = None


class Local:
    """Up to `width` processes at once.

    Args:
        tell: called with a trial's name, the part done and what is being done.
    """

    def __init__(self, width: int, tell: Callable[[str, float, str], None]) -> None:
        self.width, self._tell = width, tell
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["openclaw_opt.sweep.preload"])

    def prepare(self, targets: Sequence[Target]) -> None:
        """Every target can be compiled here or is left one command from finished, as in a build."""

    def close(self) -> None:
        """Nothing is held between runs: the fork server ends with this process."""

    def run(self, jobs: Iterable[Job]) -> Generator[Outcome]:
        waiting, running = iter(jobs), list[_Running]()
        try:
            while True:
                while len(running) < self.width and (job := next(waiting, None)) is not None:
                    running.append(self._start(job))
                if not running:
                    return
                ended = self._wait(running)
                for one in ended:
                    running.remove(one)
                    yield _outcome_of(one)
        finally:
            _stop(running)

    def _start(self, job: Job) -> _Running:
        receiving, sending = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_child, args=(job, sending), name=job.name)
        process.start()
        sending.close()
        return _Running(job, process, receiving, time.monotonic())

    def _wait(self, running: Sequence[_Running]) -> list[_Running]:
        """Pass on what the trials tell until some of them have ended."""
        while True:
            interrupts.check()
            pipes = [one.pipe for one in running if not one.pipe.closed]
            connection.wait([*pipes, *(one.process.sentinel for one in running)], POLL_S)
            for one in running:
                self._read(one)
            ended = [one for one in running if one.process.exitcode is not None]
            for one in ended:
                self._read(one)
            if ended:
                return ended

    def _read(self, one: _Running) -> None:
        try:
            while not one.pipe.closed and one.pipe.poll():
                said = one.pipe.recv()
                if isinstance(said, Outcome):
                    one.outcome = said
                else:
                    self._tell(one.job.name, *said)
        except (EOFError, ConnectionResetError):
            one.pipe.close()


def _outcome_of(one: _Running) -> Outcome:
    """The trial's own, or how its process died."""
    code = one.process.exitcode
    one.process.close()
    one.pipe.close()
    if one.outcome is not None:
        return one.outcome
    assert code is not None
    if code < 0:
        died, code = f"the process was ended by {signal.Signals(-code).name}", 128 - code
        if code == 128 + signal.SIGKILL:
            died += ", as the system does when memory runs out"
    else:
        died = f"the process ended with {code}"
    last = last_line(one.job.log)
    return Outcome(
        one.job.name, "failed", code, time.monotonic() - one.began, error=f"{died}: {last}" if last else died
    )


def last_line(log: Path) -> str:
    """The last line of a log that says something; empty if there is none."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _stop(running: Sequence[_Running]) -> None:
    for one in running:
        if one.process.exitcode is None:
            one.process.terminate()
    until = time.monotonic() + STOP_S
    for one in running:
        one.process.join(max(0.0, until - time.monotonic()))
        if one.process.exitcode is None:
            one.process.kill()
            one.process.join()
        one.process.close()
        one.pipe.close()


def _child(job: Job, pipe: connection.Connection) -> None:
    """A trial's process. Its exit code matters only when there is no outcome."""
    _end_with_parent()
    log = os.open(job.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    interrupts.install()
    said = 0.0

    def tell(fraction: float, text: str) -> None:
        nonlocal said
        interrupts.check()
        if time.monotonic() - said > EVERY_S:
            said = time.monotonic()
            pipe.send((fraction, text))

    try:
        outcome = run_trial(job, tell)
        if outcome.error:
            sys.stderr.write(f"{outcome.error}\n")
        pipe.send(outcome)
    except interrupts.Interrupted as end:
        sys.exit(end.exit_code)


def _end_with_parent() -> None:
    """Ask the system to kill this process when the fork server dies, which dies with the sweep."""
    if sys.platform != "linux":
        return
    import ctypes

    if ctypes.CDLL(None, use_errno=True).prctl(PARENT_DIED, signal.SIGKILL) != 0:
        raise MachineError("prctl(PR_SET_PDEATHSIG) failed", fix="report it, with the kernel's version")
    if os.getppid() == 1:
        os._exit(1)  # it died before this was asked
