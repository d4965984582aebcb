"""The builder's process: started, listened to, ended; its environment."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openclaw_opt.errors import MachineError

Tell = Callable[[str, float], None]
"""Called with the builder's phase and how far the whole build is, in [0, 1]."""
STOP_SECONDS = 5.0


@dataclass(frozen=True)
class Ended:
    """How a builder ended.

    Attributes:
        event: `done`, or the first that was no progress; of several parse errors the first is the cause.
        code: its exit code, negative for a signal.
        address_limit: bytes of address space it was allowed (`ulimit -v`); None without a limit.
    """

    event: dict[str, Any]
    code: int
    address_limit: int | None = None


def drive(request: Path, log: Path, limit_s: float | None, tell: Tell) -> Ended:
    """Run the builder to its end; whatever happens here, it is gone afterwards.

    Raises MachineError at the time limit.
    """
    command = [sys.executable, "-m", "openclaw_opt.backends.trt_child", request.name]
    with log.open("ab") as errors:
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment(),
            cwd=request.parent,
            start_new_session=True,
        )
    try:
        return _listen(child, log, limit_s, tell)
    finally:
        stop(child)


def _listen(child: subprocess.Popen[bytes], log: Path, limit_s: float | None, tell: Tell) -> Ended:
    events: queue.Queue[dict[str, Any] | None] = queue.Queue()
    threading.Thread(target=pump, args=(child, events), daemon=True).start()
    deadline = None if limit_s is None else time.monotonic() + limit_s
    last: dict[str, Any] = {}
    while (event := _next(events, deadline, log, limit_s)) is not None:
        if event["event"] == "progress":
            tell(event["phase"], event["fraction"])
        elif not last:
            last = event
    limit = address_limit(child.pid)
    return Ended(last, child.wait(), limit)


def address_limit(pid: int) -> int | None:
    """Bytes of address space that a process of ours may take, also once it has died and is not yet waited for."""
    if not sys.platform.startswith("linux"):
        return None
    import resource

    try:
        soft, _ = resource.prlimit(pid, resource.RLIMIT_AS)
    except (ProcessLookupError, PermissionError):
        return None
    return None if soft == resource.RLIM_INFINITY else soft


def _next(
    events: queue.Queue[dict[str, Any] | None], deadline: float | None, log: Path, limit_s: float | None
) -> dict[str, Any] | None:
    try:
        return events.get(timeout=None if deadline is None else max(deadline - time.monotonic(), 0.0))
    except queue.Empty:
        raise MachineError(
            f"the build was stopped at its time limit of {limit_s} s",
            where=str(log),
            fix="raise `build: {timeout_minutes: …}`, or narrow the shape ranges",
        ) from None


def pump(child: subprocess.Popen[bytes], events: queue.Queue[dict[str, Any] | None]) -> None:
    """Child's standard output → events, then None."""
    assert child.stdout is not None
    with child.stdout as lines:
        for line in lines:
            if line.endswith(b"}\n"):  # a killed child can leave half a line
                events.put(json.loads(line))
    events.put(None)


def stop(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    if child.stdin is not None:
        child.stdin.close()


@contextlib.contextmanager
def workplace(graph: Path, plan: Path, log: Path) -> Iterator[Path]:
    """A folder with links `graph`, `plan` and `log`, whose own path is of one length every time.

    The compiler orders some things by address, and a longer path moves what is allocated after it: engines of the same graph
    built into folders of other names differed in some bytes.
    """
    with tempfile.TemporaryDirectory(prefix="openclaw-opt-trt-") as name:
        place = Path(name)
        for link, to in (("graph", graph), ("plan", plan), ("log", log)):
            (place / link).symlink_to(to.absolute())
        yield place


KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR", "TEMP", "TMP", "SYSTEMROOT", "USERPROFILE")
KEPT_PREFIXES = ("CUDA", "NVIDIA", "TRT", "TENSORRT")


def environment() -> dict[str, str]:
    """What the builder needs of this process's environment, with this very package importable and Python's hashes fixed.

    The rest is left out: an environment of another size moves addresses as a path does.
    """
    package = str(Path(__file__).resolve().parents[2])
    known = os.environ.get("PYTHONPATH")
    return {
        **{name: value for name, value in os.environ.items() if name in KEPT or name.startswith(KEPT_PREFIXES)},
        "PYTHONPATH": package if not known else f"{package}{os.pathsep}{known}",
        "PYTHONHASHSEED": "0",
    }
