"""explain: what spent a budget, and changes that are legal, ordered, and tried on calibration data alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openclaw_opt.artifacts import Measurement
from openclaw_opt.cli.progress import Silent
from openclaw_opt.errors import RecipeError
from openclaw_opt.explain.proposals import Proposal, proposals, share_to_win_back, worst_layers
from openclaw_opt.explain.show import advice, budget_lines, proposal_lines, shell
from openclaw_opt.explain.trial import Trial, legal, tried
from openclaw_opt.pipeline import build
from openclaw_opt.recipe import load_recipe
from openclaw_opt.records import BudgetRecord, LayerRecord, Report
from openclaw_opt.store import Store
from tests.test_cli import invoke
from tests.test_report import report

Write = Callable[..., Path]
METRIC = "kl.mean"


def layers(*decibels: float) -> tuple[LayerRecord, ...]:
    return tuple(
        LayerRecord(name=f"layers.{i}.qkv", format="int4", parameters=1000, output_sqnr_db=one)
        for i, one in enumerate(decibels)
    )


def missed(got: float, bound: float, **more: Any) -> Report:
    """A report whose KL budget was missed by a quantize pass with one bad layer of four."""
    one = report()
    row = Measurement(name=METRIC, value=got, unit="nat", better="lower", **more)
    budget = BudgetRecord(
        metric=METRIC, rule=f"<= {bound}", got=got, result="missed", spent_by="quantize", bound=bound, low=row.low, high=row.high
    )  # fmt: skip
    passes = [
        p.model_copy(update={"layers": layers(40, 10, 38, 42)}) if p.word == "quantize" else p for p in one.passes
    ]
    return one.model_copy(update={"budgets": (budget,), "measurements": (row,), "passes": tuple(passes)})


def settings(found: tuple[Proposal, ...]) -> list[str]:
    return [one.settings[0] for one in found]


@pytest.fixture
def recipe_file(write_recipe: Write) -> Path:
    return write_recipe(("format: int8, algorithm: max", "format: int4, algorithm: rtn, block: 32"))


def test_the_gentlest_changes_come_first_and_the_bad_layer_is_named(recipe_file: Path) -> None:
    found = proposals(missed(0.02, 0.01), load_recipe(recipe_file))
    named = settings(found)
    assert named[0] == "passes.quantize.algorithm=gptq"
    assert "passes.quantize.block=16" in named
    assert "passes.quantize.keep=[head, layers.1.qkv]" in named
    assert named.index("passes.quantize.block=16") < named.index("passes.quantize.format=int8_weight_only")
    assert all(one.budget == METRIC and one.why for one in found)


def test_a_coarse_cache_gets_more_bits_and_is_no_layer_to_keep(write_recipe: Write) -> None:
    one = missed(0.02, 0.01)
    row = LayerRecord(name="layers.0.key", format="int4", parameters=0, output_sqnr_db=1)
    passes = [p.model_copy(update={"layers": (*p.layers, row)}) if p.word == "quantize" else p for p in one.passes]
    one = one.model_copy(update={"passes": tuple(passes)})
    both = "format: int4, algorithm: rtn, block: 32, kv_cache: int4"
    found = settings(proposals(one, load_recipe(write_recipe(("format: int8, algorithm: max", both)))))
    assert found[0] == "passes.quantize.kv_cache=int8"
    assert "passes.quantize.keep=[head, layers.1.qkv]" in found
    whole = settings(
        proposals(
            one,
            load_recipe(
                write_recipe(
                    ("format: int8, algorithm: max", both.replace("kv_cache: int4", "kv_cache: int8")), name="int8"
                )
            ),
        )
    )
    assert whole[0] == "passes.quantize.kv_cache=float"
    alone = write_recipe(("format: int8, algorithm: max", "kv_cache: int4"), name="alone")
    assert settings(proposals(one, load_recipe(alone))) == ["passes.quantize.kv_cache=int8"]


def test_more_layers_stay_float_where_more_must_be_won_back(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)
    kept = [
        next(one.count("layers.") for one in settings(proposals(missed(1.0, bound), recipe)) if ".keep=" in one)
        for bound in (0.5, 0.002)
    ]
    assert kept == [1, 2]


def test_pruned_models_remove_less(write_recipe: Write) -> None:
    file = write_recipe(("- quantize: {format: int8, algorithm: max}", "- prune: {ffn: 0.5}"))
    one = missed(0.04, 0.01)
    one = one.model_copy(update={"budgets": (one.budgets[0].model_copy(update={"spent_by": "prune"}),)})
    trained, *less = settings(proposals(one, load_recipe(file)))
    assert less == ["passes.prune.allocation=sensitivity", "passes.prune.ffn=0.12"]
    passes = [part.word for part in load_recipe(file, settings=[trained]).passes]
    assert passes == ["load", "prune", "distill", "export", "fuse", "build"]
    distilled = load_recipe(file, settings=[trained])
    assert trained not in settings(proposals(one, distilled)), "it trains already"


AUTO = 'format: auto, candidates: [{format: int4, block: 16}, int8_weight_only], within: {kl.mean: {rule: "<= 0.01", confidence: 0.9}}'


def test_a_mix_is_made_stricter_and_then_gets_a_gentler_candidate(write_recipe: Write) -> None:
    file = write_recipe(("format: int8, algorithm: max", AUTO), ("samples: 8, length", "samples: 16, length"))
    found = proposals(missed(0.03, 0.02), load_recipe(file))
    assert settings(found) == [
        'passes.quantize.within={"kl.mean": {"rule": "<= 0.00666667", "confidence": 0.9}}',
        'passes.quantize.candidates=[{"format": "int4", "block": 16}, int8_weight_only, fp16]',
    ]
    assert found[0].why == "evaluation data lost 3 times what calibration data was to lose"
    assert settings(proposals(missed(0.03, -0.01), load_recipe(file))) == settings(found)[1:], (
        "nothing is less than nothing"
    )
    other = missed(0.03, 0.02).model_copy(update={"measurements": (), "budgets": ()})
    row = Measurement(name="bits_per_byte.recovery", value=0.97, unit="", better="higher")
    budget = BudgetRecord(metric=row.name, rule=">= 0.98", got=0.97, result="missed", spent_by="quantize", bound=0.98)
    other = other.model_copy(update={"measurements": (row,), "budgets": (budget,)})
    first, *_ = proposals(other, load_recipe(file))
    within = load_recipe(file, settings=first.settings).passes[1].within  # type: ignore[attr-defined]
    assert within["bits_per_byte.recovery"] == ">= 0.98"
    assert within["kl.mean"] == {"rule": "<= 0.01", "confidence": 0.9}, "what it was to keep stays"


@pytest.mark.parametrize(("metric", "minimises"), [("size.total_mb", False), ("latency.decode.p50_ms", True)])
def test_a_mix_that_is_too_large_or_slow_gets_fewer_bits(write_recipe: Write, metric: str, minimises: bool) -> None:
    auto = "format: auto, candidates: [int8_weight_only, fp16], within: {kl.mean: '<= 0.01'}"
    file = write_recipe(("format: int8, algorithm: max", auto), ("samples: 8, length", "samples: 16, length"))
    row = Measurement(name=metric, value=9.0, unit="MB", better="lower")
    budget = BudgetRecord(metric=metric, rule="<= 1", got=9.0, result="missed", spent_by="", bound=1.0)
    found = settings(
        proposals(report().model_copy(update={"measurements": (row,), "budgets": (budget,)}), load_recipe(file))
    )
    assert ("passes.quantize.minimise=time" in found) == minimises
    assert found[-1] == "passes.quantize.candidates=[int8_weight_only, fp16, uint4]"
    assert legal(
        proposals(report().model_copy(update={"measurements": (row,), "budgets": (budget,)}), load_recipe(file)), file
    )


def test_zeros_are_made_up_for_then_taken_from_the_worst_layer_then_fewer(write_recipe: Write) -> None:
    options = "{pattern: unstructured, method: wanda}"
    file = write_recipe(("- quantize: {format: int8, algorithm: max}", f"- sparsify: {options}"))
    one = missed(0.02, 0.01)
    passes = [p.model_copy(update={"word": "sparsify"}) if p.word == "quantize" else p for p in one.passes]
    budget = one.budgets[0].model_copy(update={"spent_by": "sparsify"})
    found = proposals(one.model_copy(update={"budgets": (budget,), "passes": tuple(passes)}), load_recipe(file))
    assert settings(found) == [
        "passes.sparsify.method=sparsegpt",
        "passes.sparsify.keep=[head, layers.1.qkv]",
        "passes.sparsify.ratio=0.25",
    ]
    assert found[1].why == "1 layer with the largest error stay dense: 100% of the noise that sparsify adds"


@given(st.floats(1e-6, 1.0), st.floats(1e-6, 1.0))
def test_the_share_to_win_back_is_that_of_the_loss(got: float, bound: float) -> None:
    one = missed(got, bound)
    share = share_to_win_back(one.budgets[0], one.measurements[0], one)
    assert 0 <= share <= 1
    assert got * (1 - share) == pytest.approx(min(got, bound))  # the reference's own KL is zero


def test_too_little_evidence_asks_for_samples_and_a_missing_number_for_nothing(write_recipe: Write) -> None:
    recipe = load_recipe(write_recipe())
    one = missed(0.0100, 0.0105, low=0.009, high=0.011)
    undecided = one.budgets[0].model_copy(update={"result": "undecided"})
    found = proposals(one.model_copy(update={"budgets": (undecided,)}), recipe)
    assert settings(found) == ["data.evaluation.samples=32"]  # half width 0.001, distance 0.0005: four times 8
    empty = Measurement(name=METRIC, value=None, unit="nat", better="lower", not_measured="no NVIDIA GPU")
    nothing = one.model_copy(
        update={"measurements": (empty,), "budgets": (undecided.model_copy(update={"got": None}),)}
    )
    assert proposals(nothing, recipe) == ()
    assert "measure elsewhere" in advice(nothing, (), (), Path("a"))


def test_only_legal_changes_are_proposed(recipe_file: Path) -> None:
    good = Proposal(METRIC, ("passes.quantize.block=16",), "w")
    bad = [
        Proposal(METRIC, (one,), "w") for one in ("passes.quantize.block=7", "passes.quantize.keep=[x]", "passes.x.y=1")
    ]
    assert legal([bad[0], good, *bad[1:]], recipe_file) == (good,)


def test_worst_layers_are_those_with_the_most_noise() -> None:
    ranked = worst_layers([*layers(20, 10, 30), LayerRecord(name="head", format="int4", parameters=1)])
    assert [layer.name for layer, _ in ranked] == ["layers.1.qkv", "layers.0.qkv", "layers.2.qkv"]
    assert [noise for _, noise in ranked] == pytest.approx([0.1, 0.01, 0.001])


@pytest.mark.slow
def test_trials_look_at_calibration_data_only(recipe_file: Path, tmp_path: Path, corpora: dict[str, Path]) -> None:
    kept = corpora["evaluation"].read_text()
    corpora["evaluation"].write_text("nothing here may be read\n")
    try:
        proposal = Proposal("perplexity.recovery", ("passes.quantize.block=16",), "w")
        (trial,) = tried([proposal], recipe_file, Store(tmp_path / "cache"), Silent())
    finally:
        corpora["evaluation"].write_text(kept)
    assert trial.holds
    assert trial.budgets[0].result == "met"
    assert trial.size_bytes


@pytest.mark.slow
def test_what_cannot_be_built_is_said_and_the_others_go_on(recipe_file: Path, tmp_path: Path) -> None:
    wrong = Proposal("perplexity.recovery", ("passes.quantize.block=48",), "w")
    good = Proposal("perplexity.recovery", ("passes.quantize.block=16",), "w")
    first, second = tried([wrong, good], recipe_file, Store(tmp_path / "cache"), Silent())
    assert "no runtime has blocks of 48" in first.failed
    assert not first.holds
    assert second.holds
    with pytest.raises(RecipeError, match="no calibration data"):
        list(tried([good], _without_calibration(recipe_file), Store(tmp_path / "cache"), Silent()))


def _without_calibration(file: Path) -> Path:
    other = file.with_name("bare.yaml")
    other.write_text("".join(line for line in file.read_text().splitlines(True) if "calibration:" not in line))
    return other


@pytest.mark.slow
def test_the_verb_explains_tries_and_says_what_to_run(recipe_file: Path, tmp_path: Path) -> None:
    text = recipe_file.read_text().replace("[perplexity, size]", "[agreement, size]")
    recipe_file.write_text(text.replace('perplexity.recovery: ">= 0.5"', 'kl.mean: "<= 1e-9"'))
    cache, out = tmp_path / "cache", tmp_path / "out"
    assert build(load_recipe(recipe_file), store=Store(cache), output=out, hooks=Silent()).exit_code == 4
    printed = invoke("explain", str(out)).splitlines()
    assert printed[0].startswith("missed: kl.mean: wanted <= 1e-9, got ")
    assert printed[0].endswith("spent by quantize")
    assert any("1. --set" in line for line in printed)
    assert printed[-1] == f"tiny: expected, not measured; try them: openclaw-opt explain {out} --try"
    told = json.loads(invoke("explain", str(out), "--json", "--try", "--most", "1", "--cache", str(cache)))
    assert [trial["holds"] for trial in told["trials"]] == [False]
    assert told["trials"][0]["budgets"][0]["got"] > 0
    (out / "recipe.resolved.yaml").unlink()
    with pytest.raises(RecipeError, match=r"holds no recipe\.resolved\.yaml"):
        invoke("explain", str(out))


def test_a_build_within_its_budgets_has_nothing_to_explain() -> None:
    one = report().model_copy(
        update={"budgets": tuple(b.model_copy(update={"result": "met"}) for b in report().budgets)}
    )
    assert budget_lines(one) == []
    assert "nothing to explain: every budget is met" in advice(one, (), (), Path("a"))


def test_the_first_that_holds_is_the_advice() -> None:
    one = missed(0.02, 0.01)
    found = tuple(
        Proposal(METRIC, (setting,), "why", "price") for setting in ("a=[x, y]", "passes.quantize.format=int8")
    )
    held = Trial(found[1], (one.budgets[0].model_copy(update={"result": "met"}),), 5)
    trials = [Trial(found[0], failed="it broke"), held]
    lines = proposal_lines(found, trials)
    assert lines[0] == "1. --set 'a=[x, y]'"
    assert "   tried: could not be built: it broke" in lines
    assert "--set passes.quantize.format=int8 -o out" in advice(one, found, trials, Path("out"))
    assert shell("a=b") == "a=b"


def test_a_build_from_its_resolved_recipe_keeps_its_name(recipe_file: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    other = tmp_path / "mine" / "recipe.resolved.yaml"
    other.write_text(recipe_file.read_text())
    assert load_recipe(other).name == "mine"
