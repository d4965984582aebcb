"""The OpenVINO engine: every family against its graph, receipts of the compiled model, the file as others open it, what is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openclaw_opt.artifacts import SECOND, Engine, Graph, weight_files
from openclaw_opt.backends import fastest, openvino, openvino_receipt
from openclaw_opt.backends.engines import cannot_run
from openclaw_opt.cli import main
from openclaw_opt.errors import MachineError, RecipeError, VerificationError
from openclaw_opt.graph import ir_tools
from openclaw_opt.passes.build import Build
from openclaw_opt.plan import check_recipe
from openclaw_opt.profiling import STEPS, profile
from openclaw_opt.recipe import load_recipe
from openclaw_opt.targets import host
from openclaw_opt.verify import Probe, compare, session_outputs
from tests import tiny
from tests.lowered import graph_of

ov = pytest.importorskip("openvino", reason="pip install 'openclaw-opt[openvino]'")
BUILD = Build(backend="openvino")
WITHOUT_CACHE = ("bert", "vit", "resnet")
QUICK = ("llama", "gemma2", "bert")
UNFUSED = ("gemma2",)
"""Families whose attention OpenVINO has no kernel for: its logits are capped."""


def probe_of(graph: Graph) -> Probe:
    random, facts = np.random.default_rng(0), graph.facts
    if facts.task == "decoder":
        assert facts.vocab is not None
        return Probe(random.integers(0, facts.vocab, (2, 28)), np.array([28, 18]), {})
    sizes = {name: [2, *(size if isinstance(size, int) else 9 for size in shape[1:])] for name, shape in facts.batch_first_shapes.items()}  # fmt: skip
    feed: dict[str, Any] = {
        name: random.standard_normal(size).astype(np.float32) if name == "pixel_values" else np.ones(size, np.int64)
        for name, size in sizes.items()
    }
    return Probe(np.zeros((0, 0), np.int64), np.zeros(0, np.int64), feed)


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in tiny.CONFIGS]
)
def test_the_engine_computes_what_the_graph_computes(family: str, tmp_path: Path) -> None:
    format = "float" if family == "resnet" else "int8_weight_only" if family in WITHOUT_CACHE else "int4"
    graph, todo = graph_of(tmp_path, family, format, "openvino")
    done = BUILD.run(graph, todo)
    verification = compare(BUILD, graph, done.artifact, probe_of(graph), done.proof)
    assert verification.value is not None
    assert verification.value < 1e-5, "float32 throughout, so nothing but the order of sums differs"
    assert "ONNX Runtime against OpenVINO; rounding then moves outputs by" in verification.what
    facts = done.artifact.facts
    assert all(row.ok for row in facts.receipt)
    assert len(facts.receipt) == len(graph.facts.quantized)
    fused = facts.kernels[0].by_type.get("ScaledDotProductAttention", 0)
    assert fused == (0 if family in UNFUSED else len(graph.facts.kv))
    assert any("runs as separate operators" in note for note in facts.notes) == (family in UNFUSED)


@pytest.mark.parametrize(
    ("format", "realised"),
    [("int4", "i4 FullyConnected"), ("uint4", "u4 FullyConnected"), ("int8_weight_only", "i8 FullyConnected")],
)
def test_the_receipt_names_what_the_compiled_model_reads(format: str, realised: str, tmp_path: Path) -> None:
    graph, todo = graph_of(tmp_path, format=format, backend="openvino")
    engine = BUILD.run(graph, todo).artifact
    assert {row.realised for row in engine.facts.receipt} == {realised}
    assert "reads its weights" in engine.facts.receipt[0].why


def test_weights_that_openvino_expands_fail_the_build(tmp_path: Path) -> None:
    """An operator behind DequantizeLinear is folded into a float constant: nothing of it shows in the outputs."""
    graph, todo = graph_of(tmp_path, backend="openvino")
    model = ir_tools.read_model(graph)
    product = ir_tools.node_named(model, "layers.0.qkv/MatMul")
    assert product is not None
    assert product.inputs[1] is not None
    one = ir_tools.add_constant(model, "one.float", np.ones(1, np.float32))
    product.replace_input_with(1, ir_tools.add_node(model, "Mul", [product.inputs[1], one], "layers.0.qkv/expanded"))
    ir_tools.sweep(model)
    trap = ir_tools.write_model(model, tmp_path / "trap")
    trap.write_facts(graph.facts)
    said = r"1 of \d+ quantized layers do not run in the format asked for: layers\.0\.qkv: asked int4, got f32 FullyConnected"
    with pytest.raises(VerificationError, match=said):
        openvino.build(trap, host(), todo.folder / "engine")
    engine = openvino.build(trap, host(), todo.folder / "any", require_realised=False)
    assert [row.layer for row in engine.facts.receipt if not row.ok] == ["layers.0.qkv"]


def test_the_file_runs_as_optimum_and_openvino_run_theirs(tmp_path: Path) -> None:
    """Opened with nothing of ours: four inputs, cache as state, rows of the batch picked by beam_idx."""
    graph, todo = graph_of(tmp_path, backend="openvino")
    engine = BUILD.run(graph, todo).artifact
    model = ov.Core().compile_model(engine.folder / openvino.FILE, "CPU")
    assert {value.get_any_name() for value in model.inputs} == {
        "input_ids",
        "attention_mask",
        "position_ids",
        "beam_idx",
    }
    assert model.get_property(openvino.CACHE).get_type_name() == "f16"
    ids = np.random.default_rng(0).integers(0, 256, (2, 7))
    twins = []
    for beams in ([0, 1], [1, 0]):
        request = model.create_infer_request()
        mask = np.ones((2, 6), np.int64)
        feed = {"input_ids": ids[:, :6], "attention_mask": mask, "position_ids": np.arange(6)[None].repeat(2, 0)}
        request.infer({**feed, "beam_idx": np.arange(2, dtype=np.int32)})
        step = {"attention_mask": np.ones((2, 7), np.int64), "position_ids": np.full((2, 1), 6)}
        found = request.infer({**step, "input_ids": ids[beams, 6:], "beam_idx": np.array(beams, np.int32)})
        twins.append(np.array(next(iter(found.values()))))
    np.testing.assert_allclose(twins[0], twins[1][::-1], atol=1e-5)
    assert np.abs(twins[0][0] - twins[0][1]).max() > 1e-2
    with closing(openvino.open_engine(engine)) as session:
        session.prefill(ids[:, :6])
        session.logits(ids)  # scoring between two steps leaves the cache as it is
        np.testing.assert_allclose(session.decode(ids[:, 6]), twins[0][:, 0], atol=1e-4)


def test_a_session_refuses_what_does_not_fit(tmp_path: Path) -> None:
    graph, todo = graph_of(tmp_path, backend="openvino")
    engine = BUILD.run(graph, todo).artifact
    with closing(openvino.open_engine(engine)) as session:
        for ids, what in (
            (np.zeros((1, 0), np.int64), "an empty prompt"),
            (np.zeros((1, 65), np.int64), "a sequence of 65 tokens exceeds this session's capacity of 64"),
            (np.full((1, 2), 256), "token ids reach from 256 to 256; the model has 0 to 255"),
        ):
            with pytest.raises(RecipeError, match=what):
                session.prefill(ids)
    (engine.folder / openvino.FILE).write_text("<net/>")
    with pytest.raises(MachineError, match=r"OpenVINO .* cannot read the model: "):
        openvino.open_engine(engine)


def test_without_the_package_the_engine_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, todo = graph_of(tmp_path, backend="openvino")
    engine = BUILD.run(graph, todo).artifact
    monkeypatch.setattr(openvino, "find_spec", lambda name: None)
    assert cannot_run(engine.facts) == "openvino not installed"
    with pytest.raises(MachineError, match=r"openvino not installed\n.*pip install 'openclaw-opt\[openvino\]'"):
        openvino.build(graph, host(), tmp_path / "again")


def test_a_missing_package_ends_the_build_before_the_first_pass(
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    int4 = ("{format: int8, algorithm: max}", "{format: int4, algorithm: rtn}")
    recipe = write_recipe(int4, ("- build", "- build: {backend: openvino}"))
    monkeypatch.setattr(openvino, "find_spec", lambda name: None)
    output, words = tmp_path / "out", ["openclaw-opt", "build", "--recipe", str(recipe)]
    monkeypatch.setattr(sys, "argv", [*words, "--cache", str(tmp_path / "cache"), "--output", str(output)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 3
    said = capsys.readouterr().err
    assert "openvino not installed" in said
    assert "pip install 'openclaw-opt[openvino]'" in said
    assert not list(output.glob("*")), "nothing half-written"
    assert not weight_files(tmp_path / "cache")


def test_weights_of_a_build_in_a_folder_named_as_the_twin_are_counted(tmp_path: Path) -> None:
    (tmp_path / SECOND).mkdir()
    graph, _ = graph_of(tmp_path / SECOND, backend="openvino")
    assert [path.name for path in weight_files(graph.folder)] == ["model.onnx", "model.onnx.data"]


def test_the_profile_names_layers_and_adds_up(tmp_path: Path) -> None:
    graph, todo = graph_of(tmp_path, backend="openvino")
    engine = BUILD.run(graph, todo).artifact
    rows = profile(engine.folder, tmp_path / "trace.json")
    assert sum(row.share for row in rows) == pytest.approx(1)
    kinds = {row.layer: row.kernels for row in rows}
    assert {"layers.0.qkv", "layers.1.down", "head"} <= kinds.keys()
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert sum(event["name"].startswith("layers.0.down/") for event in events) == 1 + STEPS


@pytest.mark.slow
def test_fastest_of_an_encoder_times_one_sample(tmp_path: Path) -> None:
    graph, todo = graph_of(tmp_path, "bert", "int8_weight_only", "fastest")
    assert {path.parent.name for path in weight_files(graph.folder)}.isdisjoint({SECOND})
    engine = fastest.build(graph, host(), todo.folder / "engine")
    assert any(note.startswith("openvino ") and note.endswith(" ms for one sample") for note in engine.facts.notes)
    assert any(note.startswith("gguf is no candidate: ") for note in engine.facts.notes)
    with closing(
        openvino.open_engine(engine) if engine.facts.backend == "openvino" else _onnxruntime(engine)
    ) as session:
        assert session_outputs(session, probe_of(graph)).keys()


def _onnxruntime(engine: Engine) -> Any:
    from openclaw_opt.backends.onnxruntime import open_engine

    return open_engine(engine)


@pytest.mark.slow
def test_a_candidate_that_does_not_realise_a_layer_is_out_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, todo = graph_of(tmp_path, "bert", "int8_weight_only", "fastest")
    monkeypatch.setitem(openvino_receipt.LOW_BIT, "int8_weight_only", ())
    engine = fastest.build(graph, host(), todo.folder / "engine")
    assert engine.facts.backend == "onnxruntime"
    assert any(
        n.startswith("openvino is no candidate: ") and "do not run in the format" in n for n in engine.facts.notes
    )


@pytest.mark.slow
def test_fastest_says_which_formats_are_no_candidate(tmp_path: Path) -> None:
    graph, todo = graph_of(tmp_path, "bert", "int8_per_token", "fastest")
    engine = fastest.build(graph, host(), todo.folder / "engine")
    assert engine.facts.backend == "onnxruntime"
    assert "openvino is no candidate: OpenVINO does not realise int8_per_token" in engine.facts.notes


def test_check_refuses_a_gpu_and_other_formats(write_recipe: Callable[..., Path]) -> None:
    to_openvino = ("- build", "- build: {backend: openvino}")
    cases = {
        (to_openvino, ("target: host", "target: l4")): ("openvino is for a CPU, not for NVIDIA L4", "target: host"),
        (to_openvino,): ("openvino does not realise int8 on", "format: int8_weight_only"),
    }
    for changes, (what, fix) in cases.items():
        with pytest.raises(RecipeError) as error:
            check_recipe(load_recipe(write_recipe(*changes)))
        said = str(error.value)
        assert what in said
        assert fix in said
