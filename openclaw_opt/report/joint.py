"""Several reports as one: a table of verdicts and numbers, in JSON and Markdown."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from openclaw_opt.records import Report
from openclaw_opt.report.markdown import escape

SHOWN = ("perplexity.recovery", "agreement.top1", "latency.decode.p50_ms", "latency.infer.p50_ms", "size_mib")


def write_joint(reports: Sequence[tuple[str, Report]], folder: Path, title: str) -> tuple[str, ...]:
    """Write report.json and report.md of several reports into an existing folder; gives their names."""
    rows = [{"name": name, "verdict": report.verdict, **_numbers(report)} for name, report in reports]
    columns = ["name", "verdict", *(name for name in SHOWN if any(name in row for row in rows))]
    lines = [f"## {escape(title)}", "", _line(columns), _line(["---"] * len(columns))]
    lines += [_line([_cell(row.get(column)) for column in columns]) for row in rows]
    texts = {
        "report.json": json.dumps({"title": title, "rows": rows}, indent=1) + "\n",
        "report.md": "\n".join(lines) + "\n",
    }
    for name, text in texts.items():
        part = folder / f".{name}.part"
        part.write_text(text, encoding="utf-8")
        part.replace(folder / name)
    return tuple(texts)


def _numbers(report: Report) -> dict[str, float]:
    rows = [m for m in report.measurements if m.subject != "reference" and not m.at]
    return {m.name: m.value for m in rows if m.value is not None and math.isfinite(m.value)}


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else escape(str(value)) if value is not None else "not measured"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
