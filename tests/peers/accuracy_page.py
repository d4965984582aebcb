"""Raw numbers of accuracy.py → docs/results/accuracy.md and accuracy.json. Pure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import accuracy as ours
from make import table

from openclaw_opt.artifacts import Measurement
from openclaw_opt.comparison.evidence import change
from openclaw_opt.comparison.margins import margin_of
from openclaw_opt.comparison.verdicts import decide
from tests.peers.accuracy_rows import GROUPS, NOT_RUN, Group

Found = dict[str, Any]
CONFIDENCE = 0.95
DECIDES = {"decoder": "kl.mean", "encoder": "embedding.cosine.mean", "vision": "agreement.class"}
"""The number by which the best of a group is chosen, on either side."""
COMPARED = {
    "decoder": ("bits_per_byte", "agreement.top1", "kl.mean"),
    "encoder": ("embedding.retrieval", "embedding.cosine.mean"),
    "vision": ("accuracy.top1", "agreement.class"),
}
TITLES = {"decoder": "The demo decoder", "encoder": "MiniLM", "vision": "The digits model"}
SAYS = {
    "decoder": "`examples/tiny-llama`, its head left in float everywhere. 32 sequences of 256 tokens to calibrate on and as many to "
    "evaluate. Ours is `recipes/int4-cpu.yaml` up to the model, in PyTorch; kernels that round inputs of int4 layers on the way are "
    "off on both sides. In the rows with zeros, a pruned FFN or a cache in few bits, weights are float32.",
    "encoder": "The sentence encoder all-MiniLM-L6-v2, all its linear layers but the pooler that no embedding passes. 256 docstrings to "
    "calibrate on and 256 to evaluate. *Inputs rounded by the kernel* is the engine of `recipes/minilm-int8-cpu.yaml`; the other "
    "rows of ours are the model in PyTorch.",
    "vision": "A ResNet of two stages trained by `examples/results/digits.py`, its classifier left in float. 100 images to calibrate "
    "on, 150 to evaluate: few, so that little is decided.",
}
DIGITS = 6


def page(found: dict[str, list[Found]]) -> str:
    """The whole of accuracy.md."""
    done = [one for rows in found.values() for one in rows if "rows" in one]
    machine = next(
        (name for name, _ in Counter(one["made"]["machine"] for one in done if one["ours"]).most_common(1)), ""
    )
    lines = [
        "# Accuracy of every format and algorithm, beside the peers",
        "",
        f"Made by `python tests/peers/accuracy.py --cache FOLDER` on {machine}, shared with other work; no number here is typed.",
        "Raw numbers, item by item and to six digits, stand in accuracy.json, of which this page is made; definitions in [metrics.md](../metrics.md).",
        "",
        "A peer gets the same checkpoint and the same calibration and evaluation arrays, and gives back what its model says on the latter;",
        "scores are by the same code for both sides. In brackets: 95 % intervals. *Bits a weight* and *MB* count scales in 16 bits, and all",
        "that is not quantized in float32. Output SQNR is the mean over the layers, on calibration data; *plain* is the same layers with",
        "largest values for ranges and rounding to nearest. Seconds are of a shared machine, and a peer's hold its imports and, with ONNX",
        "Runtime, the export.",
        "",
        *elsewhere(done, machine),
        f"Versions: {', '.join(f'{name} {version}' for name, version in sorted(versions(done).items()))}.",
        "",
    ]
    for kind, rows in found.items():
        lines += section(kind, rows)
    lines += [f"- {name}: not measured: {why}." for name, why in NOT_RUN.items()]
    return "\n".join(lines) + "\n"


def elsewhere(done: Sequence[Found], machine: str) -> list[str]:
    """A sentence on rows whose seconds are of another machine than the page's; none without any."""
    named: dict[str, list[str]] = {}
    for one in done:
        if (other := one["made"].get("machine", machine)) != machine:
            named.setdefault(other, []).append(one["name"].replace("_", "-"))
    return [
        line
        for other, names in named.items()
        for line in (f"Run later, on {other}, whose seconds are not those of the other rows: {'; '.join(names)}.", "")
    ]


def versions(done: Sequence[Found]) -> dict[str, str]:
    """Package → the versions that rows were made with."""
    said: dict[str, set[str]] = {}
    for one in done:
        for name, version in one["made"].get("versions", {}).items():
            if not one["ours"] or name in ("torch", "nvidia-modelopt", "transformers"):
                said.setdefault(name, set()).add(version)
    return {name: " and ".join(sorted(found)) for name, found in said.items()}


def section(kind: str, rows: Sequence[Found]) -> list[str]:
    """One model: ours, the peers, and ours against the best peer of each group."""
    own = [one for one in rows if one["ours"] and "rows" in one]
    peers = [one for one in rows if not one["ours"] and "rows" in one]
    lines = [f"## {TITLES[kind]}", "", SAYS[kind], "", ours.ours_table(kind, own), "", f"### {TITLES[kind]}: peers", ""]
    lines += [peers_table(kind, peers), ""]
    titles = "those of ours and of the peers that are best by " + ours.NUMBERS[kind][DECIDES[kind]][0]
    lines += [
        f"### {TITLES[kind]}: ours against the best peer at equal bits",
        "",
        f"Compared are {titles}, of the same layers.",
        "",
    ]
    lines += [pairs_table(kind, rows), "", *worse(kind, rows)]
    lines += [f"- {one['name']}: not measured: {one['why']}" for one in rows if "rows" not in one]
    return [*lines, ""]


def peers_table(kind: str, peers: Sequence[Found]) -> str:
    columns = ours.NUMBERS[kind]
    head = ["compared with", "peer", "bits a weight", "MB", *(title for title, _ in columns.values()), "s", "peak GiB"]
    rows, order = [], [group.key for group in GROUPS[kind]] + [""]
    for one in sorted(peers, key=lambda one: order.index(one["group"])):
        numbers = [ours.value(one, name, pattern) for name, (_, pattern) in columns.items()]
        cost = [f"{one['made']['seconds']:.0f}", f"{one['made']['peak_bytes'] / 2**30:.2f}"]
        name = one["name"].replace("_", "-") + (f" ({one['note']})" if one["note"] else "")
        rows.append([one["group"] or "–", name, f"{one['bits']:.4g}", f"{ours.megabytes(one):.2f}", *numbers, *cost])
    return str(table(head, rows))


def number(one: Found, name: str) -> float:
    """A row's own value. Raises StopIteration where it has none."""
    return float(next(m["value"] for m in one["rows"] if m["name"] == name and m["subject"] != "reference"))


def best(kind: str, rows: Sequence[Found]) -> Found | None:
    """Of a group; None of nothing."""
    name = DECIDES[kind]
    sign = -1 if name.startswith("kl") else 1
    return max(rows, key=lambda one: sign * number(one, name), default=None)


def pair(kind: str, group: Group, rows: Sequence[Found]) -> tuple[Found, Found] | None:
    """The best of ours and of the peers."""
    there = [one for one in rows if one["group"] == group.key and "rows" in one]
    own, peer = (best(kind, [one for one in there if one["ours"] is side]) for side in (True, False))
    return None if own is None or peer is None else (own, peer)


def verdict(own: Found, peer: Found, name: str) -> tuple[str, str]:
    """How ours differs from the peer, with its interval, and what can be said: better, equivalent, worse or undecided.

    Both sides' items are drawn together. Equivalent is inside the margin of `openclaw-opt compare`, by two one-sided tests; where the
    interval excludes no change all the same, that is said.
    """
    before, after = ([Measurement.model_validate(row) for row in one["rows"]] for one in (peer, own))
    margin = margin_of(name, {})
    found = change(before, after, name, CONFIDENCE, relative=margin.percent)
    inner = change(before, after, name, 2 * CONFIDENCE - 1, relative=margin.percent)
    row = next(m for m in after if m.name == name)
    limits = None if inner.low is None or inner.high is None else (inner.low, inner.high)
    result, _ = decide(found, limits, margin.value / (100 if margin.percent else 1), row.better)
    if found.value is None or found.low is None or found.high is None:
        return "–", result
    scale, unit, digits = (100, " %", 3) if margin.percent else (1, "", 6 if name.startswith("kl") else 4)
    text = (
        f"{scale * found.value:+.{digits}f} ({scale * found.low:+.{digits}f} – {scale * found.high:+.{digits}f}){unit}"
    )
    if result == "equivalent" and (found.low > 0 or found.high < 0):
        side = "better" if (found.low > 0) == (row.better == "higher") else "worse"
        result = f"equivalent ({side} by less than {margin})"
    return text, str(result)


def pairs_table(kind: str, rows: Sequence[Found]) -> str:
    head = ["equal", "ours", "best peer"]
    for name in COMPARED[kind]:
        head += [f"{_title(kind, name)}: ours − peer", "verdict"]
    lines = []
    for group in GROUPS[kind]:
        found = pair(kind, group, rows)
        if found is None:
            lines.append([group.title, *["not measured"] * (len(head) - 1)])
            continue
        own, peer = found
        names = [
            f"{one['name'].replace('_', '-') if not one['ours'] else one['name']} ({one['bits']:.4g})" for one in found
        ]
        cells = [cell for name in COMPARED[kind] for cell in verdict(own, peer, name)]
        lines.append([f"`{group.key}` {group.title}", *names, *cells])
    return str(table(head, lines))


def _title(kind: str, name: str) -> str:
    return ours.NUMBERS[kind][name][0]


def worse(kind: str, rows: Sequence[Found]) -> list[str]:
    """A line for each peer of a group that is beyond the interval better than the best of ours, by the deciding number."""
    lines, name = [], DECIDES[kind]
    for group in GROUPS[kind]:
        own = best(kind, [one for one in rows if one["group"] == group.key and one["ours"] and "rows" in one])
        for peer in (one for one in rows if one["group"] == group.key and not one["ours"] and "rows" in one):
            if own is not None and "worse" in (said := verdict(own, peer, name))[1]:
                lines.append(
                    f"- **{peer['name'].replace('_', '-')} is better** than {own['name']} ({_title(kind, name)} {said[0]})."
                )
    return lines or ["No peer of a group is better than the best of ours beyond the interval."]


def raw(found: dict[str, list[Found]]) -> str:
    """accuracy.json: a row a line, items to six digits."""
    kinds = []
    for kind, rows in found.items():
        lines = ",\n  ".join(json.dumps(_short(one), ensure_ascii=False) for one in rows)
        kinds.append(f'"{kind}": [\n  {lines}\n ]')
    return "{\n " + ",\n ".join(kinds) + "\n}\n"


def kept(text: str) -> dict[str, list[Found]]:
    """What `raw` wrote, its empty fields put back: as rows are before they are written, but for digits beyond the sixth."""
    return {kind: [_whole(one) for one in rows] for kind, rows in json.loads(text).items()}


def _whole(one: Found) -> Found:
    rows = (
        {"rows": [Measurement.model_validate({"unit": "", **row}).model_dump() for row in one["rows"]]}
        if "rows" in one
        else {}
    )
    empty = {"group": "", "note": "", "output_sqnr_db": None, "plain_output_sqnr_db": None}
    return {**one, **rows, **{name: value for name, value in empty.items() if name not in one}}


def merged(
    before: dict[str, list[Found]], found: dict[str, list[Found]], order: dict[str, list[Found]]
) -> dict[str, list[Found]]:
    """The rows of an earlier page with those found now in their place, each said as `order` says it now.

    Accuracy does not depend on the machine, seconds do: a row that came from elsewhere than most of the page keeps its `made.machine`,
    and `page` names it.

    Args:
        order: every row there is, in the page's order, without numbers.

    Raises:
        ValueError: a row is in neither.
    """
    made = {}
    for kind, rows in order.items():
        old, new = ({one["name"]: one for one in side.get(kind, [])} for side in (before, found))
        lacking = [one["name"] for one in rows if one["name"] not in old | new]
        if lacking:
            raise ValueError(f"{kind}: rows that are neither in accuracy.json nor run now: {', '.join(lacking)}")
        made[kind] = [{**(old | new)[one["name"]], **one} for one in rows]
    return made


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: _short(one) for key, one in value.items() if one not in ("", None, (), [], {})}
    return [_short(one) for one in value] if isinstance(value, (list, tuple)) else value
