"""The process whose memory is measured: open an engine, run it once, print what the kernel saw.

python -m openclaw_opt.metrics._memory_child ENGINE_FOLDER PROMPT NEW_TOKENS
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

from openclaw_opt.artifacts import Engine, GraphFacts
from openclaw_opt.backends import DecoderSession, GenericSession
from openclaw_opt.backends.engines import open_engine
from openclaw_opt.metrics.workload import sample_feed, sample_prompt


def main(folder: str, prompt: str, new_tokens: str) -> None:
    importlib.import_module("openclaw_opt.backends.ort_sessions")  # its code is there before the engine is
    engine = Engine(Path(folder))
    before = resident("VmRSS")
    session = open_engine(engine)
    run_once(session, engine.facts.graph, int(prompt), int(new_tokens))
    peak = resident("VmHWM")
    session.close()
    sys.stdout.write(json.dumps({"before": before, "peak": peak}) + "\n")


def run_once(session: DecoderSession | GenericSession, facts: GraphFacts, prompt: int, new_tokens: int) -> None:
    """One prompt and its continuation, or one sample."""
    if isinstance(session, GenericSession):
        session.infer(sample_feed(facts, prompt))
        return
    ids, steps = sample_prompt(facts, prompt, new_tokens)
    logits = session.prefill(ids)
    for _ in range(steps):
        logits = session.decode(logits.argmax(-1))


def resident(field: str) -> int:
    """Bytes of VmRSS or VmHWM of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"the kernel states no {field}")


if __name__ == "__main__":
    main(*sys.argv[1:])
