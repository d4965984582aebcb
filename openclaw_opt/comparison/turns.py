"""Times two engines on this machine in turns: one generation each, and which goes first alternates."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from openclaw_opt.artifacts import Engine, EngineFacts
from openclaw_opt.backends.engines import cannot_run, open_engine
from openclaw_opt.comparison.verdicts import Timed
from openclaw_opt.errors import MachineError
from openclaw_opt.metrics.latency import Latency, Times, machine_load
from openclaw_opt.metrics.subject import Opener


def time_in_turns(a: Path, b: Path, latency: Latency) -> Timed:
    """Two folders of builds; why not, where one holds no engine that runs here."""
    for folder in (a, b):
        why = _cannot_time(folder)
        if why:
            return Timed(why=why)
    first, second = Engine(a), Engine(b)
    facts = min((first.facts.graph, second.facts.graph), key=lambda one: one.context or 0)
    with ExitStack() as stack:
        try:
            rounds = [
                latency.round_of(stack, Opener(lambda engine=one: open_engine(engine)), facts, latency.new_tokens)  # type: ignore[misc]
                for one in (first, second)
            ]
        except MachineError as error:
            return Timed(why=error.what)
        load = machine_load()
        old, new = latency.in_turns(rounds[0], rounds[1])
    said = f"timed in turns: batch {latency.batch}, prompt {latency.prompt}, {latency.new_tokens} new tokens; {load}"
    return Timed(_series(old, new), "", (said,))


def _series(old: Times, new: Times) -> dict[str, Any]:
    if not old.later:
        return {"latency.infer": (old.first, new.first)}
    return {"latency.ttft": (old.first, new.first), "latency.decode": (old.per_round, new.per_round)}


def _cannot_time(folder: Path) -> str:
    """Why the folder's engine cannot be timed here; empty if it can."""
    if not folder.is_dir():
        return f"{folder.name} is a report: give both folders to time their engines in turns"
    if not (folder / Engine.facts_file).is_file():
        return f"{folder.name} holds no engine"
    facts: EngineFacts = Engine(folder).facts
    why = cannot_run(facts)
    return f"the engine of {folder.name} does not run here: {why}" if why else ""
