"""Reading a recipe: every mistake at once, each with its line, the value, what is legal and the nearest word."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from openclaw_opt import recipe_mistakes
from openclaw_opt.errors import OptError, RecipeError
from openclaw_opt.metrics import Metric
from openclaw_opt.parts import part_named, part_names
from openclaw_opt.passes import Pass
from openclaw_opt.plan import check_recipe
from openclaw_opt.recipe import Recipe, load_recipe, resolved_yaml
from openclaw_opt.recipe_grammar import BudgetChoice

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))
Write = Callable[..., Path]


def mistakes(file: Path, *settings: str) -> list[str]:
    """Every mistake as `line: sentence | fix`; the line is that of the file, or the option."""
    with pytest.raises(RecipeError) as caught:
        check_recipe(load_recipe(file, settings=settings))
    found = caught.value.mistakes or (caught.value,)
    return [_told(one, file) for one in found]


def _told(error: OptError, file: Path) -> str:
    place = error.where.removeprefix(f"{file}:")
    return f"{place}: {error.what}" + (f" | {error.fix}" if error.fix else "")


def line_of(file: Path, text: str) -> int:
    return next(i for i, line in enumerate(file.read_text().splitlines(), 1) if text in line)


def test_every_mistake_of_a_file_is_found_in_one_pass(write_recipe: Write) -> None:
    file = write_recipe(
        ("description:", "descriptoin:"),
        ("target: host", "target: rtx4009"),
        ("format: int8", "format: int9"),
        ("  - export\n", "  - exprot\n"),
        ("metrics: [perplexity, size]", "metrics: [perplexty, size]"),
        ('">= 0.5"', '"at least 0.5"'),
    )
    found = mistakes(file)
    assert [one.split(":")[0] for one in found] == ["1", "3", "8", "9", "12", "14"]
    assert "unknown key 'descriptoin' | did you mean 'description'?" in found[0]
    assert "unknown target 'rtx4009' | did you mean 'rtx4090'?" in found[1]
    assert "format: 'int9' is not legal | did you mean 'int8'?" in found[2]
    assert "unknown pass 'exprot' | did you mean 'export'?" in found[3]
    assert "unknown metric 'perplexty' | did you mean 'perplexity'?" in found[4]
    assert "a budget is a comparison with a number; got 'at least 0.5'" in found[5]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("algorithm: max", "algoritm: max"), "unknown key 'algoritm' | did you mean 'algorithm'?"),
        (("samples: 8,", "samples: four,"), "samples"),
        (("samples: 8,", "samples: 0,"), "greater than 0"),
        (("evaluation:  {source: text,", "evaluation:  {source: txt,"), "unknown data source 'txt' | did you mean 'text'?"),
        (("  - build\n", "  - build: 3\n"), "the options of 'build' are a mapping; got 3"),
        (("perplexity.recovery:", "perplexity.recovry:"), "did you mean 'perplexity.recovery'?"),
        (("target: host", "target: {name: l4, hourly_usd: -1}"), "greater than 0"),
        (("target: host", "target: []"), "`target` is an empty list"),
        (("target: host", "target: [l4, l4]"), "target 'l4' is named twice"),
        (("target: host", "target: [l4, h100-sxm]"), "one job has one builder: l4 is built by tensorrt_rtx, h100-sxm by tensorrt"),
        (("target: host", "target: [rtx4090, host]"), "rtx4090 is built by tensorrt_rtx, host by onnxruntime"),
        (("target: host", "target: [h100-sxm, h200]"), "tensorrt builds for one target a job, not for h100-sxm and h200"),
        (("  - export\n", ""), "takes a Graph, but `quantize` before it gives a Model"),
        (("  - fuse\n  - build\n", "  - build\n  - fuse\n"), "takes a Graph, but `build` before it gives a Engine"),
        (("{format: int8, algorithm: max}", "{format: int8, algorithm: max, alpha: 0.5}"), "alpha has no effect with max"),
        (("{format: int8, algorithm: max}", "{format: fp8}"), "onnxruntime does not realise fp8"),
        (("  - build\n", "  - build: {prompt: [1, 8, 16]}\n"), "`prompt` has no effect on onnxruntime"),
        (("  - fuse\n", "  - fuse: {context: 4096}\n"), "context 4096 is more than the 64 tokens"),
        (("  - fuse\n", "  - fuse: {accuracy_level: 4}\n"), "`accuracy_level` only changes weight-only formats"),
        (("algorithm: max", "keep: [layers.9.*]"), "layers.9.*"),
        (("  - quantize:", "  - prune: {vocabulary: some}\n  - quantize:"), "vocabulary: 'some' is not legal | legal: `used` or number > 0, < 1"),
        (("  - quantize:", "  - prune: {vocabulary: 2.0}\n  - quantize:"), "vocabulary: 2.0 is not legal | legal: `used` or number"),
        (("  - quantize:", "  - prune: {to: {parametrs: 1}}\n  - quantize:"), "unknown key 'parametrs' | did you mean 'parameters'?"),
        (("  - quantize:", "  - distill: {student: {layers: x}}\n  - quantize:"), "student.layers: 'x' is not legal | legal: integer or list"),
        (("  - quantize:", "  - distill: {student: {layers: [a]}}\n  - quantize:"), "student.layers.0: input should be a valid integer; got 'a'"),
        (('">= 0.5"', '{rule: ">= 0.5", tolerance: [1]}'), "tolerance: [1] is not legal | legal: number or text"),
    ],
)  # fmt: skip
def test_one_mistake(write_recipe: Write, change: tuple[str, str], told: str) -> None:
    file = write_recipe(change)
    found = mistakes(file)
    assert len(found) == 1, found
    assert told in found[0]
    assert found[0].split(":")[0].isdigit(), "the message names the line"


@pytest.mark.parametrize("folder", ["passes", "metrics"])
def test_no_value_of_a_wrong_kind_is_passed_over(folder: str) -> None:
    base: Any = {"passes": Pass, "metrics": Metric}[folder]
    classes: list[Any] = [part_named(folder, word, base) for word in part_names(folder)]
    tried = 0
    wrong: list[Any] = [{"no such key": 1}, [{}], True, "\u2205", -1, None]
    for cls, value in itertools.product([*classes, BudgetChoice], wrong):
        for name in cls.model_fields:
            errors = [one for one in refusals(cls, {name: value}) if one["type"] != "missing"]
            places = [place for _, place in recipe_mistakes.told(cls, errors)]
            assert bool(places) == bool(errors), (cls, name, value)
            assert all(str(key).isidentifier() or key in (0, "no such key") for place in places for key in place.keys)
            assert recipe_mistakes.wanted(cls, name)
            tried += len(places)
    assert tried > 5 * len(classes)


def refusals(cls: Any, value: dict[str, Any]) -> list[Any]:
    """What pydantic says of it."""
    try:
        cls.model_validate_json(json.dumps(value), context={"folder": Path()})
    except ValidationError as error:
        return error.errors()
    except RecipeError:
        pass
    return []


def test_several_cards_are_one_job_and_each_is_checked(write_recipe: Write, tmp_path: Path) -> None:
    cards = ("target: host", "target: [rtx4090, {name: rtx3060, hourly_usd: 0.1}, l40s]")
    recipe = load_recipe(write_recipe(cards))
    assert [target.name for target in recipe.targets] == ["rtx4090", "rtx3060", "l40s"]
    assert recipe.others[0].hourly_usd == 0.1
    resolved = tmp_path / "tiny.resolved.yaml"
    resolved.write_text(resolved_yaml(recipe))
    assert load_recipe(resolved).targets == recipe.targets
    (found,) = mistakes(write_recipe(cards, ("{format: int8, algorithm: max}", "{format: fp8}")))
    assert "tensorrt does not realise fp8 on GeForce RTX 3060 12 GB: it needs compute capability 8.9" in found
    (found,) = mistakes(write_recipe(cards, ("  - build\n", "  - build: {backend: onnxruntime}\n")))
    assert "onnxruntime builds one artifact for any card, not one for each of several targets" in found
    alike = ("target: host", "target: [rtx4090, l40s]")
    (found,) = mistakes(write_recipe(alike, ("  - build\n", "  - build: {engines: each}\n")))
    assert "`engines` has no effect on targets of one compute capability" in found


def test_a_batch_over_the_profile_is_refused_before_any_work(write_recipe: Write) -> None:
    changes = (
        ("target: host", "target: rtx4090"),
        ("[perplexity, size]", "[perplexity, {latency: {batch: 8, prompt: 600}}]"),
    )
    batch, prompt = mistakes(write_recipe(*changes))
    assert "metric 'latency': batch 8 is more than the engine is built for, 4 at most" in batch
    assert "metric 'latency': prompt 600 is more than the engine is built for, 512 at most" in prompt
    wider = write_recipe(*changes, ("  - build\n", "  - build: {batch: [1, 1, 8], prompt: [1, 8, 64]}\n"))
    assert ["prompt 600 is more than" in one for one in mistakes(wider)] == [True]


def test_wrong_types_are_not_converted(write_recipe: Write) -> None:
    assert "valid number" in mistakes(write_recipe(("algorithm: max", 'alpha: "0.5", algorithm: smoothquant')))[0]


def test_formats_the_target_lacks(write_recipe: Write) -> None:
    change = ("{format: int8, algorithm: max}", "{format: fp8}")
    for target, told in (
        ("a100-80", "it needs compute capability 8.9, the target has 8.0"),
        ("rtx3060", "the target has 8.6"),
    ):
        assert told in mistakes(write_recipe(change, ("target: host", f"target: {target}")))[0]
    nvfp4 = ("{format: int8, algorithm: max}", "{format: nvfp4}")
    assert "10.0" in mistakes(write_recipe(nvfp4, ("target: host", "target: h100-sxm")))[0]


def test_blocks_the_engine_refuses(write_recipe: Write) -> None:
    change = ("{format: int8, algorithm: max}", "{format: int4, algorithm: rtn, block: 16}")
    file = write_recipe(change, ("target: host", "target: rtx3060"))
    assert mistakes(file) == ["8: quantize: TensorRT takes int4 in blocks of 32, 64, 128, not 16 | block: 32"]
    signed = ("{format: int8, algorithm: max}", "{format: int4, algorithm: rtn, calibration: signed}")
    file = write_recipe(signed, ("target: host", "target: rtx3060"))
    assert mistakes(file) == [
        "8: quantize: TensorRT takes no negative scale, which signed ranges have | calibration: mse"
    ]
    check_recipe(load_recipe(write_recipe(signed)))
    for options, said in (
        (
            "{format: int8, algorithm: max, calibration: signed}",
            "int8 has no signed calibration | legal: max, percentile, mse, entropy",
        ),
        ("{format: int4, algorithm: gptq, calibration: signed}", "gptq finds its own ranges | leave it out"),
    ):
        assert mistakes(write_recipe((signed[0], options))) == [f"8: quantize: {said}"]


def test_bfloat16_is_refused_because_it_cannot_be_verified(write_recipe: Write) -> None:
    file = write_recipe(("  - export\n", "  - export: {dtype: bfloat16}\n"), ("target: host", "target: rtx4090"))
    assert "a bfloat16 graph cannot be verified" in mistakes(file)[0]


def test_model_and_target_on_the_command_line(write_recipe: Write, tiny_llama: Path) -> None:
    file = write_recipe((str(tiny_llama), "./nowhere"))
    made = load_recipe(file, model=str(tiny_llama), target="rtx4090")
    check_recipe(made)
    assert made.model == str(tiny_llama)
    assert made.backend == "tensorrt"
    with pytest.raises(RecipeError, match="unknown target 'rtx409'"):
        load_recipe(file, model=str(tiny_llama), target="rtx409")


def test_overlapping_data_is_refused_before_work(write_recipe: Write, corpora: dict[str, Path]) -> None:
    found = mistakes(write_recipe((str(corpora["evaluation"]), str(corpora["calibration"]))))
    assert "calibration and evaluation data overlap" in found[0]
    assert "evaluate on data that no pass has seen" in found[0]


def test_duplicate_keys_and_tags(write_recipe: Write) -> None:
    assert "key 'target' stands twice" in mistakes(write_recipe(("target: host", "target: host\ntarget: l4")))[0]
    assert "a recipe is data" in mistakes(write_recipe(("target: host", "target: !!python/object:os.system x")))[0]


def test_not_yaml(tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text("model: [1, 2\ntarget: host\n")
    with pytest.raises(RecipeError, match="is not YAML") as caught:
        load_recipe(file)
    assert caught.value.where.startswith(f"{file}:")


def test_no_such_recipe_names_those_that_are(write_recipe: Write) -> None:
    file = write_recipe()
    with pytest.raises(RecipeError, match="no such recipe") as caught:
        load_recipe(file.with_name("tinny.yaml"))
    assert str(file) in caught.value.fix


def test_extends_merges_and_keeps_lines(write_recipe: Write, tmp_path: Path) -> None:
    write_recipe()
    child = tmp_path / "child.yaml"
    child.write_text("extends: tiny.yaml\ndata:\n  evaluation: {samples: 3}\nbudgets:\n  size_mib: '<= 10'\n")
    made = load_recipe(child)
    assert made.evaluation is not None
    assert made.evaluation.samples == 3
    assert made.evaluation.length == 48
    assert [budget.metric for budget in made.budgets] == ["perplexity.recovery", "size_mib"]
    child.write_text("extends: tiny.yaml\nbudgets:\n  sise_mib: '<= 10'\n")
    assert mistakes(child)[0].startswith("3: no metric of this recipe measures 'sise_mib'")


def test_extends_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(RecipeError, match=r"a\.yaml → b\.yaml → a\.yaml"):
        load_recipe(tmp_path / "a.yaml")


def test_set(write_recipe: Write) -> None:
    file = write_recipe()
    made = load_recipe(
        file, settings=["passes.quantize.format=int4", "passes.quantize.algorithm=rtn", "target=host", "seed=3"]
    )
    assert made.passes[1].model_dump()["format"] == "int4"
    assert made.seed == 3
    assert mistakes(file, "passes.quantize.fromat=int4") == [
        "--set passes.quantize.fromat=int4: unknown key 'fromat' | did you mean 'format'?"
    ]
    assert "the recipe has no 'prune' in `passes`" in mistakes(file, "passes.prune.ffn=0.1")[0]
    assert "wants path=value" in mistakes(file, "seed")[0]


def test_exponents_are_numbers(write_recipe: Write) -> None:
    made = load_recipe(write_recipe(("algorithm: max", "algorithm: smoothquant, alpha: 5e-1")))
    assert made.passes[1].model_dump()["alpha"] == 0.5


def test_load_is_put_first(write_recipe: Write) -> None:
    assert [part.word for part in load_recipe(write_recipe()).passes] == ["load", "quantize", "export", "fuse", "build"]


def test_the_resolved_recipe_loads_back_equal(write_recipe: Write, tmp_path: Path) -> None:
    made = load_recipe(write_recipe())
    again = tmp_path / "again" / "tiny.yaml"
    again.parent.mkdir()
    again.write_text(resolved_yaml(made))
    assert _content(load_recipe(again)) == _content(made)


def _content(recipe: Recipe) -> dict[str, object]:
    return {key: value for key, value in vars(recipe).items() if key not in ("file", "located")}


def test_a_missing_checkpoint(write_recipe: Write, tiny_llama: Path) -> None:
    found = mistakes(write_recipe((str(tiny_llama), "./nowhere")))
    assert found[0].startswith("2: model ")
    assert "nowhere" in found[0]


def test_an_unsupported_architecture(write_recipe: Write, tmp_path: Path) -> None:
    file = write_recipe(copy=True)
    config = tmp_path / "checkpoint" / "config.json"
    config.write_text(config.read_text().replace("LlamaForCausalLM", "LlamaForCausalLN"))
    supported = (
        "supported: BertForMaskedLM, BertModel, GPT2LMHeadModel, Gemma2ForCausalLM, Gemma3ForCausalLM, LlamaForCausalLM, "
        "MistralForCausalLM, Phi3ForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, ResNetForImageClassification, "
        "ViTForImageClassification"
    )
    told = f"architecture 'LlamaForCausalLN' is not supported | did you mean 'LlamaForCausalLM'? {supported}"
    assert mistakes(file)[0].endswith(told)
    config.write_text(config.read_text().replace("LlamaForCausalLN", "MambaForCausalLM"))
    assert mistakes(file)[0].endswith(f"architecture 'MambaForCausalLM' is not supported | {supported}"), (
        "all end alike"
    )


def test_an_uninstalled_package(write_recipe: Write, tiny_llama: Path) -> None:
    assert (
        "no installed Python package 'not_there'"
        in mistakes(write_recipe((str(tiny_llama), "package:not_there/model")))[0]
    )


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_shipped_recipes_check(file: Path) -> None:
    made = load_recipe(file)
    check_recipe(made)
    assert made.description
    assert made.budgets
    assert yaml.safe_load(resolved_yaml(made))["model"]


def test_the_recipes_of_the_issue_are_shipped() -> None:
    wanted = {
        "int8-cpu", "int4-cpu", "fp16-rtx4090", "int8-rtx4090", "fp8-l40s", "int4-rtx3060", "int8-a100", "int8-h100",
        "fp8-h100", "pruned-int8-l4", "minilm-int8-cpu", "nvfp4-rtx5090",
    }  # fmt: skip
    assert wanted <= {file.stem for file in RECIPES}


def test_check_is_quick(write_recipe: Write) -> None:
    """Imports aside, which tests/test_design.py counts: a check may not read weights."""
    file = write_recipe()
    check_recipe(load_recipe(file))
    began = time.process_time()
    check_recipe(load_recipe(file))
    assert time.process_time() - began < 0.25
