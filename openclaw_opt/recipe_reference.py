"""docs/recipe.md, made from the models that read a recipe, so that the page cannot say anything else than they do.

    python -m openclaw_opt.recipe_reference > docs/recipe.md

Types, defaults, legal words and ranges come from the models' JSON Schema, meanings from the docstrings under the fields,
figures from the rows of the tables. The test `tests/test_docs.py` fails when the page lags.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel

from openclaw_opt.data import Source, source_class, source_names
from openclaw_opt.errors import BudgetMissed, MachineError, OptError, RecipeError, VerificationError
from openclaw_opt.field_docs import described, nested
from openclaw_opt.formats import FORMATS, Format
from openclaw_opt.metrics import Metric, Number
from openclaw_opt.parts import part_named, part_names
from openclaw_opt.passes import Pass
from openclaw_opt.passes.quantize import ALGORITHMS
from openclaw_opt.presets import PRESETS
from openclaw_opt.recipe_grammar import BudgetChoice, DataSection, Grammar, TargetChoice
from openclaw_opt.schema_words import words_of
from openclaw_opt.targets import HOST, TARGETS, TERA, Target, formats_of

INTERRUPTED = 130
ORDER = ("load", "prune", "quantize", "export", "fuse", "build")
"""Passes in the order of a pipeline; others follow by name."""

HEAD = """\
# The recipe

<!-- Made by `python -m openclaw_opt.recipe_reference > docs/recipe.md`. Do not edit: edit the docstrings it is made from. -->

A recipe is a YAML file that says what to build and what it has to be worth. It is data: no code, no dotted import paths.
`openclaw-opt check --recipe FILE` finds every mistake at once, each with its line and the nearest legal word;
`openclaw-opt list` prints the words; [recipe.schema.json](recipe.schema.json) is the same grammar for editors.

```yaml
model: ../examples/tiny-llama
target: l4
data:
  calibration: {source: python-stdlib, split: calibration, samples: 64, length: 256}
  evaluation:  {source: python-stdlib, split: evaluation, samples: 64, length: 256}
passes:
  - quantize: {format: int8, algorithm: smoothquant}
  - export
  - fuse
  - build: {batch: [1, 1, 8], prompt: [1, 128, 512]}
metrics: [perplexity, latency, size]
budgets:
  perplexity.recovery: ">= 0.98"
```

An unknown key is an error everywhere. Values are strict: `"4"` is no integer. `1e-3` is a number. A path is relative to the
file that names it.
"""

EXTENDS = """\
## Extending and overriding

`extends: other.yaml` reads another recipe first. Mappings are merged key by key, everything else is replaced; chains are
allowed, circles are not.

On the command line `--set PATH=VALUE` replaces one value, and may be repeated. The value is YAML. `passes.NAME.OPTION` and
`metrics.NAME.OPTION` find the item by its name, with or without options. `--model` and `--target` replace those two; a model
folder that exists is found from the working folder. What a build really did, with every default, is
`recipe.resolved.yaml` in its output folder; that file is a recipe too.

    openclaw-opt check --recipe recipes/int8-cpu.yaml --set passes.quantize.format=int4 --set passes.quantize.algorithm=awq
"""

BUDGETS = """\
## Budgets

A budget is a measurement's name and a comparison with a number: `>=`, `<=`, `>` or `<`. The measurement must be one that the
recipe's metrics give; otherwise the recipe is refused. As a mapping it says more:

```yaml
budgets:
  perplexity.recovery: ">= 0.98"
  bits_per_byte: {rule: "<= +1 %", against: checkpoint}
  size_mib: {against: baseline}                                # no worse; a size has no interval and is decided exactly
  kl.mean: {rule: "<= 0.002", confidence: 0.99}
  agreement.top1: {against: baseline, margin: 0.005, undecided: pass}
  latency.decode.p50_ms: {against: baseline, tolerance: "10 %"}
  preset: mlperf-99
```
"""

RESULTS = """\
`against: checkpoint` needs a number that the checkpoint has too; `against: baseline` needs `openclaw-opt build --baseline
FOLDER` (or a `report.json`). The baseline is no key of the recipe: where an earlier build lies is a matter of the machine,
and a recipe says the same everywhere. A baseline of another checkpoint ends the build before any work, with exit code 2. One
with other evaluation data (for accuracy) or of another machine (for time and memory) leaves the budgets on those undecided.

What decides is the interval at the budget's confidence, not the value:

| result | when |
|---|---|
| met | the whole interval keeps the rule |
| missed | no part of it does; the report names the pass that spent it, and that pass's worst layers |
| undecided | the interval reaches over the bound, there are too few samples, the number was not measured, or it cannot be \
compared. `undecided: fail` counts it as missed, `undecided: pass` lets it through |

A percentile of latency is met only if so few samples are over the limit that the true percentile is under it at the
budget's confidence, and missed only if so many are over it that it is not; how many that takes is in
[metrics.md](metrics.md#deciding). A missed budget outweighs an unfinished engine, which outweighs an undecided budget.
"""


def recipe_reference() -> str:
    """The whole page, Markdown, ending with a newline."""
    return "\n".join(
        [HEAD, *_top(), EXTENDS, *_passes(), *_sources(), *_metrics(), *_budgets(), *_tables(), *_exit_codes()]
    )


def _top() -> list[str]:
    return [
        "## Keys of a recipe\n",
        *_options(Grammar, inner=False),
        "### `target` as a mapping\n",
        *_options(TargetChoice),
        "### `data`\n",
        "Sources are listed [below](#data-sources). Calibration and evaluation may share no document; `check` looks.\n",
        *_options(DataSection),
    ]


def _passes() -> list[str]:
    """One section a pass."""
    words = part_names("passes")
    lines = [
        "## Passes\n",
        "A pass takes one kind of artifact and gives the next: Checkpoint → Model → Graph → Engine; a wrong order is refused. "
        "`exact` passes are verified on a probe batch and fail the build when outputs differ; after `lossy` ones the loss is "
        "measured.\n",
    ]
    for word in [*(w for w in ORDER if w in words), *(w for w in words if w not in ORDER)]:
        cls = part_named("passes", word, Pass)
        lines += [
            f"### `{word}`\n",
            f"{cls.takes().__name__} → {cls.gives().__name__}, {cls.kind}. {_sentence(cls.summary)}\n",
            *_paragraphs(cls),
            *_options(cls),
        ]
    return lines


def _sources() -> list[str]:
    """One section a data source."""
    lines = [
        "## Data sources\n",
        "`calibration: {source: WORD, …}`; the word alone does where no option is required.\n",
    ]
    for word in source_names():
        cls: type[Source] = source_class(word)
        needs = f" Needs `pip install {' '.join(cls.packages.values())}`." if cls.packages else ""
        splits = ", ".join(f"`{split}`" for split in cls.splits) or "any word the data set has"
        lines += [f"### `{word}`\n", f"Holds {cls.kind}. Splits: {splits}.{needs}\n", *_paragraphs(cls), *_options(cls)]
    return lines


def _metrics() -> list[str]:
    """One section a metric; the exact definitions are in docs/metrics.md."""
    lines = [
        "## Metrics\n",
        "Each gives the measurements of its table, for the tasks named; budgets use these names. Exact definitions: "
        "[metrics.md](metrics.md).\n",
    ]
    for word in part_names("metrics"):
        cls = part_named("metrics", word, Metric)
        where = " Measured on the evaluation data, after every lossy pass too." if cls.needs_data else ""
        lines += [f"### `{word}`\n", f"{_sentence(cls.summary)}{where}\n", *_numbers(cls.numbers), *_options(cls)]
    return lines


def _budgets() -> list[str]:
    """The forms, the keys of the mapping, the results, the presets."""
    rows = [
        [f"[`{row.name}`]({row.source})", "; ".join(f"`{metric}` {rule}" for metric, rule in row.rules.items())]
        for row in PRESETS.values()
    ]
    return [
        BUDGETS,
        *_options(BudgetChoice),
        RESULTS,
        "### Presets\n",
        "A preset stands for those of its rules that the recipe's metrics measure. A budget of the same name beside it "
        "replaces the preset's.\n",
        *_table(["preset", "rules"], rows),
    ]


def _numbers(numbers: Iterable[Number]) -> list[str]:
    rows = [[f"`{one.name}`", one.unit or "–", one.better, ", ".join(one.tasks), one.meaning] for one in numbers]
    return _table(["measurement", "unit", "better", "tasks", "meaning"], rows)


def _tables() -> list[str]:
    return [
        "## Number formats\n",
        "Bits count the scales of blocks. The compute capability is the least with which TensorRT realises the format.\n",
        *_table(
            ["format", "what", "weight", "activation", "bits", "block", "TensorRT from", "runtimes", "algorithms"],
            [_format_row(row) for row in FORMATS.values()],
        ),
        "## Targets\n",
        "Memory and bandwidth are the vendor's figures (10^9 bytes), rates dense tera-operations per second. Prices are on-demand "
        f"prices of one card, to be replaced by yours: `target: {{name: l4, hourly_usd: 0.55}}`. `{HOST}` is this machine.\n",
        *_table(
            ["target", "card", "SM", "GB", "GB/s", "fp16", "int8", "fp8", "fp4", "link", "built by", "$/h", "formats"],
            [_target_row(row) for row in TARGETS.values()],
        ),
        "`tensorrt_rtx` builds on any machine, without a GPU. `tensorrt` builds on the GPU it builds for: elsewhere a build ends "
        "with the verified graph, exit code 3 and the command that finishes it on that GPU's host.\n",
    ]


def _format_row(row: Format) -> list[str]:
    return [
        f"[`{row.name}`]({row.source})",
        row.title,
        row.weight,
        row.activation or "–",
        f"{row.bits_per_weight():g}",
        str(row.block or "–"),
        f"{row.compute[0]}.{row.compute[1]}" if "tensorrt" in row.backends else "–",
        ", ".join(row.backends),
        ", ".join(ALGORITHMS.get(row.name, ())),
    ]


def _target_row(row: Target) -> list[str]:
    rates = [f"{row.peak[rate] / TERA:g}" if rate in row.peak else "–" for rate in ("fp16", "int8", "fp8", "fp4")]
    price = "–" if row.hourly_usd is None else f"{row.hourly_usd:.2f}"
    bandwidth = "–" if row.bandwidth is None else f"{row.bandwidth / 1e9:g}"
    facts = [f"[{row.title}]({row.source})", f"{row.compute[0]}.{row.compute[1]}", f"{row.memory / 1e9:g}", bandwidth]
    formats = ", ".join(formats_of(row, row.backend))
    return [f"`{row.name}`", *facts, *rates, row.interconnect[0], row.module, price, formats]


def _exit_codes() -> list[str]:
    errors: tuple[type[OptError], ...] = (RecipeError, MachineError, BudgetMissed, VerificationError)
    rows = [["0", "Built, and no budget was missed."]]
    rows += [[str(cls.exit_code), " ".join((cls.__doc__ or "").split())] for cls in errors]
    rows += [
        [str(OptError.exit_code), "A bug: anything else, with its traceback."],
        [str(INTERRUPTED), "Interrupted. Whole passes are kept: the same command goes on from there."],
    ]
    return ["## Exit codes\n", *_table(["code", "meaning"], rows)]


def _options(cls: type[BaseModel], *, inner: bool = True) -> list[str]:
    """The table of a model's fields, with those of mappings in it or without."""
    schema = described(cls).model_json_schema()
    required = schema.get("required", [])
    rows = [
        [
            f"`{name}`",
            words_of(field),
            "required" if name in required else _default(field),
            field.get("description", ""),
        ]
        for name, field in schema["properties"].items()
    ]
    for name, mapping in (nested(cls) if inner else {}).items():
        fields = described(mapping).model_json_schema()["properties"]
        at = next(i for i, row in enumerate(rows) if row[0] == f"`{name}`") + 1
        rows[at:at] = [
            [f"`{name}.{one}`", words_of(field), _default(field), field.get("description", "")]
            for one, field in fields.items()
        ]
    return _table(["option", "type", "default", "meaning"], rows) if rows else ["It has no options.\n"]


def _default(field: dict[str, Any]) -> str:
    value = field.get("default")
    if value is None or value in ("", {}, []) or "$ref" in field:
        return "–"
    return f"`{json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value}`"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, and an empty one."""
    lines = [_row(head), _row(["---"] * len(head)), *(_row(row) for row in rows)]
    return ["\n".join(lines) + "\n"]


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in cells)} |"


def _paragraphs(cls: type[Any]) -> list[str]:
    """The class's docstring, a paragraph a line."""
    return [" ".join(part.split()) + "\n" for part in (cls.__doc__ or "").strip().split("\n\n")]


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}".rstrip(".") + "."


if __name__ == "__main__":
    sys.stdout.write(recipe_reference())
