"""The process whose start is measured: open an engine, print how long it took.

python -m openclaw_opt.metrics._load_child ENGINE_FOLDER
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path

from openclaw_opt.artifacts import Engine
from openclaw_opt.backends.engines import open_engine


def main(folder: str) -> None:
    importlib.import_module("openclaw_opt.backends.ort_sessions")  # its code is there before the clock starts
    began = time.perf_counter_ns()
    session = open_engine(Engine(Path(folder)))
    taken = (time.perf_counter_ns() - began) / 1e6
    session.close()
    sys.stdout.write(json.dumps({"open_ms": taken}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
