"""The page of speed.py from its raw numbers: tables, and each goal judged by its interval. Pure."""

from __future__ import annotations

import os
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from openclaw_opt.numerics.stats import Estimate, paired_ratio

UNKNOWN = "AMD EPYC, 2 cores; its instruction set was not recorded then"
"""The machine of the first two tables, as their page named it."""
LEAST_ROUNDS = 7
NEIGHBOURS = 0.97
"""Share of sentences that must keep their nearest neighbour for an encoder of ours to count."""


def table(found: dict[str, Any]) -> list[str]:
    """Markdown of one model. Pure."""
    rows = [row for row in found["rows"] if row["decode_ms"]]
    base = next((row for row in rows if row["peer"] == "pytorch-fp32"), None)
    scored = any(row["bits_per_token"] is not None for row in rows)
    head = ["peer", "prefill 64, ms", "decode, ms", "tokens/s", "decode vs PyTorch fp32", "least, ms"]
    head += ["bits/token"] if scored else []
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in sorted(rows, key=lambda row: statistics.median(row["decode_ms"])):
        decode = statistics.median(row["decode_ms"])
        ratio = ratio_of(base["decode_ms"] if base else [], row["decode_ms"])
        cells = [row["peer"], f"{statistics.median(row['prefill_ms']):.1f}", f"{decode:.2f}", f"{1e3 / decode:.1f}"]
        cells += [shown(ratio), f"{row['least_decode_ms']:.2f}"]
        if scored:
            cells.append("–" if row["bits_per_token"] is None else f"{row['bits_per_token']:.4f}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def ratio_of(one: list[float], other: list[float]) -> Estimate | None:
    """Of medians, paired; None where a peer lost rounds."""
    return paired_ratio(one, other) if one and len(one) == len(other) else None


def shown(ratio: Estimate | None) -> str:
    if ratio is None:
        return "–"
    return f"{ratio.value:.2f}×" + ("" if ratio.low is None else f" ({ratio.low:.2f} to {ratio.high:.2f})")


GOALS = (
    ("decode at or above the fastest peer", "decode_ms", "peers", 1.0),
    ("prefill at or above the fastest peer", "prefill_ms", "peers", 1.0),
    ("decode at least 10 × PyTorch fp32", "decode_ms", "pytorch-fp32", 10.0),
    ("decode at least 5 × PyTorch bf16", "decode_ms", "pytorch-bf16", 5.0),
)


def goals(found: dict[str, Any]) -> list[str]:
    """Each goal, met or not, for the faster of ours. Pure."""
    rows = {row["peer"]: row for row in found["rows"] if row["decode_ms"]}
    ours = [row for peer, row in rows.items() if peer.startswith("ours-")]
    lines = []
    for text, key, against, least in GOALS:
        others = [row for peer, row in rows.items() if not peer.startswith("ours-") and against in ("peers", peer)]
        if not ours or not others:
            lines.append(f"- {text}: not measured")
            continue
        best = min(ours, key=lambda row: statistics.median(row[key]))
        fastest = min(others, key=lambda row: statistics.median(row[key]))
        ratio = ratio_of(fastest[key], best[key])
        lines.append(f"- {text}: {verdict(ratio, least)}; {fastest['peer']} / {best['peer']} {shown(ratio)}")
    if "ours-gguf" in rows and found["readings"]:
        # Other peers' threads may still spin while memory is read: what the machine can do is the largest reading, never less.
        bound = 1e3 * found["weight_bytes"] / max(found["readings"])
        times = rows["ours-gguf"]["decode_ms"]
        ratio = ratio_of([bound] * len(times), times)
        best = bound / rows["ours-gguf"]["least_decode_ms"]
        read = f"the largest of {len(found['readings'])} readings, {max(found['readings']) / 1e9:.1f} GB/s"
        lines.append(
            f"- decode at least 0.7 of the memory bandwidth read in the same run ({read}): "
            f"{verdict(ratio, 0.7)}; {shown(ratio).replace('×', '')}, fastest token {best:.2f}"
        )
    return lines


def verdict(ratio: Estimate | None, least: float) -> str:
    """Decided by the whole interval, so that a noisy machine cannot."""
    if ratio is None or ratio.low is None or ratio.high is None:
        return "undecided"
    return "met" if ratio.low >= least else "missed" if ratio.high < least else "undecided"


def page(
    results: list[dict[str, Any]], peers: tuple[str, ...], not_run: dict[str, str], encoders: tuple[str, ...] = ()
) -> str:
    """The whole of speed.md. Pure."""
    lines = [
        "# Speed, side by side",
        "",
        "Made by the command under each model; no number here is typed. Rows of one table ran in turns in one run, on the machine named.",
        "Definitions stand at the top of `tests/peers/speed.py`, raw numbers in speed.json. Times are medians over rounds in turns,",
        "batch 1; intervals are 95 %, paired. *Least* is the fastest single token of the run.",
        "",
    ]
    for found in results:
        encoder = "shapes" in found
        lines += [f"## {found['model']}", "", f"`{found['command']}`, ended {found['when']},", *conditions(found), ""]
        if encoder:
            lines += [
                *encoder_table(found),
                "",
                *encoder_goals(found),
                "",
                *unmeasured(found["rows"], encoders, {}),
                "",
            ]
        else:
            made = build_table(found)
            lines += [*table(found), "", *goals(found), "", *made, *unmeasured(found["rows"], peers, not_run), ""]
    return "\n".join(lines)


def unmeasured(rows: list[dict[str, Any]], peers: tuple[str, ...], not_run: dict[str, str]) -> list[str]:
    """Why a peer has no number, one line each. Pure."""
    missing = dict.fromkeys(
        (peer for peer in peers if peer not in {row["peer"] for row in rows}), "not asked for in this run"
    )
    missing |= {
        row["peer"]: row["why"] or "no round ended" for row in rows if not (row.get("decode_ms") or row.get("ms"))
    }
    return [f"- {peer}: not measured: {why}" for peer, why in (missing | not_run).items()]


def build_table(found: dict[str, Any]) -> list[str]:
    """What making the artifacts took, and the two goals about it: one build each, so no interval. Pure."""
    builds, half = found.get("builds", {}), found.get("half_bytes", 0)
    if not builds or not half:
        return []
    lines = [
        "Builds, from nothing, one each; other work was not held off the machine meanwhile. Peaks are resident memory sampled every 50 ms.",
        "",
    ]
    lines += ["| build | seconds | peak, MiB | peak / fp16 checkpoint |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {one['seconds']:.0f} | {one['peak_bytes'] / 2**20:.0f} | {one['peak_bytes'] / half:.1f} |"
        for name, one in builds.items()
    ]
    ours, others = builds.get("ours-onnxruntime"), [one for name, one in builds.items() if name.startswith("olive")]
    lines.append("")
    if ours and others:
        ratio = ours["seconds"] / min(one["seconds"] for one in others)
        lines.append(
            f"- build at most half of Olive's time: {'met' if ratio <= 0.5 else 'missed'}; {ratio:.2f} of its faster way's"
        )
    if ours:
        ratio = ours["peak_bytes"] / half
        lines.append(
            f"- peak memory of the build at most 2 × the fp16 checkpoint: {'met' if ratio <= 2 else 'missed'}; {ratio:.1f} ×"
        )
    return [*lines, ""]


def encoder_table(found: dict[str, Any]) -> list[str]:
    """An encoder's milliseconds by shape, with its accuracy beside them. Pure."""
    titles = [f"{batch} × {length} tokens, ms" for batch, length in found["shapes"]]
    head = ["peer", *titles, "mean cosine (95 %)", "same nearest neighbour (95 %)"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in sorted((row for row in found["rows"] if row["ms"]), key=lambda row: statistics.median(row["ms"][0])):
        times = [f"{statistics.median(one):.1f}" for one in row["ms"]]
        cells = [
            row["peer"],
            *times,
            *(score(row["accuracy"].get(key)) for key in ("embedding.cosine.mean", "embedding.retrieval")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def score(found: dict[str, Any] | None) -> str:
    if found is None:
        return "–"
    return f"{found['value']:.4f} ({found['low']:.4f} to {found['high']:.4f})"


def encoder_goals(found: dict[str, Any]) -> list[str]:
    """Ours with 97 % of the neighbours, against the fastest peer that keeps as many. Pure."""
    timed = [row for row in found["rows"] if row["ms"] and row["accuracy"]]
    kept = {row["peer"]: row["accuracy"]["embedding.retrieval"]["value"] for row in timed}
    ours = [row for row in timed if row["peer"].startswith("ours-") and kept[row["peer"]] >= NEIGHBOURS]
    lines = []
    for place, (batch, length) in enumerate(found["shapes"]):
        text = f"- {batch} × {length} tokens at least 1.2 × the fastest peer of equal or better accuracy"
        best = min(ours, key=lambda row: statistics.median(row["ms"][place]), default=None)
        others = (
            []
            if best is None
            else [
                row for row in timed if not row["peer"].startswith("ours-") and kept[row["peer"]] >= kept[best["peer"]]
            ]
        )
        if best is None or not others:
            lines.append(f"{text}: not measured")
            continue
        fastest = min(others, key=lambda row: statistics.median(row["ms"][place]))
        ratio = ratio_of(fastest["ms"][place], best["ms"][place])
        lines.append(f"{text}: {verdict(ratio, 1.2)}; {fastest['peer']} / {best['peer']} {shown(ratio)}")
    return lines


def decides(found: dict[str, Any]) -> bool:
    """Has the table intervals? Pure."""
    return rounds_of(found) >= LEAST_ROUNDS


def rounds_of(found: dict[str, Any]) -> int:
    series = [row.get("decode_ms") or (row.get("ms") or [[]])[0] for row in found["rows"]]
    return max(map(len, series), default=0)


def conditions(found: dict[str, Any]) -> list[str]:
    """Under what the table was made. Pure."""
    rounds, cores = rounds_of(found), os.cpu_count() or 1
    moved = (
        f"; a token reads {found['weight_bytes'] / 2**20:.1f} MiB of our GGUF weights"
        if "weight_bytes" in found
        else ""
    )
    lines = [
        f"on {found.get('machine', UNKNOWN)}. {rounds} rounds{moved}; load average before measuring {found['load']:.1f} on {cores} cores."
    ]
    if rounds < LEAST_ROUNDS:
        lines.append("Fewer than 7 rounds have no interval, so no ratio is given and nothing is decided.")
    if found["load"] > cores:
        lines.append("**The machine was busy**: ratios in turns are fair, milliseconds are not an idle machine's.")
    return lines
