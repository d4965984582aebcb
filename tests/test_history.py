"""Trends over builds: change points at their stated rate, comparable builds only, a file that survives two writers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openclaw_opt.errors import MachineError, RecipeError
from openclaw_opt.history import Entry, Level, add, entry_of, read_history
from openclaw_opt.history.show import lines, markdown, sparkline, verdict
from openclaw_opt.history.trend import OF_A_MACHINE, Trend, regressions, trends
from openclaw_opt.metrics import Metric
from openclaw_opt.numerics.changepoint import best_split, change_points
from openclaw_opt.parts import part_named, part_names
from openclaw_opt.report import write_report
from openclaw_opt.report.joint import write_joint
from openclaw_opt.report.views import first_word
from tests.test_cli import invoke
from tests.test_report import report

LATENCY, RECOVERY = "latency.decode.p50_ms", "bits_per_byte.recovery"


def entry(index: int, levels: dict[str, float], **more: Any) -> Entry:
    better = {LATENCY: "lower", RECOVERY: "higher", "size_mib": "lower"}
    facts = {"name": "int8-cpu", "label": f"c{index}", "started": f"2026-01-01T{index // 60:02d}:{index % 60:02d}:00"}
    found = {name: Level(value=value, better=better[name]) for name, value in levels.items()}
    fixed = {"verdict": "within budget", "target": "host", "machine": "one", "model": "m", "data": "d"}
    return Entry.model_validate({**facts, **fixed, "budgets": (LATENCY, RECOVERY, "size_mib"), "levels": found, **more})


def series(name: str, values: Sequence[float]) -> list[Entry]:
    return [entry(i, {name: float(value)}) for i, value in enumerate(values)]


def one_trend(entries: Sequence[Entry], **more: Any) -> Trend:
    (found,) = trends(entries, **more)
    return found


def test_a_step_is_found_where_it_is() -> None:
    draw = np.random.default_rng(3)
    values = [*draw.normal(10, 0.2, 15), *draw.normal(11, 0.2, 5)]
    (change,) = change_points(values)
    assert change.index == 15
    assert change.before == np.median(values[:15])
    assert change.after == np.median(values[15:])
    assert change.p < 0.01


def test_two_steps_are_found_and_the_levels_are_those_between() -> None:
    draw = np.random.default_rng(4)
    values = np.concatenate([draw.normal(level, 0.2, 15) for level in (10, 12, 9)])
    assert [change.index for change in change_points(values)] == [15, 30]
    assert [round(change.after) for change in change_points(values)] == [12, 9]


@pytest.mark.slow
def test_the_rate_of_false_changes_is_the_stated_one() -> None:
    """150 series that never change, at 5 %: 8 expected; more than 17 (binomial, 99.9 %) would be a broken test."""
    draw = np.random.default_rng(5)
    found = sum(bool(change_points(draw.lognormal(0, 0.3, 14), significance=0.05, seed=i)) for i in range(150))
    assert found <= 17


def test_one_outlier_and_a_constant_are_no_change() -> None:
    draw = np.random.default_rng(6)
    values = draw.normal(10, 0.2, 30)
    values[20] = 30.0
    assert change_points(values) == ()
    assert change_points([5.0] * 30) == ()
    assert change_points([]) == ()
    with pytest.raises(ValueError, match="finite"):
        change_points([1.0, float("nan")])


@given(st.lists(st.floats(-1e3, 1e3), min_size=6, max_size=20))
def test_the_split_is_the_best_of_all_by_the_definition(values: list[float]) -> None:
    x = np.array(values)
    found = best_split(x)
    if found is None:
        assert len(set(values)) == 1
        return

    def score(at: int) -> float:
        a, b = x[:at], x[at:]
        between = np.abs(a[:, None] - b[None]).mean()
        within = [np.abs(s[:, None] - s[None]).sum() / (len(s) * (len(s) - 1)) for s in (a, b)]
        return float((2 * between - sum(within)) * len(a) * len(b) / len(x))

    assert found[1] == pytest.approx(max(score(at) for at in range(3, len(x) - 2)), abs=1e-6)


@pytest.mark.parametrize(("step", "state"), [(1.15, "worse"), (0.85, "better"), (1.0, "steady")])
def test_a_slower_engine_is_a_regression_and_a_faster_one_is_not(step: float, state: str) -> None:
    draw = np.random.default_rng(7)
    found = one_trend(series(LATENCY, [*draw.normal(10, 0.15, 20), *draw.normal(10 * step, 0.15, 4)]))
    assert found.state == state
    assert bool(regressions([found])) == (state == "worse")
    assert (found.builds[found.last.index] == "c20") if found.last else state == "steady"


def test_a_fixed_percentage_would_have_cried_and_this_does_not() -> None:
    """Noise of 8 %: builds differ by more than 10 % from the one before again and again, and nothing changed."""
    draw = np.random.default_rng(8)
    values = draw.normal(10, 0.8, 40)
    assert (np.abs(np.diff(values)) / values[:-1] > 0.1).sum() > 3
    assert one_trend(series(LATENCY, values)).state == "steady"


def test_an_old_regression_is_the_new_level() -> None:
    draw = np.random.default_rng(9)
    values = [*draw.normal(10, 0.15, 20), *draw.normal(12, 0.15, 12)]
    assert one_trend(series(LATENCY, values)).state == "steady"
    assert one_trend(series(LATENCY, values), recent=20).state == "worse"


def test_a_number_without_noise_changes_at_once() -> None:
    assert one_trend(series("size_mib", [7.5, 7.5, 7.7])).state == "worse"
    assert one_trend(series("size_mib", [7.5, 7.5, 7.50001])).state == "steady"
    assert one_trend(series(LATENCY, [7.5, 7.5, 7.7])).state == "too short"


@pytest.mark.parametrize(
    ("metric", "changed", "why"),
    [
        (LATENCY, {"machine": "two"}, "the machine changed after c4"),
        (RECOVERY, {"data": "e"}, "the evaluation data changed after c4"),
        ("size_mib", {"model": "n"}, "the checkpoint changed after c4"),
        (RECOVERY, {"target": "l4", "model": "n"}, "the target and the checkpoint changed after c4"),
        (RECOVERY, {"machine": "two"}, ""),
    ],
)
def test_only_what_is_comparable_is_compared(metric: str, changed: dict[str, str], why: str) -> None:
    entries = series(metric, range(1, 6)) + [entry(i, {metric: 9.0}, **changed) for i in range(5, 8)]
    found = one_trend(entries)
    assert found.broken == why
    assert len(found.levels) == (3 if why else 8)


def test_a_report_becomes_a_line_once_whoever_writes(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "history.jsonl"
    kept = [entry_of(report(), f"c{i}") for i in range(12)]
    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(lambda one: add(file, [one]), kept + kept)) == 12
    found = read_history(file)
    assert sorted(one.label for one in found) == sorted(one.label for one in kept)
    assert set(found[0].budgets) <= {budget.metric for budget in report().budgets}
    assert "raw" not in file.read_text()


@pytest.mark.slow
def test_a_folder_of_builds_is_a_history(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"b{i}").mkdir()
        write_report(report().model_copy(update={"started": f"2026-01-0{3 - i}T00:00:00+00:00"}), tmp_path / f"b{i}")
    found = read_history(tmp_path)
    assert [one.started[:10] for one in found] == ["2026-01-01", "2026-01-02", "2026-01-03"]
    with pytest.raises(RecipeError, match="nothing is added to it"):
        add(tmp_path, found)


@pytest.mark.slow
def test_a_sweep_is_a_history_of_its_points(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_report(report().model_copy(update={"name": name}), tmp_path / name)
    write_joint([(name, report()) for name in "ab"], tmp_path, "a sweep")
    assert sorted(one.name for one in read_history(tmp_path)) == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('{"name": "x', "the line is truncated or not JSON"),
        ("[]", "the line is no build"),
        ('{"schema_version": 99}', "kept with schema version 99, and this openclaw-opt reads up to 2"),
        ('{"name": "x", "speed": 1}', "the line is no build: `started`: Field required"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, what: str) -> None:
    file = tmp_path / "history.jsonl"
    file.write_text(f"{entry(0, {LATENCY: 1.0}).model_dump_json()}\n{text}\n")
    with pytest.raises(RecipeError, match=r"history\.jsonl:2") as caught:
        read_history(file)
    assert what in str(caught.value)


def test_a_history_that_cannot_be_written_is_the_machines_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    write_report(report(), tmp_path)
    with pytest.raises(MachineError, match="the history cannot be written: ") as caught:
        invoke("history", str(tmp_path / "file" / "history.jsonl"), "--add", str(tmp_path))
    assert caught.value.exit_code == 3
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.parametrize("make", [lambda p: p / "none.jsonl", lambda p: p])
def test_no_history_is_said(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    with pytest.raises(RecipeError, match=r"no history here|holds no report\.json"):
        read_history(make(tmp_path))


@pytest.mark.slow
def test_the_verb_adds_shows_and_judges(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    draw = np.random.default_rng(10)
    values = [*draw.normal(10, 0.1, 20), *draw.normal(12, 0.1, 4)]
    add(file, series(LATENCY, values))
    printed = invoke("history", str(file), code=4)
    assert printed.splitlines()[-1].startswith(f"history: 1 regressed: int8-cpu {LATENCY} worse since c20: ")
    assert printed.splitlines()[-1].endswith("Next: look at what changed in c20")
    assert "**1 regressed**" in invoke("history", str(file), "--markdown", code=4)
    assert json.loads(invoke("history", str(file), "--json", code=4))[0]["state"] == "worse"
    assert "no number with a budget regressed" in invoke("history", str(file), "--recent", "2")
    with pytest.raises(RecipeError, match="no build of the history measured 'latency'"):
        invoke("history", str(file), "--metric", "latency")
    write_report(report(), tmp_path)
    invoke("history", str(tmp_path / "new.jsonl"), "--add", str(tmp_path), "--label", "abc")
    assert read_history(tmp_path / "new.jsonl")[0].label == "abc"


def test_what_is_shown_is_whole() -> None:
    found = trends(series(LATENCY, [*[10.0] * 6, *[11.0] * 6]))
    assert sparkline([1, 2, 3]) == "▁▅█"
    assert lines(found)[0].startswith(f"int8-cpu  {LATENCY} *")
    assert markdown(found).count("\n| ") == 2
    assert verdict(found, 12).startswith("history: 1 regressed")


@pytest.mark.parametrize("word", part_names("metrics"))
def test_every_metric_of_a_machine_is_compared_on_one_machine_only(word: str) -> None:
    metric = part_named("metrics", word, Metric)  # type: ignore[type-abstract]
    for name in metric.measurement_names():
        assert metric.depends_on != "machine" or first_word(name) in OF_A_MACHINE, name
