"""Engines that the real builder compiles on this CPU, and builds that go wrong in every way a build can."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import onnx
import psutil
import pytest

from openclaw_opt.artifacts import Engine, Graph, LayerFormat
from openclaw_opt.backends.tensorrt import TensorrtOptions, build, cannot_build, unfinished
from openclaw_opt.backends.trt_child import Progress
from openclaw_opt.backends.trt_errors import crashed
from openclaw_opt.backends.trt_process import address_limit
from openclaw_opt.backends.trt_profiles import Profiles, shapes_of
from openclaw_opt.errors import MachineError, RecipeError, VerificationError
from openclaw_opt.graph.to_tensorrt import lower
from openclaw_opt.graph.trt_words import parser_model
from openclaw_opt.targets import target_named
from tests.tiny_decoder import Tiny, write_fp8_attention, write_tiny

OPTIONS = TensorrtOptions(profiles=Profiles(batch=(1, 2, 4), prompt=(1, 8, 16)))
ONE_LAYER = Tiny(layers=1, windows=(None,))
LEFT_BY_A_FAILED_BUILD = {"build.log"}


def quiet(phase: str, fraction: float) -> None:
    """Progress nobody looks at."""


def lowered(tiny: Tiny, folder: Path) -> Graph:
    return lower(write_tiny(tiny, folder / "portable"), folder / "lowered")


@pytest.fixture(scope="module")
def one_layer(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return lowered(ONE_LAYER, tmp_path_factory.mktemp("one"))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def children() -> list[psutil.Process]:
    """Builder processes of this one that still run."""
    return [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "target", "realised", "per_layer"),
    [
        ("", "rtx4090", "", 9),
        ("int8", "rtx4090", "Int8 GEMM", 10),
        ("fp8", "l40s", "FP8 GEMM", 10),
        ("int4", "rtx3060", "Int4 weights", 10),
    ],
)
def test_a_decoder_builds_and_runs_in_what_was_asked(
    kind: str, target: str, realised: str, per_layer: int, tmp_path: Path
) -> None:
    seen: list[tuple[str, float]] = []
    row = target_named(target)
    engine = build(
        lowered(Tiny(format=kind), tmp_path), row, OPTIONS, tmp_path / "engine", lambda *event: seen.append(event)
    )
    facts = engine.facts
    assert names(engine.folder) == {f"engine-{row.sm}.plan", "build.log", "layers.json", "engine.json"}
    assert [kernels.profile for kernels in facts.kernels] == ["prefill", "decode"]
    assert facts.kernels[1].per_layer is not None
    assert facts.kernels[1].per_layer <= per_layer
    assert {(one.ok, one.realised) for one in facts.receipt} == ({(True, realised)} if kind else set())
    assert len(facts.receipt) == (2 * 8 if kind else 0)
    assert facts.tool.startswith("tensorrt_rtx 1.")
    assert (facts.build_peak_bytes or 0) > 10**8
    assert [fraction for _, fraction in seen] == sorted(fraction for _, fraction in seen)
    assert {"Compiling profile prefill", "Compiling profile decode"} <= {phase for phase, _ in seen}


def test_nvfp4_is_built_from_a_graph_of_standard_operators(tmp_path: Path) -> None:
    graph = lowered(Tiny(format="nvfp4", layers=1, windows=(None,)), tmp_path)
    model = onnx.load(str(graph.onnx), load_external_data=False)
    assert {node.domain for node in model.graph.node} == {""}
    words = [node.op_type for node in onnx.load_from_string(parser_model(str(graph.onnx))).graph.node]
    assert words.count("TRT_FP4DynamicQuantize") == 4
    assert "ReduceMax" not in words
    facts = build(graph, target_named("rtx5090"), OPTIONS, tmp_path / "engine", quiet).facts
    assert {(row.ok, row.realised) for row in facts.receipt} == {(True, "FP4E2M1 GEMM")}


@pytest.mark.slow  # torch and transformers take longer to import than the engines to build
@pytest.mark.parametrize("family", ["gemma2", "bert", "vit", "resnet"])
def test_every_task_goes_from_a_checkpoint_to_an_engine(family: str, tmp_path: Path) -> None:
    from openclaw_opt.backends.ort_sessions import open_graph
    from openclaw_opt.models.export import export_graph
    from openclaw_opt.models.load import load_model
    from tests.tiny import open_tiny, write_checkpoint

    model, *_ = load_model(open_tiny(write_checkpoint(tmp_path / "checkpoint", family)), tmp_path / "model")
    graph = lower(export_graph(model, tmp_path / "portable", dtype="float16"), tmp_path / "lowered")
    with open_graph(graph):
        facts = build(graph, target_named("rtx3060"), OPTIONS, tmp_path / "engine", quiet).facts
    profiles = ["prefill", "decode"] if facts.task == "decoder" else ["main"]
    assert [row.profile for row in facts.kernels] == profiles
    assert all(row.kernels for row in facts.kernels)
    assert ("soft-capped" in " ".join(facts.notes)) == (family == "gemma2")


@pytest.mark.slow
def test_two_builds_give_the_same_bytes(one_layer: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever they run: in folders with longer names, with more in the environment."""
    hashes = set()
    for name in ("one", "two", "a-folder-with-a-much-longer-name-" * 6):
        monkeypatch.setenv("SOMETHING_ELSE", name * 20)
        engine = build(one_layer, target_named("rtx4090"), OPTIONS, tmp_path / name, quiet)
        hashes.add(hashlib.sha256((engine.folder / "engine-sm89.plan").read_bytes()).hexdigest())
    assert len(hashes) == 1


@pytest.mark.slow
def test_bytes_depend_on_no_path(one_layer: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where graph and engine lie, and how large the environment is, decides no byte."""
    elsewhere = Graph(Path(shutil.copytree(one_layer.folder, tmp_path / ("a-graph-with-a-longer-name" * 4))))
    here = build(one_layer, target_named("rtx4090"), OPTIONS, tmp_path / "e", quiet)
    monkeypatch.setenv("OPENCLAW_TEST_BALLAST", "x" * 5000)
    there = build(elsewhere, target_named("rtx4090"), OPTIONS, tmp_path / ("engine" * 20), quiet)
    assert (here.folder / "engine-sm89.plan").read_bytes() == (there.folder / "engine-sm89.plan").read_bytes()


@pytest.mark.slow
def test_one_engine_for_several_compute_capabilities_or_one_each(one_layer: Graph, tmp_path: Path) -> None:
    first, *others = (target_named(name) for name in ("rtx4090", "rtx3060", "l40s"))
    alone = build(one_layer, first, OPTIONS, tmp_path / "alone", quiet)
    one = build(one_layer, first, OPTIONS, tmp_path / "one", quiet, others)
    each = build(one_layer, first, OPTIONS.model_copy(update={"engines": "each"}), tmp_path / "each", quiet, others)
    assert one.facts.files == ("engine-sm86-sm89.plan",)
    assert (one.facts.targets, one.facts.compute) == (("rtx4090", "rtx3060", "l40s"), ("sm86", "sm89"))
    more = (one.folder / one.facts.files[0]).stat().st_size - (alone.folder / "engine-sm89.plan").stat().st_size
    assert 0 < more < 1024, "weights are in the engine once"
    assert (
        "built for rtx4090, rtx3060, l40s (compute capabilities sm86, sm89); bounds and prices are of rtx4090"
        in one.facts.notes
    )
    assert each.facts.files == ("engine-sm86.plan", "engine-sm89.plan")
    assert [row.profile for row in each.facts.kernels] == ["prefill sm86", "decode sm86", "prefill sm89", "decode sm89"]
    assert (each.folder / "engine-sm89.plan").read_bytes() == (alone.folder / "engine-sm89.plan").read_bytes()
    assert {"build-sm86.log", "build-sm89.log"} <= names(each.folder)


def test_a_builder_without_memory_says_so(one_layer: Graph, tmp_path: Path) -> None:
    def starve() -> None:
        for child in children():
            if child.rlimit(psutil.RLIMIT_AS) == (-1, -1):  # a limit is never raised again
                used = child.memory_info().vms
                child.rlimit(psutil.RLIMIT_AS, (used, used))

    with pytest.raises(MachineError, match=r"out of memory"):
        build(one_layer, target_named("rtx4090"), OPTIONS, tmp_path, when_compiling(starve))
    assert names(tmp_path) == LEFT_BY_A_FAILED_BUILD
    assert children() == []


def test_fp8_around_attention_fails_the_build(tmp_path: Path) -> None:
    with pytest.raises(
        VerificationError, match=r"fp8 was asked for and is not realised in 1 layers: attention; .* reads \['Half'"
    ):
        build(write_fp8_attention(tmp_path / "graph"), target_named("l40s"), OPTIONS, tmp_path / "engine", quiet)
    assert names(tmp_path / "engine") == LEFT_BY_A_FAILED_BUILD


@pytest.mark.slow
def test_the_memory_of_a_build_is_its_own_and_not_its_parents(one_layer: Graph, tmp_path: Path) -> None:
    ballast = bytearray(b"\1") * 10**9
    facts = build(one_layer, target_named("rtx4090"), OPTIONS, tmp_path, quiet).facts
    assert 10**8 < (facts.build_peak_bytes or 0) < len(ballast)


def test_float32_attention_is_decomposed_and_said(tmp_path: Path) -> None:
    graph = lowered(Tiny(layers=1, windows=(None,), dtype="float32"), tmp_path)
    facts = build(graph, target_named("rtx4090"), OPTIONS, tmp_path / "engine", quiet).facts
    assert "attention in float32 has no fused kernel" in facts.notes[0]


def test_fp8_on_ampere_says_so_and_leaves_no_engine(tmp_path: Path) -> None:
    graph = lowered(Tiny(format="fp8", layers=1, windows=(None,)), tmp_path)
    with pytest.raises(RecipeError, match="sm86 has no kernels for fp8_e4m3"):
        build(graph, target_named("rtx3060"), OPTIONS, tmp_path / "engine", quiet)
    assert names(tmp_path / "engine") == LEFT_BY_A_FAILED_BUILD


def test_a_precision_that_is_not_realised_fails_unless_allowed(tmp_path: Path) -> None:
    graph = lowered(ONE_LAYER, tmp_path)
    graph.write_facts(graph.facts.model_copy(update={"quantized": (LayerFormat(name="head", format="int8"),)}))
    with pytest.raises(
        VerificationError, match=r"int8 was asked for and is not realised in 1 layers: head; .* computes in Half"
    ):
        build(graph, target_named("rtx4090"), OPTIONS, tmp_path / "engine", quiet)
    assert names(tmp_path / "engine") == LEFT_BY_A_FAILED_BUILD
    allowed = OPTIONS.model_copy(update={"require_realised": False})
    facts = build(graph, target_named("rtx4090"), allowed, tmp_path / "engine", quiet).facts
    assert [(row.layer, row.ok) for row in facts.receipt] == [("head", False)] * 2


def test_a_parse_error_names_node_operator_and_reason(tmp_path: Path) -> None:
    graph = lowered(ONE_LAYER, tmp_path)
    model = onnx.load(str(graph.onnx), load_external_data=False)
    node = next(node for node in model.graph.node if node.name == "layers.0.sigmoid")
    node.op_type = "Bernoulli"
    onnx.save(model, str(graph.onnx))
    with pytest.raises(VerificationError) as caught:
        build(graph, target_named("rtx4090"), OPTIONS, tmp_path / "engine", quiet)
    assert caught.value.exit_code == 5
    assert str(caught.value) == (
        f"{graph.onnx}: TensorRT's parser refuses node layers.0.sigmoid (Bernoulli): unsupported node (in checkBernoulli)\n"
        "  fix: a newer TensorRT may take it; else this model is not for this target: report it with the recipe and the model"
    )


def when_compiling(act: Callable[[], None]) -> Callable[[str, float], None]:
    def tell(phase: str, fraction: float) -> None:
        if phase == "Compiling profile prefill":
            act()

    return tell


def kill_child() -> None:
    for child in children():
        child.kill()


def interrupt() -> None:
    raise KeyboardInterrupt


def test_a_killed_builder_is_one_clear_error(one_layer: Graph, tmp_path: Path) -> None:
    with pytest.raises(MachineError) as caught:
        build(one_layer, target_named("rtx4090"), OPTIONS, tmp_path, when_compiling(kill_child))
    assert caught.value.exit_code == 3
    first, *words, fix = str(caught.value).splitlines()
    assert first == (
        f"{tmp_path / 'build.log'}: the TensorRT builder process was killed by SIGKILL; out of memory is the usual reason; "
        "its last words:"
    )
    assert 0 < len(words) <= 5
    assert fix == "  fix: run the build again; the log has the details"
    assert names(tmp_path) == LEFT_BY_A_FAILED_BUILD


def test_a_full_disk_is_called_that(one_layer: Graph, tmp_path: Path) -> None:
    os.symlink("/dev/full", tmp_path / "engine-sm89.plan.partial")
    with pytest.raises(MachineError, match="the disk is full"):
        build(one_layer, target_named("rtx4090"), OPTIONS, tmp_path, quiet)
    assert names(tmp_path) == LEFT_BY_A_FAILED_BUILD


def test_ctrl_c_ends_the_builder_too(one_layer: Graph, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        build(one_layer, target_named("rtx4090"), OPTIONS, tmp_path, when_compiling(interrupt))
    assert names(tmp_path) == LEFT_BY_A_FAILED_BUILD
    assert children() == []


def test_the_time_limit_ends_the_builder(one_layer: Graph, tmp_path: Path) -> None:
    limited = OPTIONS.model_copy(update={"timeout_s": 0.3})
    with pytest.raises(MachineError, match=r"stopped at its time limit of 0\.3 s"):
        build(one_layer, target_named("rtx4090"), limited, tmp_path, quiet)
    assert names(tmp_path) == LEFT_BY_A_FAILED_BUILD
    assert children() == []


ORPHAN = """
import sys, os, signal
from pathlib import Path
from openclaw_opt.artifacts import Graph
from openclaw_opt.backends.tensorrt import TensorrtOptions, build
from openclaw_opt.targets import target_named
from openclaw_opt.backends.trt_profiles import Profiles
import psutil
def die(phase, fraction):
    print(psutil.Process().children()[0].pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
build(Graph(Path(sys.argv[1])), target_named("rtx4090"), TensorrtOptions(profiles=Profiles(prompt=(1, 8, 16))), Path(sys.argv[2]), die)
"""


def test_a_builder_whose_parent_was_killed_ends_itself(one_layer: Graph, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", ORPHAN, str(one_layer.folder), str(tmp_path)]
    parent = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert parent.returncode == -signal.SIGKILL, parent.stderr
    orphan = int(parent.stdout)
    deadline = time.monotonic() + 10
    while psutil.pid_exists(orphan) and time.monotonic() < deadline:
        if psutil.Process(orphan).status() == psutil.STATUS_ZOMBIE:
            break
        time.sleep(0.05)
    assert not psutil.pid_exists(orphan) or psutil.Process(orphan).status() == psutil.STATUS_ZOMBIE
    assert not (tmp_path / "engine-sm89.plan").exists()


def test_what_cannot_be_built_here_keeps_the_graph_and_the_command(one_layer: Graph, tmp_path: Path) -> None:
    target = target_named("h100-sxm")
    why = cannot_build(target)
    assert "tensorrt" in why
    with pytest.raises(MachineError, match="tensorrt"):
        build(one_layer, target, OPTIONS, tmp_path / "refused", quiet)
    engine = unfinished(one_layer, target, tmp_path / "engine", why)
    facts = Engine(engine.folder).facts
    assert (facts.finished, facts.unfinished_why) == (False, why)
    assert facts.finish_command == f"openclaw-opt build {engine.folder} --resume"
    assert Graph(engine.folder / "graph").facts == one_layer.facts
    onnx.checker.check_model(str(Graph(engine.folder / "graph").onnx))


def test_a_prompt_longer_than_the_cache_is_refused(one_layer: Graph) -> None:
    with pytest.raises(RecipeError, match="64 tokens, does not fit into the context of 32"):
        shapes_of(Profiles(prompt=(1, 8, 64)), one_layer.facts, {})


def test_progress_never_falls_and_names_the_profile() -> None:
    progress = Progress(["prefill", "decode"])
    progress.start("Cloning network graph", 10)
    told = [progress.now()]
    progress.start(Progress.COMPILE_PHASE, 10)
    for step in range(10):
        told.append(progress.now())
        progress.step(Progress.COMPILE_PHASE, step)
    told.append(progress.now())
    fractions = [fraction for _, fraction in told]
    assert fractions == sorted(fractions)
    assert told[1][0] == "Compiling profile prefill"
    assert told[6][0] == "Compiling profile decode"
    assert told[-1] == ("Writing the engine", 0.9)


def test_a_crash_under_a_limit_names_the_limit(tmp_path: Path) -> None:
    limited = crashed(-signal.SIGSEGV, ["last words"], tmp_path / "log", 3 * 2**29)
    assert "was killed by SIGSEGV; its address space is limited to 1.50 GiB (ulimit -v), and out of memory is" in str(
        limited
    )
    assert "memory" not in str(crashed(-signal.SIGSEGV, ["last words"], tmp_path / "log")).split("last words")[0]
    assert limited.exit_code == 3


def test_the_limit_of_a_dead_child_can_still_be_read() -> None:
    import resource

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))

    for before, expected in ((None, None), (limit, 2**31)):
        child = subprocess.Popen([sys.executable, "-c", ""], preexec_fn=before)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert address_limit(child.pid) == expected
        child.wait()
