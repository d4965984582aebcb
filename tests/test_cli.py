"""The verbs, as a user types them: what they print, where, and how they exit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from openclaw_opt.backends import tensorrt
from openclaw_opt.cli import app
from openclaw_opt.cli.progress import Live, Plain, Silent, record_line
from openclaw_opt.errors import OptError, RecipeError
from openclaw_opt.formats import FORMATS
from openclaw_opt.history import add, entry_of
from openclaw_opt.parts import part_names
from openclaw_opt.pipeline import build
from openclaw_opt.publish import read_manifest
from openclaw_opt.recipe import load_recipe
from openclaw_opt.records import PassRecord, Report
from openclaw_opt.report import read_report
from openclaw_opt.report.gaps import gaps
from openclaw_opt.resume import finish
from openclaw_opt.store import Store, sha256_file
from openclaw_opt.targets import TARGETS
from tests import tiny

Write = Callable[..., Path]


def invoke(*arguments: str, code: int = 0) -> str:
    """Standard output of a verb that ends with that exit code."""
    done = CliRunner().invoke(app, list(arguments))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return done.stdout


def test_build_json_prints_the_report_and_nothing_else(write_recipe: Write, tmp_path: Path) -> None:
    arguments = ("--recipe", str(write_recipe()), "--cache", str(tmp_path / "c"), "-o", str(tmp_path / "out"))
    printed = invoke("build", *arguments, "--json")
    assert Report.model_validate(json.loads(printed)) == read_report(tmp_path / "out")
    assert "within budget" in invoke("report", str(tmp_path / "out"))
    assert json.loads(invoke("report", str(tmp_path / "out" / "report.json"), "--json")) == json.loads(printed)
    assert invoke("report", str(tmp_path / "out"), "--markdown").startswith("#")


@pytest.mark.slow
def test_a_stored_report_keeps_its_exit_code(write_recipe: Write, tmp_path: Path) -> None:
    file, out = write_recipe((">= 0.5", ">= 1.5")), tmp_path / "out"
    invoke("build", "--recipe", str(file), "--cache", str(tmp_path / "c"), "-o", str(out), code=4)
    invoke("report", str(out), code=4)


def test_check_and_its_resolved_recipe(write_recipe: Write, tmp_path: Path) -> None:
    file = write_recipe()
    assert "no mistakes found" in invoke("check", "--recipe", str(file))
    again = tmp_path / "again.yaml"
    again.write_text(invoke("check", "--recipe", str(file), "--resolved"))
    assert "no mistakes found" in invoke("check", "--recipe", str(again))


def test_list_names_every_word() -> None:
    printed = invoke("list")
    for word in (*part_names("passes"), *part_names("metrics"), *FORMATS, *TARGETS, "python-stdlib", "host"):
        assert word in printed, word
    with pytest.raises(RecipeError, match="nothing to list") as caught:
        invoke("list", "targest")
    assert caught.value.fix == "did you mean 'targets'?"


@pytest.mark.parametrize("target", ["host", "rtx3060", "l40s", "h100-sxm"])
def test_init_writes_a_recipe_that_checks(tiny_llama: Path, tmp_path: Path, target: str) -> None:
    file = tmp_path / "mine.yaml"
    assert f"check --recipe {file}" in invoke("init", str(tiny_llama), "--target", target, "-o", str(file))
    assert "no mistakes found" in invoke("check", "--recipe", str(file))
    with pytest.raises(RecipeError, match="the file exists"):
        invoke("init", str(tiny_llama), "-o", str(file))


@pytest.mark.parametrize("family", ["gpt2", "bert", "vit", "resnet"])
def test_init_for_every_task(tmp_path: Path, family: str) -> None:
    model, file = tiny.write_checkpoint(tmp_path / "model", family), tmp_path / "mine.yaml"
    invoke("init", str(model), "-o", str(file))
    assert "no mistakes found" in invoke("check", "--recipe", str(file))


def test_doctor_says_what_can_be_built() -> None:
    printed = invoke("doctor")
    assert all(target in printed for target in TARGETS)
    assert "rtx4090    can be built here (tensorrt_rtx)" in printed


def test_version() -> None:
    assert invoke("--version").startswith("openclaw-opt 0.")


def test_a_report_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OptError) as caught:
        invoke("report", str(tmp_path / "nothing"))
    assert caught.value.exit_code == 2


@pytest.mark.slow
def test_an_unfinished_build_is_finished_by_resume(
    write_recipe: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first machine cannot build, the second can: here the same one, told so."""
    timed = ("metrics: [perplexity, size]", "metrics: [perplexity, size, latency: {time_box_s: 0.2}]")
    file, out, store = (
        write_recipe(("target: host", "target: rtx4090"), timed),
        tmp_path / "out",
        Store(tmp_path / "cache"),
    )
    history = tmp_path / "history.jsonl"
    with monkeypatch.context() as first_machine:
        first_machine.setattr(tensorrt, "cannot_build", lambda target: "package tensorrt_rtx is not installed")
        add(history, [entry_of(build(load_recipe(file), store=store, output=out, hooks=Silent()))])
        report = build(load_recipe(file), store=store, output=out, history=history, hooks=Silent())
    assert report.exit_code == 3
    assert not report.finished
    before = read_manifest(out)
    finished = finish(out, store=Store(tmp_path / "other-cache"), hooks=Silent())
    assert finished.exit_code == 0
    assert finished.finished
    assert (out / "engine-sm89.plan").is_file()
    assert all(row.ok for row in finished.receipt)
    kept = [row for row in finished.measurements if row.name == "perplexity.recovery"]
    assert kept == [row for row in report.measurements if row.name == "perplexity.recovery"]
    assert finished.history == report.history
    assert finished.history is not None
    assert len(finished.history.builds) == 1
    assert [one.latency for one in finished.passes] == [one.latency for one in report.passes], (
        "counted of the same graphs"
    )
    assert {row.subject for one in finished.passes for row in one.latency} == {"bound"}
    why = next(gap.why for gap in gaps(finished) if "after each pass" in gap.what)
    assert "is not installed" not in why, "of this machine, not of the first"
    assert why.endswith("; bounds stand in their place")
    manifest = read_manifest(out)
    assert before is not None
    assert manifest is not None
    assert manifest.data["files"]["engine-sm89.plan"] == sha256_file(out / "engine-sm89.plan")
    with pytest.raises(RecipeError, match="there is nothing to finish"):
        finish(out, store=store, hooks=Silent())


def test_progress_says_what_happened(capsys: pytest.CaptureFixture[str]) -> None:
    record = PassRecord(
        index=1, word="quantize", options={}, kind="lossy", changed="2 layers to int8", seconds=3.21, peak_bytes=1, cached=False,
        redone_why="options.format: int4 → int8", size_bytes=1,
    )  # fmt: skip
    assert record_line(record) == "quantize  2 layers to int8 (3.2 s) [options.format: int4 → int8]"
    assert (
        record_line(record.model_copy(update={"cached": True, "redone_why": ""}))
        == "quantize  2 layers to int8 (cached)"
    )
    plain = Plain()
    plain.started("quantize", 1, 2)
    plain.progress(0.5, "half")
    plain.finished(record)
    assert capsys.readouterr().err == record_line(record) + "\n", "progress is silent unless it takes long"
    with Live() as live:
        live.started("quantize", 1, 2)
        live.progress(0.5, "half")
        live.finished(record)
    assert "2 layers to int8" in capsys.readouterr().err
