"""compare: verdicts from rows with known answers, error rates by simulation, bad input, and two real builds."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import junitparser
import numpy as np
import pytest
from scipy import stats as scipy_stats
from typer.testing import CliRunner

from openclaw_opt.artifacts import KernelRow, Measurement, ReceiptRow
from openclaw_opt.cli import app
from openclaw_opt.comparison.evidence import Evidence
from openclaw_opt.comparison.margins import KINDS, kind_of, parse_margins
from openclaw_opt.comparison.records import Compared, Comparison
from openclaw_opt.comparison.rows import metric_of
from openclaw_opt.comparison.verdicts import Options, Timed, compare_reports, decide
from openclaw_opt.errors import RecipeError
from openclaw_opt.metrics import Metric
from openclaw_opt.parts import part_named, part_names
from openclaw_opt.recipe_grammar import Amount
from openclaw_opt.records import SCHEMA_VERSION, MachineRecord, Report

FLIPS = (12, 2)
"""Harmful and beneficial of 1,000: one point less, as quantization flips answers, most of them one way."""


def row(name: str, value: float | None, **more: Any) -> Measurement:
    metric = metric_of(name)
    assert metric is not None
    number = metric.number(name)
    return Measurement(name=name, value=value, unit=number.unit, better=number.better, **more)


def shares(right: Sequence[float], name: str = "accuracy.top1") -> Measurement:
    return row(name, float(np.mean(right)), items=tuple(map(float, right)), weights=(1.0,) * len(right))


def report(*rows: Measurement, **changes: Any) -> Report:
    whole: dict[str, Any] = {
        "name": "int8", "verdict": "no budgets", "exit_code": 0, "started": "2026-08-23T09:14:07+00:00", "seconds": 1.0,
        "model": "vit", "family": "vit", "task": "vision", "parameters": 1, "checkpoint_bytes": 1, "checkpoint_dtype": "float32",
        "target": "host", "target_title": "a CPU", "backend": "onnxruntime", "measurements": rows,
        "machine": MachineRecord(title="a CPU", cores=2, memory_bytes=1, gpu="none", system="Linux", python="3.11"),
        "data": {"evaluation": {"source": "digits", "samples": 1000, "identities": "77"}},
        "checkpoint_files": {"model.safetensors": "a" * 64}, "versions": {"torch": "2.13"},
        "recipe": "passes:\n- quantize: {format: int8}\nmetrics:\n- classification: {}\n",
    }  # fmt: skip
    return Report.model_validate(whole | changes)


def compared(a: Report, b: Report, timed: Timed | None = None, **options: Any) -> Comparison:
    return compare_reports(a, b, timed or Timed(), Options(**options))


def result(one: Comparison, name: str) -> Compared:
    return next(row for row in one.rows if row.name == name)


def flipped(harmful: int, beneficial: int, right: int = 900, items: int = 1000) -> tuple[list[float], list[float]]:
    before = [1.0] * right + [0.0] * (items - right)
    after = list(before)
    after[:harmful] = [0.0] * harmful
    after[right : right + beneficial] = [1.0] * beneficial
    return before, after


# ---- accuracy


def test_one_point_of_a_thousand_is_caught_by_the_pairs_and_missed_without_them() -> None:
    before, after = flipped(*FLIPS)
    one = compared(report(shares(before)), report(shares(after)))
    found = result(one, "accuracy.top1")
    assert (found.result, one.result, one.exit_code) == ("worse", "worse", 4)
    assert found.change == pytest.approx(-0.01)
    assert found.evidence.startswith("McNemar exact p = 0.013")
    a, b = np.mean(before), np.mean(after)
    z = (a - b) / math.sqrt((a * (1 - a) + b * (1 - b)) / 1000)
    assert 2 * scipy_stats.norm.sf(z) > 0.4, "an unpaired test of the same two numbers says nothing"


def test_a_seeded_regression_is_caught_in_most_draws() -> None:
    """Flips drawn, not fixed: 1.2 % harmful, 0.2 % beneficial."""
    random = np.random.default_rng(7)
    caught = unpaired = 0
    for _ in range(60):
        c, b, _rest = random.multinomial(1000, [0.012, 0.002, 0.986])
        before, after = flipped(int(c), int(b))
        caught += result(compared(report(shares(before)), report(shares(after))), "accuracy.top1").result == "worse"
        table = [[sum(before), 1000 - sum(before)], [sum(after), 1000 - sum(after)]]
        unpaired += scipy_stats.chi2_contingency(table, correction=False).pvalue < 0.05
    assert caught >= 40
    assert unpaired <= 3


def test_as_many_flips_either_way_are_no_regression() -> None:
    before, after = flipped(6, 6)
    assert result(compared(report(shares(before)), report(shares(after))), "accuracy.top1").result == "undecided"
    before, after = flipped(2, 2, 9000, 10_000)
    assert result(compared(report(shares(before)), report(shares(after))), "accuracy.top1").result == "equivalent"


def test_the_same_answers_are_never_better_or_worse() -> None:
    for items in (7, 64, 2000):
        before, _ = flipped(0, 0, items - 3, items)
        found = result(compared(report(shares(before)), report(shares(before))), "accuracy.top1")
        assert found.result == ("equivalent" if items == 2000 else "undecided")


def test_the_confidence_is_shared_by_the_accuracies() -> None:
    before, after = flipped(*FLIPS)
    second = shares([1.0] * 1000, "agreement.class")
    one = compared(report(shares(before), second), report(shares(after), second))
    assert result(one, "accuracy.top1").confidence == pytest.approx(0.975)


def test_a_recovery_and_the_least_cosine_are_left_out() -> None:
    before, _ = flipped(0, 0)
    rows = (shares(before), shares(before, "accuracy.top1.recovery"), row("embedding.cosine.min", 0.9))
    assert [r.name for r in compared(report(*rows), report(*rows)).rows] == ["accuracy.top1"]


# ---- times


def rerun(random: np.random.Generator, rounds: int, slower: float = 0.0) -> Timed:
    """The same work twice in turns: noise that lasts for some rounds and hits both, noise of each, now and then a hiccup."""
    machine = np.zeros(rounds)
    for i in range(1, rounds):
        machine[i] = 0.7 * machine[i - 1] + 0.03 * random.standard_normal()
    both = []
    for factor in (1.0, 1.0 + slower):
        own = np.zeros(rounds)
        for i in range(1, rounds):
            own[i] = 0.5 * own[i - 1] + 0.03 * random.standard_normal()
        hiccups = 1 + 0.5 * (random.random(rounds) < 0.03)
        both.append(tuple(8 * factor * np.exp(machine + own) * hiccups))
    if slower:
        return Timed({"latency.decode": (both[0], both[1])})
    return Timed({"latency.decode": (both[0], both[1]), "latency.ttft": (both[1][::-1], both[0][::-1])})


@pytest.mark.slow
def test_a_rerun_of_the_same_artifact_is_flagged_no_more_often_than_stated() -> None:
    """100 repeats with autocorrelated noise, accuracy identical: at most 5 % may be called worse, or better."""
    random = np.random.default_rng(11)
    before, _ = flipped(0, 0)
    one = report(shares(before))
    found = [compared(one, one, rerun(random, 60)) for _ in range(100)]
    worse = sum(any(r.result == "worse" for r in c.rows) for c in found)
    either = sum(any(r.result in ("worse", "better") for r in c.rows) for c in found)
    assert worse <= 5
    assert either <= 5
    assert sum(r.result == "equivalent" for c in found for r in c.rows if r.kind == "time") >= 150, "and it says so"


def test_an_engine_that_is_slower_is_caught() -> None:
    random = np.random.default_rng(12)
    one = report()
    caught = sum(compared(one, one, rerun(random, 60, slower=0.08)).exit_code == 4 for _ in range(20))
    assert caught >= 18


def test_times_of_two_runs_are_undecided() -> None:
    a, b = (report(row("latency.decode.p50_ms", value, raw=(value,) * 99)) for value in (1.0, 9.0))
    one = compared(a, b)
    assert (one.result, one.exit_code) == ("undecided", 0)
    assert result(one, "latency.decode.p50_ms").why.startswith("timed in two runs, not in turns")
    assert compared(a, b, undecided="fail").exit_code == 4


def test_too_few_rounds_are_undecided() -> None:
    one = compared(report(), report(), Timed({"latency.infer": ((1.0,) * 3, (9.0,) * 3)}))
    assert result(one, "latency.infer").why == "a ratio needs 6 rounds in turns, 3 were taken"


# ---- size, memory, receipt, differences


@pytest.mark.parametrize(
    ("size", "wanted"), [(7.5, "equivalent"), (7.53, "equivalent"), (7.6, "worse"), (7.0, "better")]
)
def test_sizes_are_decided_exactly(size: float, wanted: str) -> None:
    one = compared(report(row("size_mib", 7.5)), report(row("size_mib", size)))
    assert result(one, "size_mib").result == wanted
    assert one.exit_code == (4 if wanted == "worse" else 0)


def test_a_layer_that_falls_back_is_worse() -> None:
    def receipt(ok: bool) -> tuple[ReceiptRow, ...]:
        return (ReceiptRow(layer="layers.0.qkv", asked="int8", realised="int8" if ok else "half", ok=ok),)

    one = compared(report(receipt=receipt(True)), report(receipt=receipt(False)))
    assert (one.result, result(one, "receipt.not_realised").change) == ("worse", 1)
    assert compared(report(receipt=receipt(False)), report(receipt=receipt(True))).result == "better"


def test_memory_of_another_machine_is_undecided() -> None:
    a = report(row("memory.peak_mib", 90.0))
    b = report(row("memory.peak_mib", 91.0), machine=a.machine.model_copy(update={"title": "b CPU"}))
    assert result(compared(a, b), "memory.peak_mib").why == (
        "another machine: a CPU, 2 cores, GPU: none there, b CPU, 2 cores, GPU: none here"
    )


def test_what_else_differs_is_listed() -> None:
    kernels = (KernelRow(profile="decode", kernels=62),)
    b = report(
        recipe="passes:\n- quantize: {format: int4}\nmetrics:\n- classification: {}\n", versions={"torch": "2.14"},
        kernels=kernels, engine_tool="onnxruntime 1.31", target="l4",
    )  # fmt: skip
    assert compared(report(), b).differences == (
        "target: host → l4",
        "runtime: none → onnxruntime 1.31",
        "recipe passes.quantize.format: int8 → int4",
        "torch: 2.13 → 2.14",
        "kernels of decode: none → 62",
    )


def test_the_same_bytes_are_equivalent_whatever_the_samples_show() -> None:
    before, _ = flipped(0, 0, 60, 64)
    one = compare_reports(report(shares(before)), report(shares(before)), Timed(), Options(), identical=True)
    assert result(one, "accuracy.top1").result == "equivalent"
    assert one.notes == ("both hold the same engine, byte for byte",)


# ---- the rule, margins


@pytest.mark.parametrize(
    ("low", "high", "inner", "better", "wanted"),
    [
        (-0.001, 0.001, (-0.0008, 0.0008), "lower", "equivalent"),
        (0.0005, 0.002, (0.0007, 0.0018), "lower", "equivalent"),
        (0.002, 0.02, (0.003, 0.018), "lower", "worse"),
        (0.002, 0.02, (0.003, 0.018), "higher", "better"),
        (-0.02, -0.002, (-0.018, -0.003), "higher", "worse"),
        (-0.002, 0.02, (0.0, 0.018), "lower", "undecided"),
    ],
)
def test_the_rule(low: float, high: float, inner: tuple[float, float], better: Any, wanted: str) -> None:
    assert decide(Evidence((low + high) / 2, low, high), inner, 0.005, better)[0] == wanted


def test_margins_go_by_number_then_kind() -> None:
    found = parse_margins(["time=3%", "accuracy.top1=0.01"])
    assert found == {"time": Amount(3, True), "accuracy.top1": Amount(0.01)}
    before, after = flipped(*FLIPS)
    lenient = compared(report(shares(before)), report(shares(after)), margins=parse_margins(["share=0.05"]))
    assert result(lenient, "accuracy.top1").result == "equivalent"
    for text, told in (
        ("time", "wants NAME=AMOUNT"),
        ("time=x", "wants NAME=AMOUNT"),
        ("tim=3%", "did you mean 'time'?"),
    ):
        with pytest.raises(RecipeError) as caught:
            parse_margins([text])
        assert told in str(caught.value)


def test_every_accuracy_has_a_kind_and_every_kind_a_reason() -> None:
    names = [
        name
        for word in part_names("metrics")
        if (cls := part_named("metrics", word, Metric)).needs_data
        for name in cls.measurement_names()
        if not name.endswith(".recovery") and name != "perplexity"
    ]
    assert [name for name in names if kind_of(name).name == "other"] == []
    assert all(row.why for row in KINDS.values())


# ---- the verb, with reports in files


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    from openclaw_opt.report import report_json

    def written(name: str, one: Report) -> str:
        file = tmp_path / f"{name}.json"
        file.write_text(report_json(one))
        return str(file)

    return written


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["compare", *arguments], terminal_width=80, catch_exceptions=True)


def test_the_table_at_80_columns_and_its_exit_code(write: Callable[..., str]) -> None:
    before, after = flipped(*FLIPS)
    a = write("a", report(shares(before), row("size_mib", 7.5)))
    b = write("b", report(shares(after), row("size_mib", 6.5)))
    done = invoke(a, b)
    assert done.exit_code == 4
    assert max(len(line) for line in done.stdout.splitlines()[2:-1]) <= 80
    assert done.stdout.splitlines()[-1] == (
        "compare int8 with int8: B is worse than A: 1 better (size_mib); 1 worse (accuracy.top1)"
    )
    assert invoke(b, a).exit_code == 4, "the size"
    assert invoke(a, a).exit_code == 0
    assert invoke(a, a, "--undecided", "fail").exit_code == 0
    few = write("few", report(shares(before[-64:])))
    assert invoke(few, few, "--undecided", "fail").exit_code == 4, "no flip of 64 does not show half a point"


def test_json_markdown_and_files_say_the_same(write: Callable[..., str], tmp_path: Path) -> None:
    before, after = flipped(*FLIPS)
    a, b = write("a", report(shares(before))), write("b", report(shares(after)))
    printed = Comparison.model_validate_json(invoke(a, b, "--json", "--output", str(tmp_path / "out")).stdout)
    assert printed == Comparison.model_validate_json((tmp_path / "out" / "comparison.json").read_text())
    text = invoke(a, b, "--markdown").stdout
    assert text.startswith("## ❌ compare int8 with int8: B is worse than A")
    assert r"| accuracy.top1 | worse | -0.0100 | 0.9000 | 0.8900 | ±0.005 |" in text
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["exit_code"] == 4


def test_the_junit_opens_in_a_reader(write: Callable[..., str], tmp_path: Path) -> None:
    before, after = flipped(*FLIPS)
    a = write("a", report(shares(before), row("size_mib", 7.5), row("latency.infer.p50_ms", 1.0)))
    b = write("b", report(shares(after), row("size_mib", 7.5), row("latency.infer.p50_ms", 1.0)))
    invoke(a, b, "--output", str(tmp_path))
    suites = junitparser.JUnitXml.fromfile(str(tmp_path / "junit.xml"))
    cases = {case.name: [type(one).__name__ for one in case.result] for suite in suites for case in suite}
    assert cases == {
        "accuracy.top1 is no worse": ["Failure"],
        "latency.infer.p50_ms is no worse": ["Skipped"],
        "size_mib is no worse": [],
    }


OTHER_DATA = {"evaluation": {"source": "digits", "samples": 99, "identities": "77"}}
OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "model": (
        {"checkpoint_files": {"x": "b" * 64}},
        f"not comparable: another checkpoint: weights of sha256 {'a' * 12}… there, {'b' * 12}… here",
    ),
    "data": ({"data": OTHER_DATA}, "not comparable: other evaluation data: samples 1000 there, 99 here"),
    "schema": (
        {"schema_version": SCHEMA_VERSION + 1},
        f"the report has schema version {SCHEMA_VERSION + 1}, and this openclaw-opt reads up to {SCHEMA_VERSION}",
    ),
}


@pytest.mark.parametrize(("changes", "told"), OTHERS.values(), ids=OTHERS)
def test_what_cannot_be_compared_is_refused(write: Callable[..., str], changes: dict[str, Any], told: str) -> None:
    a, b = write("a", report(shares([1.0] * 9))), write("b", report(shares([1.0] * 9), **changes))
    done = invoke(a, b)
    assert isinstance(done.exception, RecipeError)
    assert told in str(done.exception)


def test_no_report_and_a_truncated_one(write: Callable[..., str], tmp_path: Path) -> None:
    a = write("a", report())
    assert "there is no report here" in str(invoke(a, str(tmp_path / "none")).exception)
    (tmp_path / "cut.json").write_text(Path(a).read_text()[:200])
    assert "the report is truncated or not JSON" in str(invoke(str(tmp_path / "cut.json"), a).exception)
    assert "wants NAME=AMOUNT" in str(invoke(a, a, "--margin", "time").exception)


def test_a_baseline_of_another_model_ends_the_build_before_work(
    write: Callable[..., str], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    there = write("main", report())
    arguments = ("build", "-r", str(write_recipe()), "-o", str(tmp_path / "out"), "--cache", str(tmp_path / "cache"))
    done = CliRunner().invoke(app, [*arguments, "--baseline", there])
    assert isinstance(done.exception, RecipeError)
    assert done.exception.exit_code == 2
    assert str(done.exception).startswith(
        f"--baseline {there}: not comparable: another checkpoint: weights of sha256 aaaa"
    )
    assert not (tmp_path / "out").exists()
    none = CliRunner().invoke(app, [*arguments, "--baseline", str(tmp_path / "none")])
    assert "there is no report here" in str(none.exception)


# ---- real builds


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, corpora: dict[str, Path]) -> dict[str, Path]:
    """The tiny decoder with all in int8 and with weights alone, built by the command line."""
    from tests.conftest import RECIPE

    folder = tmp_path_factory.mktemp("compare")
    found = {}
    for name, options in (("int8", "format: int8, algorithm: max"), ("w8", "format: int8_weight_only, algorithm: max")):
        text = RECIPE.format(model=tiny_llama, **corpora).replace("format: int8, algorithm: max", options)
        text = text.replace("metrics: [perplexity, size]", "metrics: [perplexity, agreement, size]")
        (folder / f"{name}.yaml").write_text(text)
        found[name] = folder / name
        done = CliRunner().invoke(
            app, ["build", "-r", str(folder / f"{name}.yaml"), "-o", str(found[name]), "--cache", str(folder / "cache")]
        )
        assert done.exit_code == 0, done.output
    return found


@pytest.mark.slow
def test_two_real_builds_and_one_against_itself(builds: dict[str, Path], tmp_path: Path) -> None:
    a, b = str(builds["int8"]), str(builds["w8"])
    one = Comparison.model_validate_json(invoke(a, b, "--json", "--seconds", "1").stdout)
    found = {row.name: row for row in one.rows}
    assert set(found) == {
        "bits_per_byte", "agreement.top1", "kl.mean", "latency.ttft", "latency.decode", "size_mib", "receipt.not_realised"
    }  # fmt: skip
    assert found["kl.mean"].evidence == "paired bootstrap over 8 items"
    assert found["latency.decode"].evidence.endswith("rounds in turns, paired block bootstrap")
    assert "recipe passes.quantize.format: int8 → int8_weight_only" in one.differences
    copy = shutil.copytree(builds["int8"], tmp_path / "copy")
    flagged = 0
    for _ in range(5):
        again = Comparison.model_validate_json(invoke(a, str(copy), "--json", "--seconds", "1").stdout)
        assert "both hold the same engine, byte for byte" in again.notes
        assert {row.result for row in again.rows if row.kind != "time"} == {"equivalent"}
        flagged += any(row.result in ("worse", "better") for row in again.rows)
    assert flagged <= 2, "a rate of 5 % gives three of five once in a thousand"


@pytest.mark.slow
def test_a_build_against_a_baseline(builds: dict[str, Path], tmp_path: Path) -> None:
    folder = builds["int8"].parent
    cache = ("--cache", str(folder / "cache"), "--baseline", str(builds["int8"]))
    budgets = (
        "budgets={size_mib: {rule: '<= 0 %', against: baseline}, bits_per_byte: {rule: '<= +20 %', against: baseline}}"
    )
    same = CliRunner().invoke(
        app,
        ["build", "-r", str(folder / "int8.yaml"), "-o", str(tmp_path / "same"), *cache, "--set", budgets, "--json"],
    )
    kept = Report.model_validate_json(same.stdout)
    assert (same.exit_code, [one.result for one in kept.budgets]) == (0, ["met", "met"])
    assert kept.baseline is not None
    assert kept.baseline.name == "int8"
    shrunk = budgets.replace("'<= 0 %'", "'< -50 %'")
    missed = CliRunner().invoke(
        app, ["build", "-r", str(folder / "w8.yaml"), "-o", str(tmp_path / "missed"), *cache, "--set", shrunk]
    )
    assert missed.exit_code == 4
    suites = junitparser.JUnitXml.fromfile(str(tmp_path / "missed" / "junit.xml"))
    failed = [
        case.name for suite in suites for case in suite if any(type(r).__name__ == "Failure" for r in case.result)
    ]
    assert failed == ["size_mib < -50 % vs baseline"]
