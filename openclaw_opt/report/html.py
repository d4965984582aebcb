"""Report → one HTML file that needs nothing else: no network, no script to be readable.

A content security policy with the hashes of the page's own style and script forbids everything else, so a name that slipped
through escaping could still not run or load anything.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from openclaw_opt.records import Report
from openclaw_opt.report import (
    again,
    bought,
    budget_figure,
    curves,
    earlier,
    figures,
    headline,
    layer_figures,
    mixed_figures,
    numbers,
    scatter,
    serving,
    tables,
    training_figure,
    views,
)
from openclaw_opt.report.plot import Figure, drawings
from openclaw_opt.report.tables import Table
from openclaw_opt.store import Store

HERE = Path(__file__).parent
LIMIT_BYTES = 1_000_000
OWN_SECTION = ("batching", "anatomy", "memory", "size")
"""First words of measurements with a section of their own."""
SCALES = ((300, 40_000), (100, 4_000), (30, 1_000), (10, 300))
"""Rows of a table and characters of a text, tried in turn until the page is under the limit; report.json has all."""
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
"""What no HTML or SVG may hold; shown as the replacement character."""
SIGNS = {"within budget": "✓", "budget missed": "✕", "undecided": "?", "no budgets": "–", "not finished": "…"}


def html(report: Report, store: Store | None = None) -> str:
    """The page; pictures that the store has are not drawn again."""
    figures_of, page = _figures(report), ""
    drawn = {**figures_of, "drawn": drawings([one for found in figures_of.values() for one in found], store)}
    for rows, longest in SCALES:
        page = render("report.html.j2", {**_page(report, rows), **drawn}, longest, rows)
        if len(page.encode()) < LIMIT_BYTES:
            break
    return page


def render(template: str, facts: Mapping[str, Any], longest: int = SCALES[0][1], rows: int = SCALES[0][0]) -> str:
    """A page of this folder's template, with its style, its script and a policy that allows nothing else."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    shared = {
        "style": Markup(style),
        "script": Markup(script),
        "policy": f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; base-uri 'none'; form-action 'none'",
        "markup": Markup,
        "cut": lambda text: cut(text, longest),
        "prose": lambda text: prose(cut(text, longest)),
        "tied": tied,
        "breakable": breakable,
        "jointed": lambda text: re.sub(r"(?<=\.)(?=\w)", "\u200b", text),
        "rows": rows,
    }
    return _CONTROL.sub("\ufffd", environment.get_template(template).render({**shared, **facts}))


def _page(report: Report, rows: int) -> dict[str, Any]:
    """Everything the template shows."""
    return {
        "report": report,
        "sign": SIGNS[report.verdict],
        "mark": tables.VERDICT_MARKS[report.verdict],
        "line": views.verdict_line(report),
        "facts": _facts(report),
        "said": tuple(earlier.sentences(report)),
        "headlines": (*headline.headlines(report), *headline.cost(report)),
        "notes": report.notes[:rows],
        **_tables(report, rows),
        **_provenance(report, rows),
    }


def prose(text: str) -> str:
    """Escaped, with what stands between backticks set as code."""
    from markupsafe import Markup, escape

    parts = text.split("`")
    if len(parts) % 2 == 0:  # an unpaired backtick is a character like any other
        return escape(text)
    return Markup("").join(Markup("<code>{}</code>").format(part) if i % 2 else part for i, part in enumerate(parts))


def tied(text: str) -> str:
    """Spaces inside numbers do not break; an interval in parentheses may go on a line of its own."""
    return text.replace(" ", "\u00a0").replace("\u00a0(", " (")


def breakable(text: str) -> str:
    """Escaped; a dotted name may go on on the next line after a dot."""
    from markupsafe import Markup, escape

    return Markup("<wbr>").join(escape(part) for part in re.split(r"(?<=\.)(?=\w)", text))


def _digest(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def _facts(report: Report) -> str:
    """The sentence under the name."""
    tool = report.engine_tool or report.backend
    parts = [
        f"{report.family} {report.task}, {numbers.count(report.parameters)} parameters in {report.checkpoint_dtype}",
        f"for {report.target_title}",
        f"by {tool}",
    ]
    return " · ".join(
        [*parts, f"{numbers.seconds(report.seconds)} on {report.started.replace('T', ' ').replace('+00:00', ' UTC')}"]
    )


def _tables(report: Report, rows: int) -> dict[str, Table]:
    bounds, latencies = views.bounds(report), views.latencies(report)
    words = {word: [one for one in report.measurements if views.first_word(one.name) == word] for word in OWN_SECTION}
    shown = [*bounds, *latencies, *(one for found in words.values() for one in found)]
    return {
        "budgets": tables.budgets(report),
        "bought": bought.bought(report),
        "earlier": earlier.earlier_table(report),
        "waterfall": _went(report),
        "latency": tables.measurements(latencies).first(rows),
        "batches": tables.measurements(words["batching"]).first(rows),
        "parts": tables.measurements(words["anatomy"]).first(rows),
        "sizes": tables.measurements([*words["memory"], *words["size"]]).first(rows),
        "bounds": tables.measurements(bounds).first(rows),
        "others": tables.measurements([one for one in report.measurements if one not in shown]).first(rows),
        "layers": tables.layers(report).first(rows),
        "mixed": mixed_figures.rounds(report).first(rows),
        "receipt": tables.receipt(report).marked("bad").first(rows),
        "as_asked": tables.receipt(report).marked("good").first(rows),
        "kernels": tables.kernels(report).first(rows),
        "again": again.measured_again(report).first(rows),
        "costs": tables.costs(report).first(rows),
        "gaps": tables.gaps(report).first(rows),
    }


def _went(report: Report) -> Table:
    """How each pass went; accuracy, size and latency stand in the table of what it bought, where there is one."""
    table, there = tables.waterfall(report), {column.title for column in bought.bought(report).columns}
    dropped = {*there, *(("Latency",) if there else ())}
    return table.only(*(column.title for column in table.columns if column.title not in dropped))


def _figures(report: Report) -> dict[str, Sequence[Figure]]:
    """Every picture; a list for each section."""
    return {
        "bullets": _there(budget_figure.budget_bullets(report)),
        "tradeoff": _there(scatter.tradeoff(report), earlier.trend(report)),
        "steps": (*figures.waterfall(report), *training_figure.training(report)),
        "worst": (*layer_figures.layers(report), *layer_figures.sensitivity(report), *mixed_figures.mixed(report)),
        "curves": _there(serving.anatomy(report), curves.latency_curves(report)),
        "batch_curve": _there(serving.batching(report)),
        "memory_bars": _there(figures.memory(report)),
    }


def _there(*found: Figure | None) -> list[Figure]:
    return [one for one in found if one is not None]


def _provenance(report: Report, rows: int) -> dict[str, Any]:
    machine = report.machine
    host = {
        "Machine": machine.title,
        "Cores": str(machine.cores),
        "Memory": numbers.size(machine.memory_bytes),
        "GPU": machine.gpu,
        "System": machine.system,
        "Python": machine.python,
        "Peak memory of the build": numbers.size(report.peak_bytes),
    }
    return {
        "machine": tables.pairs("Machine", host),
        "versions": tables.pairs("Package", dict(report.versions)).first(rows),
        "checkpoint": tables.pairs("Weight file (sha256)", dict(report.checkpoint_files)).first(rows),
        "data": tables.pairs("Data", _flat(report.data)).first(rows),
        "target": tables.pairs("Target", _flat(report.target_facts)).first(rows),
        "recipe": report.recipe,
    }


def _flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested facts as dotted names and one-line values."""
    found: dict[str, str] = {}
    for key, value in facts.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value if isinstance(value, str) else _shown(value)
    return found


def _shown(value: Any) -> str:
    """Large numbers of a target's row read as 3.35e+12, all else as JSON."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) >= 1e6:
        return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    return json.dumps(value, ensure_ascii=False, default=str)


def cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[:longest]} … cut here; report.json has the whole"
