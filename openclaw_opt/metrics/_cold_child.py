"""The process whose start is timed: open an engine, give one first token (or one sample), say when.

python -m openclaw_opt.metrics._cold_child ENGINE_FOLDER PROMPT
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from openclaw_opt.artifacts import Engine
from openclaw_opt.backends import GenericSession
from openclaw_opt.backends.engines import open_engine
from openclaw_opt.metrics.workload import sample_feed, sample_prompt


def main(folder: str, prompt: str) -> None:
    engine = Engine(Path(folder))
    began = time.perf_counter()
    session = open_engine(engine)
    loaded = time.perf_counter()
    facts = engine.facts.graph
    if isinstance(session, GenericSession):
        session.infer(sample_feed(facts, int(prompt)))
    else:
        session.prefill(sample_prompt(facts, int(prompt), 1)[0])
    sys.stdout.write(json.dumps({"load_ms": 1e3 * (loaded - began)}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
