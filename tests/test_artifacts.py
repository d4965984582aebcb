"""inspect and verify on a real small engine, and engines and sequences that are refused with what differs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from openclaw_opt.advisories import ADVISORIES, advisories
from openclaw_opt.artifacts import Engine, EngineFacts, Graph
from openclaw_opt.backends.engines import other_machine
from openclaw_opt.backends.ort_sessions import OrtDecoder
from openclaw_opt.backends.trt_kernels import read_layers
from openclaw_opt.cli import app
from openclaw_opt.cli.progress import Silent
from openclaw_opt.errors import OptError, RecipeError, VerificationError
from openclaw_opt.formats import FORMATS
from openclaw_opt.graph.to_tensorrt import lower
from openclaw_opt.graph.trt_legality import TABLE, fact
from openclaw_opt.inspection import inspect
from openclaw_opt.inspection.difference import difference
from openclaw_opt.integrity import check_files
from openclaw_opt.pipeline import build
from openclaw_opt.rebuild import rebuild
from openclaw_opt.recipe import load_recipe
from openclaw_opt.store import Store
from openclaw_opt.targets import target_named
from tests import tiny
from tests.tiny_decoder import Tiny, write_tiny

RECIPE = """\
model: {model}
target: {target}
passes:
{passes}  - export
  - fuse
  - build
metrics: [size]
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders: `half` and `int4` engines of a tiny Llama for two cards, `cpu` an ONNX Runtime engine; `cache` made them."""
    folder = tmp_path_factory.mktemp("built")
    model = tiny.write_checkpoint(folder / "checkpoint", "llama")
    made = {"cache": folder / "cache"}
    jobs = {"half": ("[rtx4090, rtx3060]", ""), "int4": ("[rtx4090, rtx3060]", "int4"), "cpu": ("host", "")}
    for name, (target, kind) in jobs.items():
        passes = f"  - quantize: {{format: {kind}, algorithm: rtn}}\n" if kind else ""
        file = folder / f"{name}.yaml"
        file.write_text(RECIPE.format(model=model, target=target, passes=passes))
        made[name] = folder / name
        build(load_recipe(file), store=Store(made["cache"]), output=made[name], hooks=Silent())
    return made


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def failed(*arguments: str) -> OptError:
    with pytest.raises(OptError) as caught:
        CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    return caught.value


@pytest.mark.slow
def test_inspect_shows_kernels_types_and_memory_of_each_profile(built: dict[str, Path]) -> None:
    shown = run("inspect", str(built["int4"]))
    assert "targets: rtx4090, rtx3060 (sm86, sm89)" in shown
    assert "decode (engine-sm86-sm89.plan): 23 kernels, 10 a layer, activations 7.8 MiB" in shown
    assert "kernels that hold weights: 8 in Int4" in shown
    assert "2 × runtime_fusion Half × Int4 → Half: layers.*.o.weight/DequantizeLinear" in shown
    assert "asked int4, runs Int4 weights: 16" in shown
    assert max(map(len, shown.removeprefix(str(built["int4"])).splitlines()[1:])) <= 80
    found = json.loads(run("inspect", str(built["int4"]), "--json"))
    assert [one["profile"] for one in found["profiles"]] == ["prefill", "decode"]
    assert "layers.json" in json.loads((built["int4"] / "manifest.json").read_text())["files"]


def test_inspect_shows_operators_and_initializers_of_a_graph(built: dict[str, Path]) -> None:
    found = inspect(built["cpu"])
    assert found.graph is not None
    counts = {one.name: one.count for one in found.graph.operators}
    assert counts["com.microsoft::GroupQueryAttention"] == 2
    shown = run("inspect", str(built["cpu"]))
    assert "initializers:\n  FLOAT: " in shown
    data = (built["cpu"] / "model.onnx.data").stat().st_size
    held = sum(one.bytes for one in found.graph.initializers)
    assert abs(held - data) < 0.05 * data


def test_the_difference_of_two_engines(built: dict[str, Path]) -> None:
    shown = run("inspect", str(built["half"]), str(built["int4"]))
    assert "decode:\n  ~ kernels: 21 → 23" in shown
    assert "+ kernels with Int4 weights: 8" in shown
    assert "layers int4 as Int4 weights: 16" in shown
    assert run("inspect", str(built["half"]), str(built["half"])) == "no difference\n"
    back = {change.name: change for change in difference(inspect(built["int4"]), inspect(built["half"]))}
    assert back["kernels with Int4 weights"].after is None


def test_inspect_refuses_what_is_no_artifact(built: dict[str, Path], tmp_path: Path) -> None:
    assert "holds no engine and no graph" in str(failed("inspect", str(tmp_path)))
    spoiled = shutil.copytree(built["half"], tmp_path / "spoiled")
    (spoiled / "layers.json").write_text("{}")
    assert "the layer table cannot be read" in str(failed("inspect", str(spoiled)))
    (spoiled / "engine.json").write_text("{")
    assert "its facts cannot be read" in str(failed("inspect", str(spoiled)))


def test_verify_names_every_file_that_is_not_as_built(built: dict[str, Path], tmp_path: Path) -> None:
    assert "each as its manifest says" in run("verify", str(built["half"]))
    folder = shutil.copytree(built["half"], tmp_path / "copy")
    plan = bytearray((folder / "engine-sm86-sm89.plan").read_bytes())
    plan[1000] ^= 1
    (folder / "engine-sm86-sm89.plan").write_bytes(plan)
    (folder / "tokenizer.json").unlink()
    (folder / "stray.txt").write_text("")
    found = check_files(folder)
    assert (found.changed, found.missing, found.foreign) == (
        ("engine-sm86-sm89.plan",),
        ("tokenizer.json",),
        ("stray.txt",),
    )
    error = failed("verify", str(folder))
    assert type(error) is VerificationError
    told = ("changed: engine-sm86-sm89.plan", "missing: tokenizer.json", "not of this build: stray.txt")
    assert error.what == "3 files are not as they were built\n  " + "\n  ".join(told)
    assert error.exit_code == 5
    assert "holds no manifest.json" in str(failed("verify", str(tmp_path)))


@pytest.mark.slow
def test_an_engine_built_again_has_the_same_bytes(built: dict[str, Path], tmp_path: Path) -> None:
    shown = run("verify", str(built["half"]), "--rebuild", "--cache", str(built["cache"]))
    assert "engine-sm86-sm89.plan" in shown
    assert "bytes, identical" in shown
    assert shown.endswith("built again: the same bytes\n")
    folder = shutil.copytree(built["half"], tmp_path / "copy")
    plan = bytearray((folder / "engine-sm86-sm89.plan").read_bytes())
    plan[1000] ^= 1
    (folder / "engine-sm86-sm89.plan").write_bytes(plan)
    made = rebuild(folder, store=Store(built["cache"]), hooks=Silent())
    assert not made.ok
    assert made.files[0].line().endswith("1 bytes differ, the first at 1,000")
    assert made.because == ()


def test_what_was_never_built_cannot_be_built_again(built: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(built["half"], tmp_path / "copy")
    engine = Engine(folder)
    engine.write_facts(engine.facts.model_copy(update={"finished": False}))
    with pytest.raises(RecipeError, match="the engine is not built yet"):
        rebuild(folder, store=Store(built["cache"]), hooks=Silent())
    (folder / "engine.json").unlink()
    with pytest.raises(RecipeError, match="there is no engine to build again"):
        rebuild(folder, store=Store(built["cache"]), hooks=Silent())


def test_a_folder_of_an_older_build_has_no_table(tmp_path: Path) -> None:
    assert read_layers(tmp_path) is None


# ---- refused with what differs


OLDER = (
    "it was built by tensorrt_rtx 1.7.1.116, and tensorrt_rtx 1.6.1.120 is installed here: only the version that built an engine "
    "runs it"
)


@pytest.mark.parametrize(
    ("card", "installed", "threads", "changes", "says"),
    [
        ("rtx4090", "1.7.1.116", 0, {}, ""),
        ("l40s", "1.7.1.116", 0, {}, ""),
        ("rtx5090", "1.7.1.116", 0, {}, "it was built for rtx4090 (sm89), and this GPU is GeForce RTX 5090 (sm120)"),
        ("rtx4090", "1.6.1.120", 0, {}, OLDER),
        ("rtx4090", "not installed", 0, {}, "it was built by tensorrt_rtx 1.7.1.116, and tensorrt_rtx is not installed here"),
        ("", "", 8, {"threads": 2, "backend": "onnxruntime"}, "its session options were tuned for 2 threads, and this host has 8"),
        ("", "", 2, {"threads": 2, "backend": "onnxruntime"}, ""),
        ("", "", 8, {"backend": "onnxruntime"}, ""),
    ],
)  # fmt: skip
def test_an_engine_of_another_machine_is_refused_with_what_differs(
    built: dict[str, Path], card: str, installed: str, threads: int, changes: dict[str, object], says: str
) -> None:
    known = {"targets": ("rtx4090",), "compute": ("sm89",), "tool": "tensorrt_rtx 1.7.1.116", **changes}
    facts: EngineFacts = Engine(built["half"]).facts.model_copy(update=known)
    here = target_named(card) if card else None
    assert other_machine(facts, here, installed=installed, threads=threads) == says


@pytest.fixture(scope="module")
def decoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Graph]:
    folder = tmp_path_factory.mktemp("decoders")
    portable = write_tiny(Tiny(dtype="float32"), folder / "portable")
    return {"portable": portable, "tensorrt": lower(portable, folder / "tensorrt")}


@pytest.mark.parametrize("dialect", ["portable", "tensorrt"])
@pytest.mark.parametrize(
    ("act", "says"),
    [
        (lambda one: one.prefill(np.zeros((1, 33), np.int64)), "a sequence of 33 tokens exceeds this session's capacity of 32"),
        (lambda one: one.logits(np.zeros((1, 33), np.int64)), "a sequence of 33 tokens exceeds the graph's context of 32"),
        (lambda one: one.prefill(np.zeros((1, 0), np.int64)), "an empty prompt: a sequence needs at least one token"),
        (lambda one: one.logits(np.zeros((2, 0), np.int64)), "an empty prompt: a sequence needs at least one token"),
        (lambda one: one.prefill(np.zeros((2, 4), np.int64), np.array([4, 0])), "lengths [4, 0] do not fit ids of shape [2, 4]"),
    ],
    ids=["long-prefill", "long-logits", "empty-prefill", "empty-logits", "empty-sequence"],
)  # fmt: skip
def test_a_sequence_that_does_not_fit_is_one_clear_error(
    decoders: dict[str, Graph], dialect: str, act: Callable[[OrtDecoder], object], says: str
) -> None:
    with OrtDecoder(decoders[dialect]) as session, pytest.raises(RecipeError) as caught:
        act(session)
    assert str(caught.value) == says


def test_an_empty_prompt_in_pytorch_is_the_same_error() -> None:
    from openclaw_opt.backends.torch_sessions import TorchDecoder

    with pytest.raises(RecipeError, match="an empty prompt: a sequence needs at least one token"):
        TorchDecoder(lambda ids: ids).prefill(np.zeros((1, 0), np.int64))


# ---- tables


def test_formats_and_the_legality_table_agree() -> None:
    for row in FORMATS.values():
        if "tensorrt" in row.backends:
            found = fact("linear", row.name, row.compute, row.block)
            assert found is not None, row.name
            assert (found.verdict, found.since) == ("runs", row.compute), row.name
    assert fact("linear", "fp8", (8, 6)) is None
    assert fact("attention", "float16", (8, 9), 12).verdict == "slower"  # type: ignore[union-attr]
    traps = {(row.op, row.dtype) for row in TABLE if row.verdict == "not realised"}
    assert traps == {("linear", "nvfp4_weight_only"), ("linear", "mxfp8"), ("attention", "fp8")}
    assert all(row.why and row.tried for row in TABLE)


def test_advisories_hold_by_version_capability_and_traits() -> None:
    assert len({row.id for row in ADVISORIES}) == len(ADVISORIES)
    assert all(row.what and row.source and row.module in ("tensorrt", "tensorrt_rtx") for row in ADVISORIES)

    def ids(version: str, *traits: str, target: str = "rtx4090") -> set[str]:
        return {row.id for row in advisories([target_named(target)], version, traits)}

    assert ids("1.7.1.116", "decoder") == set()
    assert ids("1.7.1.116", "softcap", "fp8", "attention") == {"rtx-softcap-kernels", "rtx-fp8-attention"}
    assert ids("1.4.0.76", "quantized") == {"rtx-1.4-no-weights", "rtx-1.4-gpu"}
    assert ids("11.2.0", target="h100-sxm") == {"trt-fusion-nan", "trt-not-repeatable", "trt-oom-disguised"}
    assert "trt-fusion-nan" not in ids("11.3.1", target="h100-sxm")
    assert "trt-fusion-nan" in ids("", target="h100-sxm"), "a version that is not known matches every range"
    thor = [replace(target_named("h100-sxm"), compute=(11, 0))]
    assert "trt-fc-horizontal" in {row.id for row in advisories(thor, "10.13.2", ["decoder"])}
    assert "trt-fc-horizontal" not in ids("10.13.2", "decoder", target="h100-sxm")


def test_check_prints_and_a_build_records_advisories(tmp_path: Path) -> None:
    from openclaw_opt.backends.tensorrt import TensorrtOptions
    from openclaw_opt.backends.tensorrt import build as compile_graph
    from openclaw_opt.backends.trt_profiles import Profiles

    graph = lower(write_tiny(Tiny(layers=1, windows=(None,), softcap=3.0), tmp_path / "portable"), tmp_path / "lowered")
    options = TensorrtOptions(profiles=Profiles(prompt=(1, 8, 16)))
    facts = compile_graph(graph, target_named("rtx4090"), options, tmp_path / "engine", lambda *_: None).facts
    assert facts.notes[-1].startswith("advisory rtx-softcap-kernels: soft-capped attention has no fused kernel")
    model = tiny.write_checkpoint(tmp_path / "checkpoint", "gemma2")
    file = tmp_path / "gemma2.yaml"
    file.write_text(RECIPE.format(model=model, target="rtx4090", passes=""))
    assert "advisory rtx-softcap-kernels: " in run("check", "--recipe", str(file))
