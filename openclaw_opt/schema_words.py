"""What an option may be, in words: for the recipe reference and for messages."""

from __future__ import annotations

from typing import Any

PLAIN = {"integer": "integer", "number": "number", "string": "text", "boolean": "yes or no", "null": "nothing"}
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def words_of(field: dict[str, Any]) -> str:
    """A JSON Schema as words: legal words, ranges, lists."""
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(words_of(one) for one in field["anyOf"] if one.get("type") != "null"))
    if "enum" in field or "const" in field:
        return ", ".join(f"`{word}`" for word in field.get("enum", [field.get("const")]))
    if "$ref" in field:
        return "mapping, below"
    if field.get("type") == "object":
        inner = field.get("additionalProperties")
        return f"mapping to {words_of(inner)}" if isinstance(inner, dict) and inner else "mapping"
    if field.get("type") == "array":
        return _list(field)
    bounds = [f"{sign} {field[key]:g}" for key, sign in BOUNDS.items() if key in field]
    return " ".join([PLAIN[field["type"]], ", ".join(bounds)]).strip()


def _list(field: dict[str, Any]) -> str:
    if "prefixItems" in field:
        return f"[{', '.join(words_of(one) for one in field['prefixItems'])}]"
    return f"list of {words_of(field['items'])}"
