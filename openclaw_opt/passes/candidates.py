"""What `quantize: {format: auto}` chooses among, and what the choice must keep: read and checked without torch.

A candidate is a format, or a mapping of a format and its own options; `fp16` stands for a layer that stays float. An option of
the pass itself holds for every candidate that it means something to.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import ValidationError, WithJsonSchema

from openclaw_opt.artifacts import Task
from openclaw_opt.errors import RecipeError, nearest
from openclaw_opt.formats import FORMATS, UNREALISED
from openclaw_opt.metrics import Metric, Number
from openclaw_opt.parts import part_named, part_names
from openclaw_opt.passes import Complaint, View
from openclaw_opt.recipe_grammar import RULE, holds

if TYPE_CHECKING:
    from openclaw_opt.passes.quantize import Quantize

AUTO = "auto"
FLOAT = "fp16"
OPTIONS = ("algorithm", "calibration", "percentile", "damping", "act_order", "sweeps", "alpha", "block", "per_channel")
"""Options that a candidate may have of its own; algorithm and ranges first, which decide what the others mean."""
OF_AUTO = ("candidates", "within", "minimise", "held_back")
EXAMPLE = {
    "decoder": 'within: {bits_per_byte.recovery: ">= 0.99"}',
    "encoder": 'within: {embedding.cosine.mean: ">= 0.99"}',
    "vision": 'within: {accuracy.top1.recovery: ">= 0.99"}',
}
RULES = 'e.g. ">= 0.99", "<= 0.002"'
CONFIDENCE = 0.95
HELD_BACK = 0.5
LEAST_HELD = 8
"""Sequences below which an interval at 0.95 says too little to stop at."""

_WORDS = [*FORMATS, FLOAT]
Candidates = Annotated[
    tuple[dict[str, Any], ...],
    WithJsonSchema(
        {
            "type": "array",
            "minItems": 2,
            "items": {
                "anyOf": [
                    {"enum": _WORDS},
                    {"type": "object", "properties": {"format": {"enum": _WORDS}}, "required": ["format"]},
                ]
            },
        }
    ),
]
Within = Annotated[
    dict[str, Any],
    WithJsonSchema(
        {
            "type": "object",
            "minProperties": 1,
            "additionalProperties": {
                "anyOf": [
                    {"type": "string", "pattern": f"^{RULE.pattern}$"},
                    {
                        "type": "object",
                        "properties": {
                            "rule": {"type": "string"},
                            "confidence": {"type": "number", "exclusiveMinimum": 0.5, "exclusiveMaximum": 1},
                        },
                        "required": ["rule"],
                        "additionalProperties": False,
                    },
                ]
            },
        }
    ),
]


@dataclass(frozen=True)
class Rule:
    """One line of `within`."""

    metric: str
    op: str
    bound: float
    confidence: float = CONFIDENCE

    def margin(self, value: float) -> float:
        """How far inside; negative outside, and where a strict rule is met exactly."""
        inside = value - self.bound if self.op.startswith(">") else self.bound - value
        return inside if holds(self.op, value, self.bound) else min(inside, -1e-300)

    def __str__(self) -> str:
        return f"{self.metric} {self.op} {self.bound:g}"


def read_candidates(value: Any, cls: type[Quantize]) -> tuple[dict[str, Any], ...]:
    """Each candidate as a mapping that `cls` takes. Raises RecipeError for the first that it does not."""
    if not isinstance(value, (list, tuple)):
        raise RecipeError(f"candidates: wants a list of formats; got {value!r}", fix="candidates: [int4, int8, fp16]")
    return tuple(_read(item, cls) for item in value)


def _read(item: Any, cls: type[Quantize]) -> dict[str, Any]:
    made = {"format": item} if isinstance(item, str) else item
    if not isinstance(made, Mapping) or not isinstance(made.get("format"), str):
        what = f"candidates: a candidate is a format, or a mapping of a format and its options; got {item!r}"
        raise RecipeError(what, fix="candidates: [{format: int4, block: 64}, int8, fp16]")
    word = made["format"]
    for key in made:
        if key not in ("format", *OPTIONS):
            raise RecipeError(f"candidates: unknown key {key!r} of {word}", fix=nearest(str(key), ("format", *OPTIONS)))
    if word == FLOAT:
        if len(made) > 1:
            raise RecipeError(f"candidates: {FLOAT} has no options: the layer stays as it is", fix=f"- {FLOAT}")
        return dict(made)
    if word not in FORMATS and word not in UNREALISED:
        raise RecipeError(f"candidates: {word!r} is no format", fix=nearest(word, _WORDS))
    try:
        cls.model_validate_json(json.dumps(made))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        said = first["msg"][:1].lower() + first["msg"][1:]
        raise RecipeError(f"candidates: {word}: {name}: {said}; got {first.get('input')!r}") from error
    return dict(made)


def read_format(word: Any) -> Any:
    """The option as written. Raises RecipeError for a format that no runtime realises."""
    if isinstance(word, str) and word in UNREALISED:
        why, near = UNREALISED[word]
        raise RecipeError(f"format: {word} is not realised: {why}", fix=near)
    return word


def read_within(value: Any) -> dict[str, Any]:
    """Names and rules as written, each known to be one. Raises RecipeError."""
    if not isinstance(value, Mapping) or not value:
        raise RecipeError(f"within: wants a measurement and a rule; got {value!r}", fix=EXAMPLE["decoder"])
    for name, rule in value.items():
        _rule(str(name), rule)
    return dict(value)


def rules_of(within: Mapping[str, Any]) -> list[Rule]:
    """The rules of a `within` that was read."""
    return [_rule(name, rule) for name, rule in within.items()]


def _rule(name: str, given: Any) -> Rule:
    pairs = given if isinstance(given, Mapping) else {"rule": given}
    for key in pairs:
        if key not in ("rule", "confidence"):
            raise RecipeError(f"within: {name}: unknown key {key!r}", fix=nearest(str(key), ("rule", "confidence")))
    text, confidence = pairs.get("rule"), pairs.get("confidence", CONFIDENCE)
    match = RULE.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise RecipeError(f"within: {name}: a rule is a comparison with a number; got {text!r}", fix=RULES)
    if not isinstance(confidence, float) or not 0.5 < confidence < 1:
        raise RecipeError(f"within: {name}: confidence lies between 0.5 and 1; got {confidence!r}", fix="0.95")
    return Rule(name, match[1], float(match[2]), confidence)


def expanded(options: Quantize, task: Task) -> dict[str, Quantize]:
    """A short name → the candidate as a pass of its own; `fp16` is none."""
    made = [_inheriting(options, item, task) for item in options.candidates or () if item["format"] != FLOAT]
    formats = [one.format for one in made]
    return {_label(one, made, task) if formats.count(one.format) > 1 else one.format: one for one in made}


def _inheriting(options: Quantize, item: Mapping[str, Any], task: Task) -> Quantize:
    """With the pass's own options where they mean something to this format and it does not say otherwise."""
    fields: dict[str, Any] = {**item, "keep": list(options.patterns(task)), "batch_size": options.batch_size}
    for name in OPTIONS:
        if name not in item and name in _given(options):
            trial = {**fields, name: getattr(options, name)}
            if not any(one.option == name for one in _made(options, trial).option_complaints(task)):
                fields = trial
    return _made(options, fields)


def _made(options: Quantize, fields: Mapping[str, Any]) -> Quantize:
    return type(options).model_validate_json(json.dumps(fields))


def _given(options: Quantize) -> list[str]:
    """Options that the recipe sets to something else than their default."""
    return [name for name in OPTIONS if getattr(options, name) != type(options).model_fields[name].default]


def _label(one: Quantize, others: list[Quantize], task: Task) -> str:
    """What tells it apart from the other candidates of its format."""
    same = [other for other in others if other.format == one.format]
    if len({other.block_size() for other in same}) > 1:
        word = f"{one.format} block {one.block_size()}"
        if sum(other.block_size() == one.block_size() for other in same) == 1:
            return word
    own = {name: getattr(one, name) for name in OPTIONS if len({repr(getattr(other, name)) for other in same}) > 1}
    return " ".join([one.format, *(f"{name} {value}" for name, value in own.items() if value is not None)])


def complaints(options: Quantize, view: View) -> Iterator[Complaint]:
    """What of `format: auto` cannot be done, or of its options means nothing without it."""
    if options.format != AUTO:
        for name in OF_AUTO:
            if getattr(options, name) is not None:
                yield Complaint(f"{name} has no effect with format: {options.format}", name, "format: auto")
        return
    task = view.spec.task
    if any(getattr(earlier, "vocabulary", None) is not None for earlier in view.earlier):
        what = "format: auto measures against the checkpoint, whose vocabulary an earlier pass cuts"
        yield Complaint(what, "format", "quantize to one format, or leave the vocabulary whole")
    if options.within is None:
        yield Complaint("format: auto wants what the choice must keep", "format", EXAMPLE[task])
    else:
        for rule in rules_of(options.within):
            yield from _measurable(rule, task)
    yield from _candidates(options, view)
    yield from _data(options, view)
    if options.minimise == "time" and view.spec.family == "resnet":
        yield Complaint("convolutions have no roofline here", "minimise", "minimise: size")


def _candidates(options: Quantize, view: View) -> Iterator[Complaint]:
    given, task = options.candidates or (), view.spec.task
    if len(given) < 2:
        word = given[0]["format"] if given else "none"
        fix = f"format: {word}" if given and word != FLOAT else "candidates: [int4, int8, fp16]"
        yield Complaint(f"format: auto chooses among two candidates or more; there is {word}", "candidates", fix)
        return
    if sum(item["format"] == FLOAT for item in given) > 1:
        yield Complaint(f"candidate {FLOAT} is there twice", "candidates", "take one out")
    variants = expanded(options, task)
    asked = [one for item in given if item["format"] != FLOAT for one in [_inheriting(options, item, task)]]
    seen: list[Any] = []
    for one in asked:
        facts = one.decided(task)
        if facts in seen:
            yield Complaint(f"candidate {one.title_for(task)} is there twice", "candidates", "take one out")
        seen.append(facts)
    for name in _given(options):
        if all(getattr(one, name) != getattr(options, name) for one in variants.values()):
            formats = ", ".join(one.format for one in variants.values())
            yield Complaint(f"{name} has no effect with {formats}", name, "leave it out")
    for label, one in variants.items():
        for found in one.check(view):
            if found.option in ("keep", ""):
                yield found
            else:
                yield Complaint(f"candidate {label}: {found.what}", "candidates", found.fix)


def _data(options: Quantize, view: View) -> Iterator[Complaint]:
    source = view.calibration
    if source is None:
        what = "format: auto measures on calibration data, and there is none"
        yield Complaint(what, "format", "add `calibration` to `data`")
        return
    held = source.samples - fitted(source.samples, options.held_back)
    if held < LEAST_HELD:
        what = f"{held} of {source.samples} calibration samples are held back to measure the choice on, and it takes {LEAST_HELD}"
        yield Complaint(what, "held_back", "raise data.calibration.samples, or held_back")


def fitted(samples: int, share: float | None) -> int:
    """Samples that candidates are made on; the rest is held back."""
    return max(1, samples - round(samples * (HELD_BACK if share is None else share)))


def _measurable(rule: Rule, task: Task) -> Iterator[Complaint]:
    legal = accuracy_numbers(task)
    if rule.metric in legal:
        number = legal[rule.metric][1]
        if {"higher": "<", "lower": ">"}.get(number.better) == rule.op[0]:
            yield Complaint(f"{rule.metric} is better {number.better}: {rule} asks for a loss", "within", RULES)
        return
    known = {number.name for word in part_names("metrics") for number in part_named("metrics", word, Metric).numbers}  # type: ignore[type-abstract]
    what = "is not measured of calibration data" if rule.metric in known else "is no measurement"
    yield Complaint(f"within: {rule.metric!r} {what} of a {task}", "within", nearest(rule.metric, legal))


def accuracy_numbers(task: Task) -> dict[str, tuple[type[Metric], Number]]:
    """Every number that is measured of a model and data alone."""
    classes = [part_named("metrics", word, Metric) for word in part_names("metrics")]  # type: ignore[type-abstract]
    return {
        number.name: (cls, number)
        for cls in classes
        if cls.needs_data
        for number in cls.numbers
        if task in number.tasks and not number.by
    }
