"""Budgets: how they are read, with exact messages, and how they are decided, from rows made here with known answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from openclaw_opt.artifacts import Measurement
from openclaw_opt.comparison.budgets import Case, judge_budget
from openclaw_opt.comparison.comparable import Provenance, other_model, why_not
from openclaw_opt.comparison.rows import series_of
from openclaw_opt.comparison.spending import layers_of, spender
from openclaw_opt.errors import RecipeError
from openclaw_opt.metrics import Metric, Number
from openclaw_opt.metrics.perplexity import perplexity_rows
from openclaw_opt.numerics.divergence import SequenceScore
from openclaw_opt.parts import part_named, part_names
from openclaw_opt.presets import PRESETS, preset_named
from openclaw_opt.recipe import load_recipe, resolved_yaml
from openclaw_opt.recipe_budgets import budget_of, preset_budgets
from openclaw_opt.recipe_grammar import Budget, BudgetChoice
from openclaw_opt.records import BaselineRecord, BudgetRecord, LayerRecord, PassRecord

ROOT = Path(__file__).parent.parent
NUMBERS: dict[str, Number] = {
    number.name: number for word in part_names("metrics") for number in part_named("metrics", word, Metric).numbers
}
OURS = Provenance(
    frozenset({"a" * 64}), {"source": "text", "samples": 64, "identities": "77"}, "a CPU, 2 cores", "host"
)


def budget(name: str, rule: str | None = None, **more: Any) -> Budget:
    return budget_of(name, BudgetChoice(rule=rule, **more), NUMBERS)


def row(name: str, value: float | None, **more: Any) -> Measurement:
    number = NUMBERS[name]
    return Measurement(name=name, value=value, unit=number.unit, better=number.better, **more)


def shares(right: Sequence[float], subject: str = "engine", name: str = "accuracy.top1") -> Measurement:
    ones = (1.0,) * len(right)
    return row(name, float(np.mean(right)), items=tuple(map(float, right)), weights=ones, subject=subject)


def baseline(*rows: Measurement, **changes: Any) -> BaselineRecord:
    whole: dict[str, Any] = {
        "name": "main",
        "path": "build/main",
        "started": "2026-08-23T09:14:07+00:00",
        "machine": OURS.machine,
        "target": OURS.target,
        "measurements": rows,
        "checkpoint_files": {"model.safetensors": "a" * 64},
        "evaluation": dict(OURS.evaluation),
    }
    return BaselineRecord.model_validate(whole | changes)


def judged(one: Budget, *rows: Measurement, of: BaselineRecord | None = None) -> BudgetRecord:
    return judge_budget(one, Case(rows, baseline=of, ours=OURS))


# ---- reading

SECTIONS: dict[str, dict[str, Any]] = {
    "short": {"size_mib": "<= 12"},
    "relative": {"bits_per_byte": {"rule": "<= +1 %", "against": "baseline"}},
    "no worse": {"size_mib": {"against": "baseline"}},
    "points": {"perplexity": {"rule": "<= +0.5", "against": "checkpoint", "tolerance": 0.1, "confidence": 0.9}},
    "margin": {"bits_per_byte": {"against": "baseline", "margin": "1 %", "undecided": "pass"}},
    "tolerance": {"perplexity.recovery": {"rule": ">= 0.98", "tolerance": "1 %"}},
}


def recipe_with(tmp_path: Path, budgets: Any) -> Path:
    data = yaml.safe_load((ROOT / "recipes" / "int8-cpu.yaml").read_text())
    data["model"] = str(ROOT / "examples" / "tiny-llama")
    data["budgets"] = budgets
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True))
    return file


@pytest.mark.parametrize("section", SECTIONS.values(), ids=SECTIONS)
def test_a_budget_is_read_and_written_back(tmp_path: Path, section: dict[str, Any]) -> None:
    made = load_recipe(recipe_with(tmp_path, section))
    again = tmp_path / "again.yaml"
    again.write_text(resolved_yaml(made))
    assert load_recipe(again).budgets == made.budgets
    assert [one.metric for one in made.budgets] == list(section)


MISTAKES: dict[str, tuple[Any, str]] = {
    "words": ({"speedup": "at least 2"}, "a budget is a comparison with a number; got 'at least 2'\n  fix: e.g. \">= 0.98\", \"<= 12\", \"> 2\""),
    "a number": ({"speedup": 2}, "a budget is a comparison with a number; got 2"),
    "percent": ({"size_mib": "<= +1 %"},
                "got '<= +1 %'\n  fix: {rule: \"<= +1 %\", against: baseline}, or against: checkpoint"),
    "of nothing": ({"size_mib": {"rule": "<= 1 %"}}, "'<= 1 %' is a percentage of nothing\n  fix: add `against: checkpoint` or `against: baseline`"),
    "key": ({"size_mib": {"rul": "<= 1"}}, "unknown key 'rul'\n  fix: did you mean 'rule'?"),
    "word": ({"size_mib": {"against": "base"}}, "against: 'base' is not legal\n  fix: did you mean 'baseline'?"),
    "metric": ({"sise_mib": {"against": "baseline"}}, "no metric of this recipe measures 'sise_mib'\n  fix: did you mean 'size_mib'?"),
    "checkpoint": ({"kl.mean": {"against": "checkpoint"}}, "the checkpoint has no 'kl.mean' of its own to compare with\n  fix: an absolute rule"),
    "no rule": ({"size_mib": {"confidence": 0.9}}, "a budget wants a rule\n  fix: rule: …"),
    "confidence": ({"size_mib": {"rule": "<= 1", "confidence": 1.5}}, "confidence: input should be less than 1; got 1.5"),
    "tolerance": ({"size_mib": {"rule": "<= 1", "tolerance": "much"}}, "`tolerance` wants a number that is not negative, or a percentage; got 'much'"),
    "negative": ({"size_mib": {"rule": "<= 1", "tolerance": -1}}, "`tolerance` wants a number that is not negative"),
    "both": ({"size_mib": {"rule": "<= 1", "margin": 1, "against": "baseline"}}, "`margin` and `rule` exclude each other\n  fix: keep one of them"),
    "margin": ({"size_mib": {"margin": 1}}, "a margin wants something to be equivalent to\n  fix: against: baseline"),
    "zero": ({"size_mib": {"margin": 0, "against": "baseline"}}, "nothing is shown to be within a margin of 0"),
    "preset": ({"preset": "mlperf-9"}, "unknown preset 'mlperf-9'\n  fix: did you mean 'mlperf-99'?"),
    "preset type": ({"preset": 3}, "`preset` wants a name or a list of names; got 3\n  fix: preset: mlperf-99"),
    "undecided": ({"size_mib": {"rule": "<= 1", "undecided": "passes"}}, "undecided: 'passes' is not legal\n  fix: did you mean 'pass'?"),
}  # fmt: skip


@pytest.mark.parametrize(("section", "told"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_has_its_line_and_its_remedy(tmp_path: Path, section: Any, told: str) -> None:
    file = recipe_with(tmp_path, section)
    with pytest.raises(RecipeError) as caught:
        load_recipe(file)
    assert told in str(caught.value)
    at = next(i for i, line in enumerate(file.read_text().splitlines(), 1) if line.startswith("budgets:"))
    assert all(int(one.where.rsplit(":", 1)[1]) > at for one in caught.value.mistakes)


def test_a_budget_on_another_tasks_number_is_found_before_work(tmp_path: Path) -> None:
    from openclaw_opt.plan import check_recipe

    made = load_recipe(recipe_with(tmp_path, {"latency.infer.p50_ms": "<= 3"}))
    with pytest.raises(RecipeError, match=r"'latency.infer.p50_ms' is not measured of a decoder"):
        check_recipe(made)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_row_names_numbers_and_rules_that_exist(name: str) -> None:
    found = preset_budgets(name, NUMBERS)
    assert list(found) == list(preset_named(name).rules)
    assert PRESETS[name].source.startswith("https://")


def test_a_preset_is_what_the_recipe_measures_of_it_and_gives_way(tmp_path: Path) -> None:
    made = load_recipe(recipe_with(tmp_path, {"preset": ["mlperf-99", "mlperf/llama3.1-8b/interactive"]}))
    assert {one.metric: one.text for one in made.budgets} == {
        "bits_per_byte.recovery": ">= 0.99",
        "latency.ttft.p99_ms": "<= 500",
        "latency.decode.p99_ms": "<= 30",
    }
    own = {"bits_per_byte.recovery": ">= 0.9", "preset": "mlperf-99"}
    assert [one.text for one in load_recipe(recipe_with(tmp_path, own)).budgets] == [">= 0.9"]
    with pytest.raises(RecipeError, match="no metric of this recipe measures what preset 'mlperf-99' is about"):
        preset_budgets("mlperf-99", {})


# ---- deciding: the interval, at the confidence


@pytest.mark.parametrize(
    ("rule", "result"), [(">= 0.98", "met"), (">= 0.9995", "missed"), (">= 0.9985", "undecided"), ("< 0.98", "missed")]
)
def test_the_interval_decides_and_not_the_value(rule: str, result: str) -> None:
    random = np.random.default_rng(0)
    bits, ours = random.uniform(90, 110, 64), random.normal(1.0015, 0.004, 64)
    items, weights = tuple(bits), tuple(bits * ours)
    one = row("bits_per_byte.recovery", sum(items) / sum(weights), items=items, weights=weights, low=0.9, high=1.1)
    found = judged(budget("bits_per_byte.recovery", rule), one)
    assert found.result == result
    assert found.low is not None
    assert found.high is not None
    assert 0.997 < found.low < one.value < found.high < 1.0
    assert found.confidence == 0.95
    assert found.evidence == "bootstrap over 64 items"
    if result == "undecided":
        assert found.why == f"the 95 % interval [{found.low:.6g}, {found.high:.6g}] reaches over the bound 0.9985"


def test_more_confidence_needs_more_evidence() -> None:
    random = np.random.default_rng(1)
    one = row("kl.mean", 0.01, items=tuple(random.exponential(0.01, 40)), weights=(1.0,) * 40)
    wide, narrow = (judged(budget("kl.mean", "<= 0.02", confidence=c), one) for c in (0.999, 0.8))
    assert wide.high > narrow.high
    assert judged(budget("kl.mean", "<= 0.013", confidence=0.999), one).result == "undecided"
    few = one.model_copy(update={"items": one.items[:7], "weights": one.weights[:7]})
    assert (
        judged(budget("kl.mean", "<= 1", confidence=0.99), few).why == "7 items carry no interval at 0.99: it takes 8"
    )


def test_a_size_has_no_interval_and_is_decided_exactly() -> None:
    for rule, result in (("<= 7.5", "met"), ("< 7.5", "missed"), ("<= 7.4999", "missed")):
        found = judged(budget("size_mib", rule), row("size_mib", 7.5))
        assert (found.result, found.low, found.evidence) == (result, None, "no sampling error")


def test_what_was_not_measured_is_undecided_and_named() -> None:
    found = judged(budget("speedup", ">= 2"), row("speedup", None, not_measured="no NVIDIA GPU"))
    assert (found.result, found.why, found.got, found.if_undecided) == ("undecided", "no NVIDIA GPU", None, "fail")
    assert judged(budget("speedup", ">= 2")).why == "the pipeline ended before it could be measured"


def test_a_stored_interval_is_good_for_as_much_confidence_and_no_more() -> None:
    one = row("speedup", 2.4, low=2.2, high=2.6, samples=44)
    assert judged(budget("speedup", ">= 2"), one).result == "met"
    assert judged(budget("speedup", ">= 2.5"), one).result == "undecided"
    told = judged(budget("speedup", ">= 2", confidence=0.99), one)
    assert (told.result, told.why) == ("undecided", "only its 95 % interval is kept, and 0.99 was asked for")


def test_a_share_of_all_is_not_certain() -> None:
    """64 of 64 right does not show 99 %."""
    assert judged(budget("accuracy.top1", ">= 0.99"), shares([1] * 64)).result == "undecided"
    assert judged(budget("accuracy.top1", ">= 0.99"), shares([1] * 1000)).result == "met"


def latency(samples: Sequence[float], q: int, stage: str = "decode") -> list[Measurement]:
    value = float(np.percentile(samples, q))
    first = row(f"latency.{stage}.p50_ms", float(np.median(samples)), raw=tuple(samples), samples=len(samples))
    return [first, row(f"latency.{stage}.p{q}_ms", value, low=value, high=value, samples=len(samples))]


@pytest.mark.parametrize(
    ("count", "over", "result"), [(459, 0, "met"), (458, 0, "undecided"), (459, 1, "undecided"), (662, 1, "met")]
)
def test_a_p99_is_met_only_with_the_load_generators_samples(count: int, over: int, result: str) -> None:
    random = np.random.default_rng(2)
    samples = list(random.uniform(5, 9, count - over)) + [11.0] * over
    found = judged(budget("latency.decode.p99_ms", "<= 10"), *latency(samples, 99))
    assert found.result == result, found
    if (count, over) == (458, 0):
        assert found.why == "with 0 samples over the limit p99 is shown within it by 459 at 0.99, not by 458"


def test_a_p99_over_the_limit_is_missed_when_that_is_shown() -> None:
    slow = np.random.default_rng(3).uniform(9, 14, 500)
    assert judged(budget("latency.decode.p99_ms", "<= 10"), *latency(slow, 99)).result == "missed"


# ---- deciding: against the checkpoint, against a baseline


def scores(noise: float, seed: int = 0, count: int = 48, loss: float = 0.0) -> tuple[SequenceScore, ...]:
    random, shared = np.random.default_rng(seed), np.random.default_rng(99)
    theirs = shared.uniform(300, 500, count)
    ours = theirs * (1 + loss + noise * random.standard_normal(count))
    return tuple(SequenceScore(200, float(a), float(b), 0.1, 190) for a, b in zip(ours, theirs, strict=True))


def test_perplexity_is_compared_through_the_bits_it_is_a_power_of() -> None:
    rows = perplexity_rows(scores(0.001), 40_000)
    for name in ("perplexity", "perplexity.recovery", "bits_per_byte", "bits_per_byte.recovery"):
        series = series_of(rows, name)
        assert series is not None
        whole = float(series.of(np.arange(series.count)[None])[0])
        assert whole == pytest.approx(next(r.value for r in rows if r.name == name and r.subject == "engine"), rel=1e-6)


def test_against_the_checkpoint_the_bound_moves_with_it() -> None:
    rows = perplexity_rows(scores(0.0005, loss=0.004), 40_000)
    reference = next(r.value for r in rows if r.name == "bits_per_byte" and r.subject == "reference")
    found = judged(budget("bits_per_byte", "<= +1 %", against="checkpoint"), *rows)
    assert found.result == "met"
    assert found.bound == pytest.approx(1.01 * reference)
    assert found.rule == "<= +1 % vs checkpoint"
    assert (found.low, found.high) == pytest.approx((1.004 * reference, 1.004 * reference), rel=1e-3)
    assert judged(budget("bits_per_byte", "<= +0.1 %", against="checkpoint"), *rows).result == "missed"
    assert judged(budget("bits_per_byte", "<= +0.1 %", against="checkpoint", tolerance="1 %"), *rows).result == "met"
    assert judged(budget("bits_per_byte", "<= +0.4 %", against="checkpoint"), *rows).result == "undecided"


def test_a_pair_decides_what_neither_interval_could() -> None:
    """The sequences differ by far more than the two builds: only item by item can 0.2 % be told."""
    before, after = perplexity_rows(scores(0.0003, 1), 40_000), perplexity_rows(scores(0.0003, 2, loss=0.002), 40_000)
    found = judged(budget("bits_per_byte", "<= 0 %", against="baseline"), *after, of=baseline(*before))
    assert found.result == "missed"
    assert found.evidence == "paired bootstrap over 48 items"
    alone = judged(budget("bits_per_byte", f"<= {found.bound:.9f}"), *after)
    assert alone.result == "undecided"


def test_a_margin_is_met_by_two_one_sided_tests() -> None:
    before, after = perplexity_rows(scores(0.0003, 1), 40_000), perplexity_rows(scores(0.0003, 2, loss=0.002), 40_000)
    for margin, result in (("1 %", "met"), ("0.1 %", "missed"), ("0.2 %", "undecided")):
        one = budget("bits_per_byte", against="baseline", margin=margin)
        assert judged(one, *after, of=baseline(*before)).result == result, margin
    assert str(budget("bits_per_byte", against="baseline", margin="1 %")) == "within 1 % vs baseline"


def test_flips_decide_shares() -> None:
    before = [1.0] * 900 + [0.0] * 100
    after = [0.0] * 12 + [1.0] * 888 + [1.0] * 2 + [0.0] * 98
    found = judged(budget("accuracy.top1", against="baseline"), shares(after), of=baseline(shares(before)))
    assert found.result == "missed"
    assert found.evidence == "McNemar exact p = 0.013, mid-p = 0.0074: 12 harmful and 2 beneficial flips of 1000"
    checkpoint = shares(before, "reference")
    lenient = budget("accuracy.top1", ">= -2.5 %", against="checkpoint")
    assert judged(lenient, shares(after), checkpoint).result == "met"


def test_sizes_against_a_baseline_are_exact() -> None:
    same = judged(
        budget("size_mib", "<= 0 %", against="baseline"), row("size_mib", 7.5), of=baseline(row("size_mib", 7.5))
    )
    more = judged(budget("size_mib", against="baseline"), row("size_mib", 7.6), of=baseline(row("size_mib", 7.5)))
    within = judged(
        budget("size_mib", against="baseline", tolerance="2 %"), row("size_mib", 7.6), of=baseline(row("size_mib", 7.5))
    )
    assert [one.result for one in (same, more, within)] == ["met", "missed", "met"]
    assert within.rule == "<= 0 vs baseline (tolerance 2 %)"


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "data": ("bits_per_byte", {"evaluation": {"source": "text", "samples": 32, "identities": "77"}},
             "not comparable with the baseline: other evaluation data: samples 32 there, 64 here"),
    "machine": ("latency.decode.p50_ms", {"machine": "another, 8 cores"},
                "not comparable with the baseline: another machine: another, 8 cores there, a CPU, 2 cores here"),
    "target": ("memory.peak_mib", {"target": "l4"}, "not comparable with the baseline: another target: l4 there, host here"),
    "options": ("latency.decode.p50_ms", {"metrics": {"latency": {"batch": 4, "time_box_s": 3.0}}},
                "not comparable with the baseline: other options of `latency`: batch 4 there, 1 here"),
    "no data": ("kl.mean", {"evaluation": {}},
                "not comparable with the baseline: a report does not say which evaluation data it is of"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "why"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_compared_is_undecided_and_says_why(name: str, changes: dict[str, Any], why: str) -> None:
    found = judged(budget(name, against="baseline"), row(name, 1.0), of=baseline(row(name, 1.0), **changes))
    assert (found.result, found.why) == ("undecided", why)


def test_without_a_baseline_budgets_against_one_are_undecided() -> None:
    found = judged(budget("size_mib", against="baseline", undecided="pass"), row("size_mib", 1.0))
    assert (found.result, found.why) == ("undecided", "no baseline was given: build --baseline FOLDER")
    assert found.if_undecided == "pass"


def test_a_baseline_without_items_or_the_number_is_undecided() -> None:
    rows = perplexity_rows(scores(0.001), 40_000)
    bare = [one.model_copy(update={"items": (), "weights": ()}) for one in rows]
    found = judged(budget("bits_per_byte", against="baseline"), *rows, of=baseline(*bare))
    assert found.why == "one of the two reports holds no items (an older version wrote it): build it again"
    found = judged(budget("bits_per_byte", against="baseline"), *rows, of=baseline())
    assert found.why == "the baseline's: not measured"


def test_where_a_file_lies_does_not_change_the_data() -> None:
    there = Provenance(OURS.checkpoint, {**OURS.evaluation, "path": "/x"}, OURS.machine, OURS.target)
    here = Provenance(OURS.checkpoint, {**OURS.evaluation, "path": "/y"}, OURS.machine, OURS.target)
    assert why_not("bits_per_byte", here, there) == ""
    other = Provenance(frozenset({"b" * 64}), OURS.evaluation, OURS.machine, OURS.target)
    assert other_model(OURS, other) == f"another checkpoint: weights of sha256 {'b' * 12}… there, {'a' * 12}… here"


# ---- who spent it


def test_the_layers_with_the_most_noise_are_named() -> None:
    def layer(name: str, parameters: int, output: float | None, weight: float) -> LayerRecord:
        return LayerRecord(
            name=name, format="int8", parameters=parameters, output_sqnr_db=output, weight_sqnr_db=weight
        )

    layers = (layer("a", 100, 30, 40), layer("b", 1000, 30, 40), layer("c", 100, 10, 40), layer("d", 100, None, 20))
    accuracy = (row("bits_per_byte.recovery", 0.9),)
    record = PassRecord(
        index=1, word="quantize", options={}, kind="lossy", changed="", seconds=0, peak_bytes=0, cached=False, size_bytes=0,
        accuracy=accuracy, layers=layers,
    )  # fmt: skip
    assert layers_of("quantize", [record]) == ("c", "b", "d")
    found = judge_budget(
        budget("bits_per_byte.recovery", ">= 0.98"),
        Case([row("bits_per_byte.recovery", 0.9, low=0.89, high=0.91, samples=9)], [record]),
    )
    assert (found.spent_by, found.spent_by_layers) == ("quantize", layers_of("quantize", [record]))
    assert spender("bits_per_byte.recovery", [record]) == "quantize"
    assert layers_of("prune", [record]) == ()
