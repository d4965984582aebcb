"""The JSON Schema of a recipe: made from the same models that read it, so that it cannot differ from them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from openclaw_opt.data import Source, source_class, source_names
from openclaw_opt.field_docs import described
from openclaw_opt.metrics import Metric
from openclaw_opt.parts import part_named, part_names
from openclaw_opt.passes import Pass
from openclaw_opt.presets import PRESETS
from openclaw_opt.recipe_grammar import (
    AMOUNT,
    PRESET,
    RELATIVE_RULE,
    RULE,
    BudgetChoice,
    DataSection,
    Grammar,
    TargetChoice,
)
from openclaw_opt.targets import target_names

DRAFT = "https://json-schema.org/draft/2020-12/schema"


def recipe_schema() -> dict[str, Any]:
    """Draft 2020-12; unknown keys are errors everywhere, as they are for `check`."""
    top = described(Grammar).model_json_schema()
    required = top.pop("required")
    definitions: dict[str, Any] = dict(top.pop("$defs", {}))
    for nested in (DataSection, TargetChoice, BudgetChoice):
        definitions[nested.__name__] = described(nested).model_json_schema()
    properties = top["properties"]
    properties["passes"] |= {"items": _items("passes", Pass, definitions)}
    properties["metrics"] |= {"items": _items("metrics", Metric, definitions)}
    properties["budgets"] |= _budgets(definitions["BudgetChoice"])
    sources = {"anyOf": [{"enum": list(source_names())}, *(_source(name, definitions) for name in source_names())]}
    for role in ("calibration", "evaluation", "training"):
        meaning = definitions["DataSection"]["properties"][role].get("description", "")
        definitions["DataSection"]["properties"][role] = {**sources, "description": meaning}
    definitions["TargetChoice"]["properties"]["name"] |= {"enum": target_names()}
    one = [{"enum": target_names()}, {"$ref": "#/$defs/TargetChoice"}]
    properties["target"] = {
        "anyOf": [*one, {"type": "array", "items": {"anyOf": one}, "minItems": 1}],
        "description": properties["target"].get("description", ""),
    }
    whole = {"anyOf": [{"required": ["extends"]}, {"required": required}]}  # another recipe may bring the rest
    return {"$schema": DRAFT, **top, **whole, "title": "openclaw-opt recipe", "$defs": definitions}


def _budgets(mapping: dict[str, Any]) -> dict[str, Any]:
    """The short form, a mapping, or presets; the patterns that the reader uses are put into the mapping."""
    mapping["properties"]["rule"] |= _text(RELATIVE_RULE.pattern)
    for key in ("tolerance", "margin"):
        mapping["properties"][key] |= {"anyOf": [{"type": "number", "minimum": 0}, *_text(AMOUNT.pattern)["anyOf"]]}
    name = {"enum": list(PRESETS)}
    short = {"type": "string", "pattern": f"^{RULE.pattern}$"}
    return {
        "properties": {PRESET: {"anyOf": [name, {"type": "array", "items": name}]}},
        "additionalProperties": {"anyOf": [short, {"$ref": "#/$defs/BudgetChoice"}]},
    }


def _text(pattern: str) -> dict[str, Any]:
    return {"anyOf": [{"type": "string", "pattern": f"^{pattern}$"}, {"type": "null"}]}


def _items(folder: str, base: type[Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """A bare word, or one word with its options."""
    words = part_names(folder)
    named = [_named(word, part_named(folder, word, base), folder, definitions) for word in words]
    return {"anyOf": [{"enum": words}, *named]}


def _named(word: str, cls: type[BaseModel], folder: str, definitions: dict[str, Any]) -> dict[str, Any]:
    reference = _define(f"{folder}.{word}", cls, definitions)
    nullable = {"anyOf": [reference, {"type": "null"}]}
    return {"type": "object", "properties": {word: nullable}, "required": [word], "additionalProperties": False}


def _source(word: str, definitions: dict[str, Any]) -> dict[str, Any]:
    cls: type[Source] = source_class(word)
    schema = described(cls).model_json_schema()
    definitions.update(schema.pop("$defs", {}))
    schema["properties"] = {"source": {"const": word}, **schema["properties"]}
    schema["required"] = ["source", *schema.get("required", [])]
    definitions[f"data.{word}"] = schema
    return {"$ref": f"#/$defs/data.{word}"}


def _define(name: str, cls: type[BaseModel], definitions: dict[str, Any]) -> dict[str, Any]:
    schema = described(cls).model_json_schema()
    definitions.update(schema.pop("$defs", {}))
    definitions[name] = schema
    return {"$ref": f"#/$defs/{name}"}
