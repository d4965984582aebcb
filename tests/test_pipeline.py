"""Whole builds of a tiny checkpoint: what is cached, what is published, what a budget does, what survives a kill."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

from openclaw_opt import interrupts
from openclaw_opt.artifacts import Model
from openclaw_opt.cli.progress import Silent
from openclaw_opt.comparison.spending import spender
from openclaw_opt.errors import MachineError, OptError, RecipeError, VerificationError
from openclaw_opt.interrupts import Interrupted
from openclaw_opt.parts import part_named
from openclaw_opt.passes import Done, Pass, Work
from openclaw_opt.passes.quantize import Quantize
from openclaw_opt.pipeline import build
from openclaw_opt.publish import locked, prepare, read_manifest
from openclaw_opt.recipe import load_recipe
from openclaw_opt.records import PassRecord, Report
from openclaw_opt.report import read_report
from openclaw_opt.store import Store, sha256_file

Write = Callable[..., Path]


class Recorder(Silent):
    """Keeps what the pipeline says."""

    def __init__(self) -> None:
        self.records: list[PassRecord] = []

    def finished(self, record: PassRecord) -> None:
        self.records.append(record)

    def redone(self) -> dict[str, str]:
        return {record.word: record.redone_why for record in self.records if not record.cached}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for the module: later tests go on from passes that earlier ones made."""
    return tmp_path_factory.mktemp("cache")


def run(file: Path, cache: Path, output: Path, *settings: str, until: str | None = None) -> tuple[Report, Recorder]:
    hooks = Recorder()
    made = load_recipe(file, settings=settings)
    return build(made, store=Store(cache), output=output, until=until, hooks=hooks), hooks


def test_a_build_and_what_it_leaves(write_recipe: Write, cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report, _ = run(write_recipe(), cache, out)
    assert report.verdict == "within budget"
    assert report.exit_code == 0
    assert [record.word for record in report.passes] == ["load", "quantize", "export", "fuse", "build"]
    assert all(
        record.verification is not None and record.verification.ok for record in report.passes if record.kind == "exact"
    )
    assert all(row.ok for row in report.receipt)
    assert {row.asked for row in report.receipt} == {"int8"}
    wanted = {
        "model.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json", "config.json", "recipe.resolved.yaml",
        "manifest.json", "report.json", "report.md", "report.html", "junit.xml", "engine.json",
    }  # fmt: skip
    assert wanted <= {path.name for path in out.iterdir()}
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["files"] == {name: sha256_file(out / name) for name in manifest["files"]}
    assert manifest["inputs"] == {"model.safetensors": sha256_file(Path(report.model) / "model.safetensors")}
    assert read_report(out).model_dump(mode="json") == report.model_dump(mode="json")
    assert {path.name for path in tmp_path.iterdir() if ".part" in path.name} == set()


def test_a_second_build_does_no_work(write_recipe: Write, cache: Path, tmp_path: Path) -> None:
    file = write_recipe()
    run(file, cache, tmp_path / "out")
    before = {
        path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file() and path.name != "hashes.json"
    }
    report, hooks = run(file, cache, tmp_path / "out")
    assert hooks.redone() == {}
    assert all(record.cached for record in report.passes)
    assert before == {
        path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file() and path.name != "hashes.json"
    }


@pytest.mark.slow
def test_a_changed_pass_redoes_nothing_before_it_and_says_why(write_recipe: Write, cache: Path, tmp_path: Path) -> None:
    file = write_recipe()
    run(file, cache, tmp_path / "out")
    _, hooks = run(file, cache, tmp_path / "out", "passes.quantize.format=int8_weight_only")
    redone = hooks.redone()
    assert "load" not in redone
    assert redone["quantize"] == "options.format: int8 → int8_weight_only"
    assert redone["export"] == "its input changed: `quantize` was redone"


@pytest.mark.slow
def test_a_damaged_cache_entry_is_made_again(write_recipe: Write, cache: Path, tmp_path: Path) -> None:
    file = write_recipe()
    run(file, cache, tmp_path / "out")
    for weights in cache.glob("*/model.onnx.data"):
        os.truncate(weights, weights.stat().st_size // 2)
    report, hooks = run(file, cache, tmp_path / "out")
    assert {"export", "fuse", "build"} <= hooks.redone().keys()
    assert report.verdict == "within budget"


def test_a_missed_budget_ends_with_4_and_names_the_pass(write_recipe: Write, cache: Path, tmp_path: Path) -> None:
    report, _ = run(write_recipe((">= 0.5", ">= 1.5")), cache, tmp_path / "out")
    assert report.exit_code == 4
    assert report.verdict == "budget missed"
    assert "failure" in (tmp_path / "out" / "junit.xml").read_text()


def test_the_spender_is_the_pass_after_which_the_metric_fell_most(
    write_recipe: Write, cache: Path, tmp_path: Path
) -> None:
    report, _ = run(write_recipe(), cache, tmp_path / "out")
    row = next(m for m in report.passes[1].accuracy if m.name == "perplexity.recovery")
    steps = [
        record.model_copy(update={"accuracy": (row.model_copy(update={"value": value}),)})
        for record, value in zip(report.passes, (1.0, 0.99, 0.95, 0.949, 0.949), strict=True)
    ]
    assert spender("perplexity.recovery", steps) == "export"
    assert spender("perplexity.recovery", steps[:1]) == ""
    assert spender("size_mib", steps) == ""


def test_changed_evaluation_data_renews_the_waterfall(write_recipe: Write, cache: Path, tmp_path: Path) -> None:
    file = write_recipe()
    first, _ = run(file, cache, tmp_path / "out")
    second, hooks = run(file, cache, tmp_path / "out", "data.evaluation.samples=3")
    assert hooks.redone() == {}, "no pass depends on evaluation data"
    samples = [[m.samples for m in report.passes[1].accuracy if m.name == "perplexity"] for report in (first, second)]
    assert samples == [[8], [3]]


def test_a_build_killed_between_its_renames_is_put_back(write_recipe: Write, cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(write_recipe(), cache, out)
    out.rename(tmp_path / ".out.old")
    prepare(out)
    assert (out / "report.json").is_file()


@pytest.mark.slow
def test_a_budget_that_cannot_be_decided(write_recipe: Write, cache: Path, tmp_path: Path) -> None:
    file = write_recipe(
        (
            "metrics: [perplexity, size]",
            "metrics: [latency: {prompt: 8, new_tokens: 4, time_box_s: 0.2, compare: false}]",
        ),
        ('perplexity.recovery: ">= 0.5"', 'latency.ttft.p99_ms: "<= 5"'),
    )
    report, _ = run(file, cache, tmp_path / "out")
    assert report.verdict == "undecided"
    assert report.exit_code == 4
    assert report.budgets[0].got is None
    assert "p99 needs 459 samples" in report.budgets[0].why
    report, _ = run(file, cache, tmp_path / "out", "undecided=pass")
    assert report.exit_code == 0


def test_until(write_recipe: Write, cache: Path, tmp_path: Path) -> None:
    report, _ = run(write_recipe(), cache, tmp_path / "out", until="graph")
    assert report.exit_code == 0
    assert [record.word for record in report.passes][-1] == "fuse"
    assert (tmp_path / "out" / "model.onnx").is_file()
    with pytest.raises(RecipeError, match="unknown stage") as caught:
        run(write_recipe(), cache, tmp_path / "out", until="grpah")
    assert caught.value.fix == "did you mean 'graph'?"


@pytest.mark.slow
def test_a_target_this_machine_cannot_build_for(write_recipe: Write, cache: Path, tmp_path: Path) -> None:
    file, out = write_recipe(("target: host", "target: h100-sxm")), tmp_path / "out"
    report, _ = run(file, cache, out)
    assert report.exit_code == 3
    assert report.verdict == "not finished"
    assert report.finish_command == f"openclaw-opt build {out} --resume"
    assert (out / "graph" / "model.onnx").is_file()
    done = _cli("build", str(out), "--resume", "--cache", str(cache))
    assert done.returncode == 3
    assert "this machine cannot finish it either" in done.stderr
    report, _ = run(file, cache, tmp_path / "graph", until="graph")
    assert report.exit_code == 0


def test_resume_wants_an_unfinished_build(write_recipe: Write, cache: Path, tmp_path: Path) -> None:
    run(write_recipe(), cache, tmp_path / "out")
    done = _cli("build", str(tmp_path / "out"), "--resume", "--cache", str(cache))
    assert done.returncode == 2
    assert "there is nothing to finish in this folder" in done.stderr


def test_foreign_files_are_not_touched(write_recipe: Write, cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(write_recipe(), cache, out)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(RecipeError, match=r"holds files that no build of ours wrote: notes\.txt"):
        run(write_recipe(), cache, out)
    assert (out / "notes.txt").read_text() == "mine"


def test_an_output_that_is_a_file(write_recipe: Write, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(RecipeError, match="the output folder is a file"):
        run(write_recipe(), cache, tmp_path / "out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere; see test_an_output_below_a_file")
def test_an_output_that_cannot_be_written(write_recipe: Write, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(MachineError, match="cannot be written"):
        run(write_recipe(), cache, tmp_path / "locked" / "out")


def test_an_output_below_a_file(write_recipe: Write, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="the output folder cannot be written"):
        run(write_recipe(), cache, tmp_path / "file" / "out")


def test_a_cache_that_cannot_be_written(write_recipe: Write, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="the cache folder cannot be written"):
        run(write_recipe(), tmp_path / "file" / "cache", tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [("--model", "nowhere"), ("--baseline", "nowhere"), ("--set", "passes.quantize.format=int9"), ("--until", "grpah")],
)
def test_a_refused_build_leaves_nothing_behind(write_recipe: Write, tmp_path: Path, arguments: tuple[str, str]) -> None:
    """No empty `build/`, no lock file; the recipe's own folder is as it was."""
    recipe = write_recipe()
    before = sorted(tmp_path.rglob("*"))
    out = tmp_path / "a" / "b" / "out"
    done = _cli("build", "-r", str(recipe), "-o", str(out), "--cache", str(tmp_path / "cache"), *arguments)
    assert done.returncode == 2, done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_a_refused_build_leaves_what_others_wrote_beside_it(tmp_path: Path) -> None:
    made = tmp_path / "build" / "one"
    with locked(made):
        (tmp_path / "build" / "another").mkdir()
    assert sorted(path.name for path in (tmp_path / "build").iterdir()) == ["another"]
    with locked(made):
        made.mkdir()
    assert made.is_dir()


def test_two_builds_into_one_folder(write_recipe: Write, cache: Path, tmp_path: Path) -> None:
    with (
        locked((tmp_path / "out").absolute()),
        pytest.raises(MachineError, match="another build is writing this folder"),
    ):
        run(write_recipe(), cache, tmp_path / "out")


def test_a_pass_that_changes_nothing_fails(
    write_recipe: Write, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def idle(self: Quantize, source: Model, work: Work) -> Done[Model]:
        return Done(source, changed="", count=0)

    monkeypatch.setattr(Quantize, "run", idle)
    with pytest.raises(VerificationError, match="pass `quantize` changed nothing"):
        run(write_recipe(), cache, tmp_path / "out", "seed=11")
    assert not (tmp_path / "out").exists()


def test_an_exact_pass_that_changes_outputs_fails(
    write_recipe: Write, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from openclaw_opt.models import emit_decoder

    whole = emit_decoder.emit_norm

    def sabotaged(writer: object, x: object, name: str, norm: object) -> object:
        norm.eps = norm.eps + 0.1  # type: ignore[attr-defined]
        return whole(writer, x, name, norm)  # type: ignore[arg-type]

    monkeypatch.setattr(emit_decoder, "emit_norm", sabotaged)
    with pytest.raises(VerificationError, match="pass `export` is exact, but outputs differ by"):
        run(write_recipe(), cache, tmp_path / "out", "seed=12")


BAD_CHECKPOINTS = {
    "truncated": (
        lambda folder: os.truncate(folder / "model.safetensors", 100_000),
        RecipeError,
        r"tensor '.*' ends at byte",
    ),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), RecipeError, r"tokenizer\.json"),
    "no config": (lambda folder: (folder / "config.json").unlink(), RecipeError, r"config\.json"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), RecipeError, "safetensors"),
}


@pytest.mark.parametrize("name", BAD_CHECKPOINTS)
def test_bad_checkpoints(write_recipe: Write, cache: Path, tmp_path: Path, name: str) -> None:
    spoil, error, told = BAD_CHECKPOINTS[name]
    file = write_recipe(copy=True)
    spoil(tmp_path / "checkpoint")
    with pytest.raises(error, match=told):
        run(file, cache, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nan_weights_are_named(write_recipe: Write, cache: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    file = write_recipe(copy=True)
    weights = tmp_path / "checkpoint" / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(RecipeError, match=r"model\.layers\.1\.mlp\.up_proj\.weight' holds 1 NaN"):
        run(file, cache, tmp_path / "out")


def test_calibration_data_that_is_too_short(write_recipe: Write, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"9999"):
        run(write_recipe(("samples: 16, length: 64", "samples: 9999, length: 64")), cache, tmp_path / "out")


def test_calibration_data_that_is_empty(
    write_recipe: Write, cache: Path, tmp_path: Path, corpora: dict[str, Path]
) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    with pytest.raises(RecipeError, match="empty"):
        run(write_recipe((str(corpora["calibration"]), str(empty))), cache, tmp_path / "out")


@pytest.mark.slow
def test_the_log_of_a_builder_that_died_is_kept(
    write_recipe: Write, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil

    def kill_the_builder(self: Recorder, fraction: float, text: str) -> None:
        if text == "Compiling profile prefill":
            for child in psutil.Process().children():
                child.kill()

    monkeypatch.setattr(Recorder, "progress", kill_the_builder)
    file, out = write_recipe(("target: host", "target: rtx4090")), tmp_path / "out"
    with pytest.raises(MachineError, match="the TensorRT builder process was killed by SIGKILL") as caught:
        run(file, cache, out)
    assert Path(caught.value.where).stat().st_size > 0
    assert not out.exists()
    monkeypatch.undo()
    report, hooks = run(file, cache, out)
    assert report.exit_code == 0
    assert hooks.redone().keys() == {"build"}, "whole passes are kept"


# --- interrupted and killed -----------------------------------------------------------------------------------------


def _cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "openclaw_opt", *arguments], capture_output=True, text=True, timeout=300, check=False
    )


DIES = """
import os, signal, sys
from dataclasses import replace
from functools import wraps
import psutil
from openclaw_opt.parts import part_named
from openclaw_opt.passes import Pass

word, number, phase = sys.argv.pop(1), int(sys.argv.pop(1)), sys.argv.pop(1)
part = part_named("passes", word, Pass)
whole = part.run

def die():
    os.kill(os.getpid(), number)
    signal.pause()

def progress(fraction, text):
    if text.startswith(phase):
        print("children", *(child.pid for child in psutil.Process().children()), file=sys.stderr, flush=True)
        die()

@wraps(whole)
def run(self, source, work):
    whole(self, source, replace(work, progress=progress) if phase else work)
    print("work", *sorted(p.name for p in work.folder.iterdir()), file=sys.stderr, flush=True)
    die()

part.run = run
from openclaw_opt.cli import main
main()
"""
"""A build that gets a signal in a pass: when it says this, or when it has written its files and nobody has taken them over yet."""


def _killed_in(word: str, how: signal.Signals, file: Path, cache: Path, out: Path, *, phase: str = "") -> str:
    """What that build says on standard error; its own process has ended as it should."""
    command = [sys.executable, "-c", DIES, word, str(int(how)), phase, "build", "--recipe", str(file), "-o", str(out)]
    done = subprocess.run([*command, "--cache", str(cache)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == (130 if how is signal.SIGINT else -signal.SIGKILL), done.stderr
    if how is signal.SIGINT:
        assert "interrupted by SIGINT; whole passes are kept, run the same command to go on" in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists(), "nothing half-written"
    return done.stderr


PASSES = ["load", "prune", "quantize", "export", "fuse", "build"]


def _interrupted_in(word: str, file: Path, cache: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with Ctrl-C, in this process: importing torch each time is what takes long."""
    part: Any = part_named("passes", word, Pass)  # type: ignore[type-abstract]
    whole = part.run

    @wraps(whole)
    def cut_off(self: Any, source: Any, work: Work) -> Any:
        whole(self, source, work)
        signal.raise_signal(signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(part, "run", cut_off)
        patch.setattr(interrupts, "_caught", [])
        signal.signal(signal.SIGINT, interrupts._raise)
        try:
            with pytest.raises(Interrupted, match="SIGINT") as caught:
                run(file, cache, out)
        finally:
            signal.signal(signal.SIGINT, handler)
    assert caught.value.exit_code == 130
    assert not out.exists()


@pytest.mark.slow
def test_a_build_that_dies_in_each_of_its_passes_goes_on_and_gives_the_same_artifact(
    write_recipe: Write, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C, then kill -9, in one pass after another; each build takes up what was whole and redoes the pass that was cut off."""
    file, out, own = (
        write_recipe(("passes:\n", "passes:\n  - prune: {ffn: 0.34}\n")),
        tmp_path / "out",
        tmp_path / "cache",
    )
    for index, word in enumerate(PASSES):
        _interrupted_in(word, file, own, out, monkeypatch)
        said = _killed_in(word, signal.SIGKILL, file, own, out)
        lines = [line for line in said.splitlines() if line.split(" ")[0] in PASSES]
        assert [line.split(" ")[0] for line in lines] == PASSES[:index]
        assert all(line.endswith("(cached)") for line in lines), "whole since Ctrl-C"
        assert re.search(r"^work .*(model|engine|graph)\.json", said, re.MULTILINE), "the pass had written its files"
    report, hooks = run(file, own, out)
    assert list(hooks.redone()) == ["build"]
    assert report.verdict == "within budget"
    assert not list(own.glob(".work-*")), "what the killed builds were making is swept away"
    run(file, cache, tmp_path / "undisturbed")
    for name in ("model.onnx", "model.onnx.data", "genai_config.json"):
        assert sha256_file(out / name) == sha256_file(tmp_path / "undisturbed" / name), name


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill"])
def test_a_build_that_dies_while_it_trains_goes_on_from_the_last_checkpoint(
    write_recipe: Write, tmp_path: Path, how: signal.Signals
) -> None:
    passes = "passes:\n  - prune: {ffn: 0.34}\n  - distill: {steps: 12, checkpoint_every: 4, every: 4, batch_size: 2}\n"
    file = write_recipe(("passes:\n", passes), ("samples: 16, length: 64", "samples: 32, length: 32"))
    whole, _ = run(file, tmp_path / "whole-cache", tmp_path / "whole")
    _killed_in("distill", how, file, tmp_path / "cache", tmp_path / "out", phase="step 10 ")
    report, hooks = run(file, tmp_path / "cache", tmp_path / "out")
    assert next(iter(hooks.redone())) == "distill"
    told = [next(one for one in made.passes if one.word == "distill").details for made in (whole, report)]
    assert [one["resumed_at"] for one in told] == [[], [8]]
    assert told[0]["curve"] == told[1]["curve"]
    for name in ("model.onnx", "model.onnx.data"):
        assert sha256_file(tmp_path / "out" / name) == sha256_file(tmp_path / "whole" / name), name


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill"])
def test_a_tensorrt_build_that_dies_while_it_compiles_goes_on(
    write_recipe: Write, cache: Path, tmp_path: Path, how: signal.Signals
) -> None:
    import psutil

    file, out = write_recipe(("target: host", "target: rtx4090")), tmp_path / "out"
    run(file, cache, tmp_path / "undisturbed")
    own = Path(shutil.copytree(cache, tmp_path / "cache"))
    step = next(p for p in read_manifest(tmp_path / "undisturbed").data["passes"] if p["pass"] == "build")  # type: ignore[union-attr]
    Store(own).drop(step["key"])
    said = _killed_in("build", how, file, own, out, phase="Compiling profile decode")
    builder = int(next(line for line in said.splitlines() if line.startswith("children ")).split()[1])
    deadline = time.monotonic() + 10
    while psutil.pid_exists(builder) and psutil.Process(builder).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the compiler outlived the build"
        time.sleep(0.05)
    _, hooks = run(file, own, out)
    assert list(hooks.redone()) == ["build"]
    assert sha256_file(out / "engine-sm89.plan") == sha256_file(tmp_path / "undisturbed" / "engine-sm89.plan")


def test_error_messages_on_the_command_line(write_recipe: Write, tmp_path: Path) -> None:
    file = write_recipe(("format: int8", "format: int9"))
    done = _cli("build", "--recipe", str(file))
    assert done.returncode == RecipeError.exit_code
    assert done.stderr == f"error: {file}:8: format: 'int9' is not legal\n  fix: did you mean 'int8'?\n"
    done = _cli("build")
    assert done.returncode == 2
    assert "no recipe" in done.stderr
    done = _cli("bild")
    assert done.returncode == 2


def test_a_bug_keeps_its_traceback(write_recipe: Write, tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv[1:] = sys.argv[1:]\n"
        "from openclaw_opt import plan\n"
        "plan.check_recipe = lambda recipe: 1 / 0\n"
        "from openclaw_opt.cli import main; main()\n"
    )
    command = [sys.executable, "-c", code, "build", "--recipe", str(write_recipe()), "-o", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr


def test_every_error_has_an_exit_code() -> None:
    from openclaw_opt.errors import BudgetMissed

    codes = {cls.__name__: cls.exit_code for cls in (RecipeError, MachineError, BudgetMissed, VerificationError)}
    assert codes == {"RecipeError": 2, "MachineError": 3, "BudgetMissed": 4, "VerificationError": 5}
    assert OptError.exit_code == 1
