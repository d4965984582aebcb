"""Earlier builds in one build's report: what may stand beside it, what may not and why, and what is refused before work."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from openclaw_opt.cli import app
from openclaw_opt.comparison.comparable import provenance_of
from openclaw_opt.comparison.earlier import MOST, OLD_LINE, earlier_builds
from openclaw_opt.errors import OptError, RecipeError
from openclaw_opt.history import Entry, add, entry_of, read_history
from openclaw_opt.records import EarlierBuild, HistoryRecord, LeftOut, Report
from openclaw_opt.report import read_report
from openclaw_opt.report.earlier import earlier_table, sentences, trend
from openclaw_opt.report.html import html
from openclaw_opt.report.markdown import markdown
from openclaw_opt.report.scatter import tradeoff
from openclaw_opt.report.views import UNNAMED, points
from tests.test_cli import invoke
from tests.test_report import measurement, recovery, report

Write = Callable[..., Path]
TOKEN = "latency.decode.p50_ms"


def ours() -> Report:
    return report(checkpoint_files={"model.safetensors": "a" * 64})


def kept(**changes: Any) -> Entry:
    return entry_of(ours(), "c1").model_copy(update=changes)


def beside(*entries: Entry) -> HistoryRecord:
    here = ours()
    return earlier_builds(entries, provenance_of(here), here.checkpoint_files, "history.jsonl")


def names(build: EarlierBuild) -> set[str]:
    return {one.name for one in build.measurements}


# ---- what may be compared


def test_the_same_build_keeps_all_its_numbers() -> None:
    found = beside(kept())
    (one,) = found.builds
    assert names(one) == set(kept().levels)
    assert (found.left_out, found.untimed) == ((), ())


def test_what_is_of_something_else_is_left_out_and_counted() -> None:
    found = beside(kept(), kept(model="another"), kept(data="other"), kept(data="others"))
    assert len(found.builds) == 1
    assert {(one.why, one.builds) for one in found.left_out} == {
        ("another checkpoint", 1),
        ("other evaluation data", 2),
    }


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"hardware": "another, 64 cores, GPU: none"}, "another machine: another, 64 cores, GPU: none there, "),
        ({"target": "host"}, "another target: host there, "),
        ({"metrics": {"latency": {"prompt": 7}}}, "other options of `latency`: prompt 7 there, 128 here"),
        ({"hardware": "", "metrics": {}}, OLD_LINE),
    ],
)
def test_times_want_the_same_machine_target_and_options(changes: dict[str, Any], why: str) -> None:
    found = beside(kept(**changes))
    (one,) = found.builds
    assert "perplexity.recovery" in names(one)
    assert not any(name.startswith("latency.") for name in names(one))
    (reason,) = found.untimed
    assert reason.builds == 1
    assert reason.why.startswith(why)


def test_how_long_was_measured_does_not_part_builds() -> None:
    found = beside(kept(metrics={"latency": {"time_box_s": 3.0, "passes": False}}))
    assert TOKEN in names(found.builds[0])


def test_of_many_the_newest_are_kept() -> None:
    found = beside(*(kept(label=f"c{i}", started=f"2026-01-01T00:{i:02d}:00") for i in range(MOST + 3)))
    assert [found.builds[0].label, found.builds[-1].label] == ["c3", f"c{MOST + 2}"]
    assert found.left_out == (LeftOut(why=f"older than the {MOST} newest", builds=3),)


def test_a_history_of_another_model_is_refused() -> None:
    with pytest.raises(RecipeError) as caught:
        beside(kept(model="x"), kept(model="y"))
    assert str(caught.value) == (
        "--history history.jsonl: not comparable: all 2 builds of the history are of another checkpoint\n"
        "  fix: give the history of builds of this checkpoint"
    )


def test_lines_of_the_first_version_are_read_and_stay_as_they_are(tmp_path: Path) -> None:
    file, line = tmp_path / "history.jsonl", json.loads(kept().model_dump_json())
    old = {key: value for key, value in line.items() if key not in ("hardware", "metrics")} | {"schema_version": 1}
    file.write_text(json.dumps(old) + "\n")
    assert read_history(file)[0].hardware == ""
    assert add(file, [kept(label="new")]) == 1
    first, second = (json.loads(text) for text in file.read_text().splitlines())
    assert first == old
    assert (second["schema_version"], second["hardware"]) == (2, kept().hardware)


# ---- on the page


def history(count: int, **more: Any) -> HistoryRecord:
    builds = tuple(
        EarlierBuild(
            name="tiny-llama-int8", label=f"c{i}", started="2026-01-01T00:00:00+00:00", verdict="within budget", target="rtx4090", machine="m",
            measurements=(recovery(0.98 + i / 1000, 0.001), measurement(TOKEN, 2.0 + i / 10, "ms", "lower", low=1.9, high=2.5)),
        )
        for i in range(count)
    )  # fmt: skip
    return HistoryRecord(path="h.jsonl", builds=builds, **more)


def test_earlier_builds_are_points_and_only_the_newest_are_named() -> None:
    found = [one for one in points(report(history=history(12))) if one.kind == "earlier"]
    assert [one.label for one in found] == [f"{i + 1} c{i}" for i in range(12)]
    assert [one.short for one in found] == [UNNAMED] * 3 + [str(i) for i in range(4, 13)]
    figure = tradeoff(report(history=history(6)))
    assert figure is not None
    assert sum(row[0].text.endswith(("c0", "c1", "c2", "c3", "c4", "c5")) for row in figure.table.rows) == 6


def test_the_page_says_what_was_left_out_and_why() -> None:
    left, untimed = (
        LeftOut(why="another checkpoint", builds=2),
        LeftOut(why="another machine: x there, y here", builds=1),
    )
    one = report(history=history(4, left_out=(left,), untimed=(untimed,)))
    told = list(sentences(one))
    assert told[0] == (
        "Earlier builds: 4 of 6 in `h.jsonl` can be compared with this one; left out: 2 builds (another checkpoint)."
    )
    assert told[1] == "Shown without times and memory: 1 build (another machine: x there, y here)."
    page, summary = html(one), markdown(one)
    assert "left out: 2 builds (another checkpoint)" in page
    assert "left out: 2 builds (another checkpoint)" in summary
    assert "This build and earlier ones, the newest first" in page
    assert [row[0].text for row in earlier_table(one).rows] == ["this build", "4 c3", "3 c2", "2 c1", "1 c0"]


def test_a_trend_is_of_this_recipe_and_wants_three_builds() -> None:
    def named(name: str, count: int) -> HistoryRecord:
        whole = history(count)
        return whole.model_copy(update={"builds": tuple(one.model_copy(update={"name": name}) for one in whole.builds)})

    assert trend(report(history=named(report().name, 3))) is not None
    assert trend(report(history=named(report().name, 1))) is None
    assert trend(report(history=named("another", 9))) is None
    assert trend(report()) is None


# ---- builds


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "there is no history here"),
        ('{"name": "x', "history.jsonl:1: the line is truncated or not JSON"),
        ('{"schema_version": 99}', "kept with schema version 99, and this openclaw-opt reads up to 2"),
        (kept().model_dump_json(), "not comparable: all 1 builds of the history are of another checkpoint"),
    ],
)
def test_a_bad_history_ends_the_build_before_work(
    write_recipe: Write, tmp_path: Path, text: str | None, told: str
) -> None:
    file = tmp_path / "history.jsonl"
    if text is not None:
        file.write_text(text + "\n")
    recipe = write_recipe()
    before = sorted(tmp_path.iterdir())
    out = tmp_path / "deep" / "build" / "out"
    done = CliRunner().invoke(
        app, ["build", "-r", str(recipe), "-o", str(out), "--cache", str(tmp_path / "c"), "--history", str(file)]
    )
    assert isinstance(done.exception, OptError)
    assert done.exception.exit_code == 2
    assert told in str(done.exception)
    assert sorted(tmp_path.iterdir()) == before, "no folder and no lock is left"


def test_resume_keeps_the_history_it_began_with(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["build", str(tmp_path), "--resume", "--history", str(tmp_path)])
    assert isinstance(done.exception, RecipeError)
    assert done.exception.what == "--resume keeps the earlier builds that the build began with"


@pytest.mark.slow
def test_a_build_beside_a_folder_of_builds(write_recipe: Write, tmp_path: Path) -> None:
    folder, cache = tmp_path / "builds", ("--cache", str(tmp_path / "cache"))
    recipe = write_recipe(
        ("metrics: [perplexity, size]", "metrics: [perplexity, size, {latency: {time_box_s: 0.2, passes: false}}]")
    )
    for i in range(2):
        invoke("build", "-r", str(recipe), "-o", str(folder / f"b{i}"), *cache)
    other = json.loads((folder / "b0" / "report.json").read_text())
    other["checkpoint_files"] = {"model.safetensors": "f" * 64}
    (folder / "other").mkdir()
    (folder / "other" / "report.json").write_text(json.dumps(other))
    invoke("build", "-r", str(recipe), "-o", str(tmp_path / "out"), *cache, "--history", str(folder))
    shutil.rmtree(folder)
    kept = read_report(tmp_path / "out")
    assert kept.history is not None
    assert len(kept.history.builds) == 2
    assert kept.history.left_out == (LeftOut(why="another checkpoint", builds=1),)
    assert sum(point.kind == "earlier" for point in points(kept)) == 2
    invoke("report", str(tmp_path / "out"), "-o", str(tmp_path / "again"))
    page = (tmp_path / "again" / "report.html").read_text()
    assert "can be compared with this one; left out: 1 build (another checkpoint)" in page
