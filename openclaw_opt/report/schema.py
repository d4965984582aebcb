"""The JSON Schema of report.json, for whoever reads reports with other tools; a test keeps docs/report.schema.json equal to it.

JSON has no infinite and undefined numbers: where they occur they are the strings `Infinity`, `-Infinity` and `NaN`.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from openclaw_opt.records import SCHEMA_VERSION, Report
from openclaw_opt.report.joined import JOINT_VERSION, Joint

DIALECT = "https://json-schema.org/draft/2020-12/schema"
NUMBER = {"anyOf": [{"type": "number"}, {"enum": ["Infinity", "-Infinity", "NaN"]}]}


def report_schema() -> dict[str, Any]:
    """Of one build's report.json, at this schema version."""
    return _schema(Report, "schema_version", SCHEMA_VERSION, "openclaw-opt report")


def joint_schema() -> dict[str, Any]:
    """Of the report.json that joins several reports."""
    return _schema(Joint, "joint_version", JOINT_VERSION, "openclaw-opt joint report")


def _schema(model: type[BaseModel], version: str, number: int, title: str) -> dict[str, Any]:
    found = _numbers(model.model_json_schema(mode="serialization"))
    found["properties"][version] = {"const": number, "title": version.replace("_", " ").capitalize()}
    return {"$schema": DIALECT, **found, "title": title, "$defs": {**found["$defs"], "Number": NUMBER}}


def _numbers(value: Any) -> Any:
    """Every number may also be one of the three words."""
    if isinstance(value, dict):
        if value.get("type") == "number":
            rest = {key: item for key, item in value.items() if key != "type"}
            return {**rest, "$ref": "#/$defs/Number"}
        return {key: _numbers(item) for key, item in value.items()}
    return [_numbers(item) for item in value] if isinstance(value, list) else value
