"""`tune: session`: what is kept, what is written, and what another machine is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from openclaw_opt.artifacts import Graph
from openclaw_opt.backends import onnxruntime, ort_tuning
from openclaw_opt.errors import MachineError, RecipeError
from openclaw_opt.numerics.stats import Estimate
from openclaw_opt.plan import check_recipe
from openclaw_opt.recipe import load_recipe
from openclaw_opt.targets import host
from tests.lowered import graph_of

SPINNING = "session.intra_op.allow_spinning"


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return graph_of(tmp_path_factory.mktemp("tuned"))[0]


def test_only_what_is_faster_beyond_the_interval_is_kept(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    def turns(_: object, feed: object, one: ort_tuning.Options, other: ort_tuning.Options) -> tuple[list[float], ...]:
        new = next(name for name in other if other.get(name) != one.get(name))
        return [10.0] * 9, [5.0 if new == SPINNING else 10.0] * 9

    monkeypatch.setattr(ort_tuning, "_turns", turns)
    kept, told = ort_tuning.tuned(graph, {})
    assert kept == {SPINNING: "0"}
    assert f"tune: {SPINNING} = 0: 2.00 (2.00 to 2.00) times as fast, kept" in told
    assert "tune: enable_mem_pattern = False: 1.00 (1.00 to 1.00) times as fast, not kept" in told
    assert len(told) == len(list(ort_tuning.candidates()))


def test_what_is_kept_is_in_the_engine_and_in_genai_config(
    graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort_tuning, "candidates", lambda: iter([{SPINNING: "0"}, {"intra_op_num_threads": 1}]))
    monkeypatch.setattr(ort_tuning, "paired_ratio", lambda *_: Estimate(2.0, 1.5, 2.5, 9))
    engine = onnxruntime.build(graph, host(), tmp_path / "engine", tune=True)
    wanted = {SPINNING: "0", "intra_op_num_threads": 1}
    assert engine.facts.session == wanted
    config = json.loads((engine.folder / "genai_config.json").read_text())
    assert wanted.items() <= config["model"]["decoder"]["session_options"].items()
    onnxruntime.open_engine(engine).close()
    more = engine.facts.model_copy(update={"session": {"intra_op_num_threads": 4096}})
    engine.write_facts(more)
    with pytest.raises(MachineError, match=r"the engine is tuned for 4096 threads, and this process may use \d+ core"):
        onnxruntime.open_engine(engine)


def test_check_refuses_to_tune_for_another_machine(write_recipe: Callable[..., Path]) -> None:
    file = write_recipe(("- build", "- build: {tune: session}"), ("target: host", "target: l4"))
    with pytest.raises(RecipeError) as error:
        check_recipe(load_recipe(file))
    assert "`tune` times ONNX Runtime on this machine: it wants `target: host`" in str(error.value)
