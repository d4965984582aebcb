"""Build shipped recipes and print what came out as Markdown: docs/results.md is this script's output.

    python examples/results/make.py > docs/results.md

Every figure is read from the report.json of a build that this run made (or found in the cache, unchanged).
"""

from __future__ import annotations

import datetime
import subprocess
import sys
from pathlib import Path

from openclaw_opt.artifacts import Measurement
from openclaw_opt.records import Report
from openclaw_opt.report import read_report

ROOT = Path(__file__).parent.parent.parent
CPU = ("int8-cpu", "int4-cpu")
RTX = ("fp16-rtx4090", "int8-rtx4090", "fp8-l40s", "int4-rtx3060", "pruned-int8-l4", "nvfp4-rtx5090")
UNFINISHED = ("int8-h100",)
ENCODER = ("minilm-int8-cpu",)
LEGAL = {0, 3}


def build(recipe: str) -> Report:
    """`openclaw-opt build` as a user types it; ends this script when a recipe fails."""
    command = [sys.executable, "-m", "openclaw_opt", "build", "--recipe", f"recipes/{recipe}.yaml"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
    if done.returncode not in LEGAL:
        sys.exit(f"{recipe} ended with exit code {done.returncode}")
    return read_report(ROOT / "build" / recipe)


def row(report: Report, name: str, subject: str = "") -> Measurement | None:
    rows = [m for m in report.measurements if m.name == name]
    wanted = [m for m in rows if (m.subject == subject if subject else m.subject != "reference")]
    return wanted[0] if wanted else None


def cell(report: Report, name: str, pattern: str = "{:.4f}", subject: str = "") -> str:
    """The value with its interval, or why there is none."""
    found = row(report, name, subject)
    if found is None:
        return "–"
    if found.value is None:
        return f"not measured: {found.not_measured}"
    text = pattern.format(found.value)
    if found.low is None or found.high is None:
        return text
    return f"{text} ({pattern.format(found.low)} – {pattern.format(found.high)})"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(cells) + " |" for cells in rows])


def cpu_rows(reports: dict[str, Report]) -> str:
    head = [
        "recipe",
        "bits per byte kept",
        "top-1 agreement",
        "mean KL, nat",
        "size, MiB",
        "decode p50, ms",
        "tokens/s",
        "speedup",
    ]
    rows = [
        [
            f"`{name}`",
            cell(report, "bits_per_byte.recovery"),
            cell(report, "agreement.top1"),
            cell(report, "kl.mean", "{:.2g}"),
            cell(report, "size_mib", "{:.2f}"),
            cell(report, "latency.decode.p50_ms", "{:.2f}"),
            cell(report, "throughput.decode_tokens_per_s", "{:.0f}"),
            cell(report, "speedup", "{:.1f}×"),
        ]
        for name, report in reports.items()
    ]
    first = next(iter(reports.values()))
    reference = [
        "PyTorch eager, float32", "1", "1", "0", cell(first, "size_mib", "{:.2f}", "reference"),
        cell(first, "latency.decode.p50_ms", "{:.2f}", "reference"),
        cell(first, "throughput.decode_tokens_per_s", "{:.0f}", "reference"), "1",
    ]  # fmt: skip
    return table(head, [reference, *rows])


def rtx_rows(reports: dict[str, Report]) -> str:
    head = [
        "recipe",
        "bits per byte kept",
        "engine, MiB",
        "kernels a layer at decode",
        "layers realised",
        "built in, s",
        "latency",
    ]
    rows = []
    for name, report in reports.items():
        decode = next((k for k in report.kernels if k.profile == "decode"), None)
        realised = (
            f"{sum(r.ok for r in report.receipt)} of {len(report.receipt)}" if report.receipt else "nothing quantized"
        )
        seconds = next(p.seconds for p in report.passes if p.word == "build")
        latency = row(report, "latency.decode.p50_ms")
        rows.append(
            [
                f"`{name}`",
                cell(report, "bits_per_byte.recovery"),
                cell(report, "size_mib", "{:.1f}") if report.finished else "–",
                f"{decode.per_layer:g}" if decode is not None and decode.per_layer is not None else "–",
                realised if report.finished else "–",
                f"{seconds:.1f}" if report.finished else "–",
                f"not measured: {latency.not_measured}" if latency is not None else "–",
            ]
        )
    return table(head, rows)


def pass_rows(report: Report) -> str:
    rows = []
    for record in report.passes:
        checked = record.verification
        proof = (
            f"{checked.value:.1e} ≤ {checked.tolerance:g}"
            if checked and checked.value is not None and checked.tolerance
            else ""
        )
        kept = next((m.value for m in record.accuracy if m.name == "bits_per_byte.recovery"), None)
        rows.append(
            [
                record.word, record.changed, proof or ("measured" if kept is not None else "not compared here"),
                "unchanged" if kept is None else f"{kept:.4f}", f"{record.seconds:.1f}",
                f"{record.peak_bytes / 2**30:.2f}", f"{record.size_bytes / 2**20:.2f}",
            ]
        )  # fmt: skip
    return table(["pass", "what it changed", "verified", "bits per byte kept", "s", "peak GiB", "MiB"], rows)


def main() -> None:
    """Build everything, print the page."""
    reports = {name: build(name) for name in (*CPU, *RTX, *UNFINISHED, *ENCODER)}
    machine = reports["int8-cpu"].machine
    versions = {k: v for k, v in reports["int8-cpu"].versions.items() if v != "not installed"}
    minilm = reports["minilm-int8-cpu"]
    encoder = [
        f"`{name}`" if name == "" else cell(minilm, name, "{:.4f}")
        for name in ("embedding.cosine.mean", "embedding.cosine.min", "embedding.retrieval", "size_mib", "speedup")
    ]
    print(f"""# Results

Made by `python examples/results/make.py > docs/results.md` on {datetime.datetime.now(datetime.UTC):%Y-%m-%d}, on
{machine.title}, {machine.memory_bytes / 2**30:.0f} GiB, GPU: {machine.gpu}, Python {machine.python}.
In brackets: 95 % intervals. Timings are of a shared machine; engine and PyTorch ran in turns in the same run, so quote the
ratio, not the milliseconds. Definitions: [metrics.md](metrics.md).

Versions: {", ".join(f"{name} {version}" for name, version in versions.items())}.

## The demo decoder on this CPU

`openclaw-opt build --recipe` with each recipe; {reports["int8-cpu"].parameters / 1e6:.2f} M parameters, batch 1.

{cpu_rows({name: reports[name] for name in CPU})}

## The demo decoder for GPUs this machine does not have

Engines compiled here without a GPU; accuracy is that of the very graph that was built, on ONNX Runtime CPU.

{rtx_rows({name: reports[name] for name in (*RTX, *UNFINISHED)})}

## MiniLM on this CPU

`openclaw-opt build --recipe recipes/minilm-int8-cpu.yaml`, on held-out docstrings of the standard library.

{table(["mean cosine", "least cosine", "same nearest neighbour", "size, MiB", "speedup over PyTorch"], [encoder])}

## Pass by pass

`int8-cpu`:

{pass_rows(reports["int8-cpu"])}

`fp8-l40s`:

{pass_rows(reports["fp8-l40s"])}""")


if __name__ == "__main__":
    main()
