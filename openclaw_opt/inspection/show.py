"""An inspection as lines of at most 80 columns: kernels that every layer repeats are one line with a count."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from openclaw_opt.backends.trt_kernels import KernelFacts, ProfileLayers, kernel_row
from openclaw_opt.inspection import Inspection, Operators, Stored

WIDTH = 80
NUMBER = re.compile(r"\b(layers?)\.\d+\b")
MEBI = 2**20


def lines(found: Inspection) -> list[str]:
    """The whole inspection."""
    told = [*_head(found), *(f"file: {name}, {size:,} bytes" for name, size in found.files.items())]
    for table in found.profiles:
        told += ["", *_profile(table)]
    if not found.profiles:
        told += [f"{row.profile or 'run'}: {row.kernels} kernels" for row in found.kernels]
    if found.graph is not None:
        told += ["", *_graph(found.graph)]
    if found.receipt:
        told += ["", *_receipt(found)]
    told += [f"note: {note}" for note in found.notes]
    return [cut for line in told for cut in wrapped(line)]


def signature(kernel: KernelFacts) -> str:
    """What a kernel is whatever its layer: type, element types, and the ONNX nodes with the layer's number taken out."""
    nodes = sorted({_short(node) for node in kernel.nodes})
    types = f"{_types(kernel.reads)}{' × ' + kernel.weights if kernel.weights else ''} → {_types(kernel.writes)}"
    return f"{kernel.type} {types}: {', '.join(nodes) or '(no node)'}"


def profile_line(table: ProfileLayers) -> str:
    row = kernel_row(table)
    each = f", {row.per_layer:g} a layer" if row.per_layer is not None else ""
    memory = [
        f"{word} {size / MEBI:.1f} MiB"
        for word, size in (("activations", table.activation_bytes), ("weights", table.weight_bytes))
        if size is not None
    ]
    return f"{table.profile} ({table.engine}): {row.kernels} kernels{each}" + "".join(f", {one}" for one in memory)


def wrapped(line: str) -> list[str]:
    """Cut at spaces so that no line is wider than a terminal; what follows is indented."""
    import textwrap

    return textwrap.wrap(line, WIDTH, subsequent_indent="      ", break_on_hyphens=False) or [""]


def _head(found: Inspection) -> list[str]:
    by = f", {found.backend}" + (f" ({found.tool})" if found.tool else "") if found.backend else ""
    held = f" ({', '.join(found.compute)})" if found.compute else ""
    told = [f"{found.path}: {found.kind}, {found.family} {found.task}, {found.dtype}{by}"]
    told += [f"targets: {', '.join(found.targets)}{held}"] if found.targets else []
    if found.cache is not None:
        each, context = found.cache.token_bytes, found.cache.context
        whole = f", {each * context / MEBI:.1f} MiB for {context:,} tokens" if context is not None else ""
        told.append(f"cache: {found.cache.format}, {each:,.0f} bytes a token{whole}")
    return told


def _profile(table: ProfileLayers) -> list[str]:
    counts = Counter(signature(kernel) for kernel in table.kernels)
    types = Counter(kernel.weights for kernel in table.kernels if kernel.weights)
    weights = ", ".join(f"{count} in {name}" for name, count in types.most_common())
    return [
        profile_line(table),
        *([f"  kernels that hold weights: {weights}"] if weights else []),
        *(f"  {count:>4} × {what}" for what, count in counts.items()),
    ]


def _graph(graph: Operators) -> list[str]:
    return [
        f"{graph.file}: opset {graph.opset}, {sum(one.count for one in graph.operators)} operators",
        *_counted(graph.operators),
        "initializers:",
        *(f"  {one.name}: {one.count}, {one.bytes:,} bytes" for one in graph.initializers),
    ]


def _counted(rows: Iterable[Stored]) -> list[str]:
    return ["  " + ", ".join(f"{one.name} {one.count}" for one in rows)]


def _receipt(found: Inspection) -> list[str]:
    groups: dict[tuple[str, str, bool], list[str]] = defaultdict(list)
    for row in found.receipt:
        groups[(row.asked, row.realised, row.ok)].append(f"{row.layer} ({row.profile})" if row.profile else row.layer)
    return [
        "receipt:",
        *(
            f"  asked {asked}, runs {realised}: {len(layers)}" + ("" if ok else f", NOT as asked: {_some(layers)}")
            for (asked, realised, ok), layers in groups.items()
        ),
    ]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _types(names: Sequence[str]) -> str:
    return "+".join(dict.fromkeys(names)) or "-"


def _short(node: str) -> str:
    return NUMBER.sub(r"\1.*", node).split(" [", 1)[0]
