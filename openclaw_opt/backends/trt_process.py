"""The builder's process: its events as they come, its end, its environment."""

from __future__ import annotations

import json
import os
import queue
import subprocess
from pathlib import Path
from typing import Any

STOP_SECONDS = 5.0


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


def environment() -> dict[str, str]:
    """This process's environment, with this very package importable in the child and Python's hashes fixed."""
    package = str(Path(__file__).resolve().parents[2])
    known = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        "PYTHONPATH": package if not known else f"{package}{os.pathsep}{known}",
        "PYTHONHASHSEED": "0",
    }
