"""What each pass bought: which engine stands for a pass, that it is timed in turns, what it costs, and what is said where it is not."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openclaw_opt import waterfall
from openclaw_opt.artifacts import Measurement
from openclaw_opt.cli.progress import Silent
from openclaw_opt.comparison.spending import spender
from openclaw_opt.errors import VerificationError
from openclaw_opt.explain.show import budget_lines
from openclaw_opt.metrics.latency import OVERTIME, Times
from openclaw_opt.metrics.pass_times import ROUNDS, rounds_in_turns, speedups
from openclaw_opt.pipeline import build
from openclaw_opt.plan import make_plan
from openclaw_opt.recipe import load_recipe
from openclaw_opt.records import BudgetRecord, PassRecord, Report
from openclaw_opt.report import read_report, report_json
from openclaw_opt.report.bought import bought, pass_lines
from openclaw_opt.report.gaps import gaps
from openclaw_opt.report.html import html
from openclaw_opt.report.markdown import markdown
from openclaw_opt.report.views import THE_ENGINE
from openclaw_opt.store import Store
from openclaw_opt.turns import SharedTurns
from tests.test_report import report as plain_report

Write = Callable[..., Path]
PRUNED = ("  - quantize:", "  - prune: {ffn: 0.34}\n  - quantize:")
TIMED = ("metrics: [perplexity, size]", "metrics: [perplexity, size, {latency: {prompt: 16, new_tokens: 8, time_box_s: 1, compare: false}}]")  # fmt: skip
PRICED = ("target: host", "target: {name: host, hourly_usd: 0.09}")
TOKEN, PROMPT, RATE = "latency.decode.p50_ms", "latency.ttft.p50_ms", "throughput.decode_tokens_per_s"


class Noted(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def value(record: PassRecord, name: str) -> float:
    found = next(one.value for one in record.latency if one.name == name)
    assert found is not None
    return found


# ---- which engine stands for a pass


def test_a_pass_is_followed_by_those_that_make_an_engine_of_what_it_gave(write_recipe: Write, tmp_path: Path) -> None:
    store = Store(tmp_path / "cache")
    plan = make_plan(load_recipe(write_recipe(PRUNED)), store)
    load, prune, quantize, export, fuse, built = waterfall.stages_of(plan, plan.steps, "onnxruntime", store)
    assert load.timed == "the model as `load` gave it, by `export`, `fuse`, `build`"
    assert prune.variant is not None
    assert [part.word for part in prune.variant.recipe.passes] == ["load", "prune", "export", "fuse", "build"]
    assert export.timed == "the graph as `export` gave it, without `fuse`"
    assert {one.key for one in (quantize, fuse, built)} == {plan.steps[-1].key}
    assert {one.timed for one in (quantize, fuse, built)} == {THE_ENGINE}
    assert [one.over for one in (load, prune, quantize, export, fuse, built)] == ["", "load", "prune", "", "export", ""]


def test_its_engine_is_the_one_of_a_recipe_without_the_later_passes(write_recipe: Write, tmp_path: Path) -> None:
    """So that builds and sweep points share it."""
    store = Store(tmp_path / "cache")
    plan = make_plan(load_recipe(write_recipe(PRUNED)), store)
    load, prune, *_ = waterfall.stages_of(plan, plan.steps, "onnxruntime", store)
    quantize = ("  - quantize: {format: int8, algorithm: max}\n", "")
    bare = make_plan(load_recipe(write_recipe(quantize, name="bare")), store)
    pruned = make_plan(load_recipe(write_recipe(PRUNED, quantize, name="pruned")), store)
    assert (load.key, prune.key) == (bare.steps[-1].key, pruned.steps[-1].key)


def test_two_passes_of_one_name_are_told_apart(write_recipe: Write, tmp_path: Path) -> None:
    twice = (
        "  - quantize: {format: int8, algorithm: max}\n",
        "  - quantize: {format: int4, keep: [head]}\n"
        "  - quantize: {format: int8_weight_only, algorithm: max, keep: ['layers.*']}\n",
    )
    store = Store(tmp_path / "cache")
    plan = make_plan(load_recipe(write_recipe(twice)), store)
    _, first, second, *_ = waterfall.stages_of(plan, plan.steps, "onnxruntime", store)
    assert (first.base, first.over) == (0, "load")
    assert (second.base, second.over) == (1, "2 quantize")
    assert first.key != second.key


# ---- in turns


def test_every_round_runs_each_engine_once_and_begins_with_another() -> None:
    order: list[int] = []
    runs = [lambda i=i: (order.append(i), (1.0 + i, [0.5]))[1] for i in range(3)]
    times = rounds_in_turns(runs, box=60.0, warmup=1)
    assert [len(one.first) for one in times] == [ROUNDS] * 3
    rounds = [order[i : i + 3] for i in range(3, len(order), 3)]
    assert all(sorted(one) == [0, 1, 2] for one in rounds)
    assert [one[0] for one in rounds[:4]] == [0, 1, 2, 0]
    assert [one.first[0] for one in times] == [1.0, 2.0, 3.0]


def test_rounds_end_with_the_box() -> None:
    def slow() -> tuple[float, list[float]]:
        time.sleep(0.01)
        return 10.0, []

    began = time.perf_counter()
    (times,) = rounds_in_turns([slow], box=0.02, warmup=1)
    assert 1 <= len(times.first) <= 8
    assert time.perf_counter() - began < 10 * OVERTIME * 0.02


def test_a_ratio_is_of_rounds_and_needs_seven() -> None:
    before, after = Times(), Times()
    for i in range(9):
        before.add(10.0 + i % 2, [4.0, 4.0])
        after.add(5.0 + 0.5 * (i % 2), [1.0, 1.0])
    token, prefill = speedups(before, after, "load")
    assert (token.name, token.value) == ("speedup.pass", 4.0)
    assert (prefill.name, prefill.value) == ("speedup.pass.prefill", 2.0)
    few = Times(before.first[:3], [], before.per_round[:3], [])
    assert speedups(few, Times(after.first[:3], [], after.per_round[:3], []), "load") == ()


# ---- whole builds


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def run(file: Path, cache: Path, output: Path, *settings: str, **more: Any) -> tuple[Report, Noted]:
    hooks = Noted()
    return build(load_recipe(file, settings=settings), store=Store(cache), output=output, hooks=hooks, **more), hooks


@pytest.mark.slow
def test_a_build_measures_latency_and_cost_of_every_pass(write_recipe: Write, cache: Path, tmp_path: Path) -> None:
    file = write_recipe(PRUNED, TIMED, PRICED)
    report, hooks = run(file, cache, tmp_path / "out")
    assert [record.word for record in report.passes] == ["load", "prune", "quantize", "export", "fuse", "build"]
    assert "timing what `prune`, `quantize`, `fuse` bought: 4 engines in turns" in hooks.notes[0]
    for record in report.passes:
        assert {one.name for one in record.latency} == {TOKEN, PROMPT, RATE}, record.word
        assert all(one.low is not None and one.high is not None for one in record.latency)
        assert record.cost is not None
        assert record.cost.per_million_usd == pytest.approx(1e6 * 0.09 / 3600 / value(record, RATE))
        assert record.cost.basis.startswith("measured on the engine")
    own = next(one.value for one in report.measurements if one.name == TOKEN)
    assert own is not None
    assert 1 / 4 < value(report.passes[-1], TOKEN) / own < 4, (
        "the same engine, timed twice on a machine that may be busy"
    )
    headline = next(one for one in report.costs if one.target == "host")
    assert headline.per_million_usd is not None
    assert report.passes[-1].cost is not None
    assert 1 / 8 < (report.passes[-1].cost.per_million_usd or 0.0) / headline.per_million_usd < 8
    assert {value(report.passes[i], TOKEN) for i in (2, 4, 5)} == {value(report.passes[-1], TOKEN)}
    over = {record.word: record.speedup_over for record in report.passes if record.speedups}
    assert over == {"prune": "load", "quantize": "prune", "fuse": "export"}
    assert not any("after each pass" in gap.what for gap in gaps(report))
    assert [row[0].text for row in bought(report).rows] == [record.word for record in report.passes]
    assert len(list(pass_lines(report))) == 6
    for text in (html(report), markdown(report)):
        assert "What each pass bought" in text
    again, hooks = run(file, cache, tmp_path / "again")
    assert [record.latency for record in again.passes] == [record.latency for record in report.passes]
    assert hooks.notes == [], "timed once on this machine"


@pytest.mark.slow
def test_what_cannot_be_timed_says_why_and_is_tried_again(
    write_recipe: Write, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_recipe(TIMED, name="failing")
    with monkeypatch.context() as patched:
        patched.setattr(waterfall, "BESIDE", 1e12)
        report, _ = run(file, cache, tmp_path / "small")
    assert "3 engines side by side want about" in report.passes[0].latency[0].not_measured

    def broken(stage: waterfall.Stage, *_: Any) -> Any:
        raise VerificationError("no kernel for it")

    with monkeypatch.context() as patched:
        patched.setattr(waterfall, "_made", broken)
        report, _ = run(file, cache, tmp_path / "failed")
    first = report.passes[0].latency[0]
    assert first.not_measured.startswith("no engine could be made of the model as `load` gave it")
    assert first.not_measured.endswith(": no kernel for it")
    assert report.passes[1].latency[0].value is not None
    assert report.passes[1].speedups == ()
    assert any(first.not_measured == gap.why for gap in gaps(report))
    report, hooks = run(file, cache, tmp_path / "well")
    assert len(hooks.notes) == 1, "a failure was not kept"
    assert report.passes[0].latency[0].value is not None


@pytest.mark.slow
def test_it_is_left_out_where_nobody_wants_it(write_recipe: Write, cache: Path, tmp_path: Path) -> None:
    off = (TIMED[0], TIMED[1].replace("compare: false", "compare: false, passes: false"))
    report, hooks = run(write_recipe(off, name="off"), cache, tmp_path / "off")
    assert [record.timed for record in report.passes] == [""] * 5
    assert hooks.notes == []
    assert ("latency and cost after each pass", "only the engine was timed") in {(g.what, g.why) for g in gaps(report)}
    assert "What each pass bought" not in html(report)
    shared, hooks = run(write_recipe(TIMED, name="on"), cache, tmp_path / "on", turns=SharedTurns(tmp_path / "turns"))
    assert hooks.notes == [], "a sweep times the engines of its points alone"
    assert [record.timed for record in shared.passes] == [""] * 5


@pytest.mark.slow
def test_an_engine_for_another_machine_has_bounds_that_say_so(write_recipe: Write, cache: Path, tmp_path: Path) -> None:
    file = write_recipe(PRUNED, TIMED, ("target: host", "target: h100-sxm"), name="gpu")
    report, _ = run(file, cache, tmp_path / "out")
    assert not report.finished
    load, prune, quantize, *_ = report.passes
    for record in report.passes:
        assert {one.subject for one in record.latency} == {"bound"}
        assert record.cost is not None
        assert record.cost.basis.startswith("bound from the target's figures")
    assert (
        value(load, "roofline.decode_ms") > value(prune, "roofline.decode_ms") > value(quantize, "roofline.decode_ms")
    )
    assert {row.subject for row in quantize.speedups} == {"bound"}
    assert report.passes[-1].cost == next(
        one.model_copy(update={"basis": report.passes[-1].cost.basis}) for one in report.costs if one.target == "h100-sxm"
    )  # fmt: skip
    said = {gap.what: gap.why for gap in gaps(report)}
    (why,) = (why for what, why in said.items() if "after each pass" in what)
    assert why.endswith("; bounds stand in their place")
    assert "A bound, not a measurement: what the target's figures allow for the graph" in html(report)
    assert all("at least" in line for line in pass_lines(report))


# ---- who spent time


def record(index: int, word: str, ratio: float, low: float, high: float) -> PassRecord:
    facts = {"name": "speedup.pass", "value": ratio, "low": low, "high": high, "unit": "×", "better": "higher"}
    time = Measurement(name=TOKEN, value=1 / ratio, unit="ms", better="lower")
    return PassRecord(
        index=index, word=word, options={}, kind="lossy", changed="x", seconds=1, peak_bytes=1, cached=False, size_bytes=1,
        timed="the model", latency=(time,), speedups=(Measurement.model_validate(facts),), speedup_over="load",
    )  # fmt: skip


def test_a_time_is_spent_by_the_pass_that_made_the_engine_slower_beyond_the_interval() -> None:
    rotate, prune = record(1, "rotate", 0.8, 0.75, 0.85), record(2, "prune", 1.2, 1.1, 1.3)
    noise = record(3, "quantize", 0.7, 0.4, 1.1)
    assert spender(TOKEN, [rotate, prune, noise]) == "rotate"
    assert spender(TOKEN, [prune, noise]) == ""
    assert spender(PROMPT, [rotate]) == "", "of a prompt nothing was measured"


def test_explain_tells_what_each_pass_bought_of_a_missed_time() -> None:
    missed = BudgetRecord(metric=TOKEN, rule="<= 0.1", got=0.8, unit="ms", result="missed")
    one = plain_report(budgets=(missed,), passes=(record(1, "prune", 1.2, 1.1, 1.3),))
    lines = budget_lines(one)
    assert any("after prune: token 0.833 ms, 1.20× (1.10 to 1.30) over load" in line for line in lines)
    assert lines[-1] == "  no pass made it slower"
    unmeasured = budget_lines(plain_report(budgets=(missed,)))
    assert unmeasured[-1].startswith("  not measured pass by pass: ")


def test_a_report_of_version_2_reads_as_one_without(tmp_path: Path) -> None:
    text = report_json(plain_report().model_copy(update={"schema_version": 2}))
    new = ('"timed"', '"speedups"', '"speedup_over"', '"cost": null', '"history"')
    lines = [line for line in text.splitlines() if not line.strip().startswith(new)]
    (tmp_path / "report.json").write_text(
        "\n".join(lines).replace(",\n  }", "\n  }").replace(",\n }", "\n }").replace(",\n}", "\n}")
    )
    read = read_report(tmp_path)
    assert read == plain_report().model_copy(update={"schema_version": 2})
    assert bought(read).rows == ()
