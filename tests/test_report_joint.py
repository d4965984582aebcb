"""Several reports in one: what may be compared, the front, and what stands apart with its reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from rich.console import Console
from typer.testing import CliRunner

from openclaw_opt.cli import app
from openclaw_opt.records import SCHEMA_VERSION, Report
from openclaw_opt.report import report_json, write_report
from openclaw_opt.report.joined import SIZE, joined, why_apart
from openclaw_opt.report.joint import joint_markdown, joint_table, print_joint, write_joint
from openclaw_opt.report.schema import joint_schema
from tests.test_report import recovery, report, timed, unfinished

FASTER = (recovery(0.97, 0.01), timed("latency.decode.p50_ms", 1.2, "engine", 20, 1))
WORSE = (recovery(0.96, 0.01), timed("latency.decode.p50_ms", 4.0, "engine", 20, 1))


def made(name: str, **changes: Any) -> tuple[str, Report]:
    return f"builds/{name}", report(name=name, **changes)


def three() -> list[tuple[str, Report]]:
    return [made("a"), made("b", measurements=FASTER), made("c", measurements=WORSE)]


def test_the_front_is_of_accuracy_and_latency_where_both_were_measured_alike() -> None:
    (group,) = joined(three()).groups
    assert group.front_of == "latency.decode.p50_ms"
    assert [row.on_front for row in group.rows] == [True, True, False]
    elsewhere = report(name="b", measurements=FASTER).machine.model_copy(update={"title": "another machine"})
    (group,) = joined([*three(), made("d", measurements=FASTER, machine=elsewhere)]).groups
    assert [row.timed_alike for row in group.rows] == [True, True, True, False]
    assert not group.rows[3].on_front  # as fast, but timed elsewhere
    assert "Latency of d was measured elsewhere" in joint_markdown(
        joined([*three(), made("d", measurements=FASTER, machine=elsewhere)])
    )


def test_without_latencies_the_front_is_of_accuracy_and_size() -> None:
    rows = [made(name, measurements=(recovery(value, 0.01),), engine_bytes=size) for name, value, size in
            (("a", 0.99, 100), ("b", 0.98, 50), ("c", 0.97, 60))]  # fmt: skip
    (group,) = joined(rows).groups
    assert group.front_of == SIZE
    assert [row.on_front for row in group.rows] == [True, True, False]
    assert [column.title for column in joint_table(group).columns] == [
        "Build",
        "Verdict",
        "perplexity.recovery",
        "Size",
        "Pareto front",
    ]


def test_other_checkpoints_and_other_data_stand_apart() -> None:
    stranger = made("other", checkpoint_files={"model.safetensors": "ab" * 32}, model="elsewhere")
    other_data = made("data", data={"evaluation": {"source": "text", "fingerprint": "1234"}})
    moved = made("moved", model="the/same/weights/elsewhere")
    joint = joined([stranger, *three(), other_data, moved])
    assert [len(group.rows) for group in joint.groups] == [4, 1, 1]
    assert joint.groups[0].why_apart == ""
    whys = {group.why_apart.split(" (")[0] for group in joint.groups[1:]}
    assert whys == {"another checkpoint", "other evaluation data"}
    assert why_apart(report(), report()) == ""
    text = joint_markdown(joint)
    assert text.count("Not comparable with the first table") == 2


def test_an_unfinished_build_has_its_place_and_no_number() -> None:
    joint = joined([*three(), ("h100", unfinished())])
    (group,) = joint.groups
    assert [row.latency is None for row in group.rows] == [False, False, False, True]
    cells = dict(zip([column.title for column in joint_table(group).columns], joint_table(group).rows[3], strict=True))
    assert cells["latency.decode.p50_ms"].text == "not measured"
    assert cells["Verdict"].text == "not finished"


def test_names_that_are_equal_are_told_apart() -> None:
    one = report()
    (group,) = joined([("x/1", one), ("x/2", one)]).groups
    assert [row[0].text for row in joint_table(group).rows] == ["1 int8-rtx4090 (x/1)", "2 int8-rtx4090 (x/2)"]


def test_the_files_fit_their_schema_and_the_page_holds_every_build(tmp_path: Path) -> None:
    names = write_joint(
        [*three(), made("other", checkpoint_files={"m": "ab" * 32}, model="elsewhere")], tmp_path, "nightly"
    )
    assert set(names) == {"report.html", "report.md", "report.json"} == {path.name for path in tmp_path.iterdir()}
    data = json.loads((tmp_path / "report.json").read_text())
    jsonschema.Draft202012Validator(joint_schema()).validate(data)
    assert "raw" in json.dumps(data)
    assert all(row["latency"]["raw"] == [] for row in data["groups"][0]["rows"])
    page = (tmp_path / "report.html").read_text()
    for words in (
        "nightly",
        "Not comparable with the first table",
        "Accuracy against latency",
        "Accuracy against size",
        "elsewhere",
    ):
        assert words in page


def test_the_table_fits_a_terminal() -> None:
    console = Console(width=80, record=True, file=None, quiet=False)
    with console.capture() as out:
        print_joint(joined(three()), console)
    assert max(len(line) for line in out.get().splitlines()) <= 80
    assert "perplexity.recovery" in out.get()


def run(*words: str) -> Any:
    return CliRunner().invoke(app, list(words))


@pytest.fixture
def stored(tmp_path: Path) -> list[str]:
    for name, one in three():
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "report.json").write_text(report_json(one))
    return [str(tmp_path / name) for name, _ in three()]


def test_the_verb_joins_several_and_writes_them(stored: list[str], tmp_path: Path) -> None:
    done = run("report", *stored)
    assert done.exit_code == 0
    assert "budget" in done.output
    assert json.loads(run("report", *stored, "--json").output)["title"] == "3 builds"
    assert run("report", *stored, "--markdown").output.startswith("## 3 builds")
    done = run("report", *stored, "--output", str(tmp_path / "out"))
    assert done.exit_code == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.html", "report.md", "report.json"}


def test_one_report_is_written_again_in_every_form(stored: list[str], tmp_path: Path) -> None:
    done = run("report", stored[0], "-o", str(tmp_path / "again"))
    assert done.exit_code == 0
    assert {"report.html", "junit.xml", "benchmark.smaller.json"} <= {
        path.name for path in (tmp_path / "again").iterdir()
    }


def test_bad_input_among_several_is_one_error(stored: list[str], tmp_path: Path) -> None:
    whole = report_json(report())
    (tmp_path / "empty").mkdir()
    damages = {
        "truncated.json": (whole[: len(whole) // 2], "truncated or not JSON"),
        "newer.json": (json.dumps({"schema_version": SCHEMA_VERSION + 1}), f"schema version {SCHEMA_VERSION + 1}"),
        "list.json": ("[]", "holds no JSON object"),
        "joint.json": (json.dumps({"joint_version": 1, "title": "x", "groups": []}), "joins several builds"),
    }
    for name, (text, _) in damages.items():
        (tmp_path / name).write_text(text)
    bad = {
        **{str(tmp_path / name): message for name, (_, message) in damages.items()},
        str(tmp_path / "empty"): "there is no report here",
    }
    for path, message in bad.items():
        done = run("report", *stored, path, "-o", str(tmp_path / "out"))
        assert done.exception is not None
        assert done.exception.exit_code == 2  # type: ignore[attr-defined]
        assert message in str(done.exception)
        assert path in str(done.exception)
        assert not (tmp_path / "out").exists()


def test_a_build_s_folder_is_not_written_over(stored: list[str], tmp_path: Path) -> None:
    build = tmp_path / "build"
    build.mkdir()
    write_report(report(), build)
    (build / "manifest.json").write_text("{}")
    done = run("report", *stored, "-o", str(build))
    assert "the folder holds a build" in str(done.exception)
    (tmp_path / "file").write_text("")
    assert "the output folder is a file" in str(run("report", *stored, "-o", str(tmp_path / "file")).exception)
