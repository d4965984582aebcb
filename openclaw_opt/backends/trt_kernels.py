"""Kernels of an engine: counted a profile and a layer, and as the table `layers.json` beside the engine, which `inspect` reads.

A layer is what the names of ONNX nodes say up to its number: `layers.3`, `model.encoder.layer.3`. A kernel of two layers
counts for the earlier one. The compiler gives some kernels no node (copies, a traced graph's nameless operators): one that
runs between two kernels of a layer is that layer's.
"""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from openclaw_opt.artifacts import Facts, KernelRow
from openclaw_opt.backends.trt_log import NO_KERNEL, BuildLog, Kernel
from openclaw_opt.errors import RecipeError

FILE = "layers.json"
_LAYER = re.compile(r"^(.*?\blayers?\.\d+)[./]")


class KernelFacts(Facts):
    """One kernel. Element types are the log's words: `Half`, `Int8`, `FP8`, `Float`."""

    name: str
    type: str
    """`gemm`, `kgen` (generated pointwise, norm or attention), `runtime_fusion`, `correlation` …"""
    tactic: str = ""
    reads: tuple[str, ...] = ()
    """Element types of the inputs."""
    weights: str = ""
    """Element type of the largest constant; empty if it holds none."""
    weight_elements: int = 0
    writes: tuple[str, ...] = ()
    """Element types of the outputs."""
    nodes: tuple[str, ...] = ()
    """ONNX nodes it computes, wholly or in part."""
    layer: str = ""
    """Empty for what belongs to no numbered layer."""


class ProfileLayers(Facts):
    """What one optimization profile runs, in order."""

    profile: str
    engine: str
    """File of the engine."""
    kernels: tuple[KernelFacts, ...]
    activation_bytes: int | None = None
    weight_bytes: int | None = None


class EngineLayers(Facts):
    """What layers.json states."""

    schema_version: int = 1
    tool: str
    profiles: tuple[ProfileLayers, ...]


def read_layers(folder: Path) -> EngineLayers | None:
    """The table of an engine's folder; None where its build wrote none. Raises RecipeError for one that cannot be read."""
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        return EngineLayers.model_validate_json(file.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise RecipeError("the layer table cannot be read", where=str(file), fix="build the artifact again") from error


def profile_layers(log: BuildLog, profiles: Sequence[str], engine: str) -> tuple[ProfileLayers, ...]:
    """One table a profile, in the order the profiles were added; what launches nothing is left out."""
    return tuple(
        ProfileLayers(
            profile=profile,
            engine=engine,
            kernels=_facts([one for one in log.kernels if one.profile == index and one.type not in NO_KERNEL]),
            activation_bytes=log.activation_bytes[index] if index < len(log.activation_bytes) else None,
            weight_bytes=log.weight_bytes,
        )
        for index, profile in enumerate(profiles)
    )


def kernel_row(layers: ProfileLayers) -> KernelRow:
    """The counts of a table."""
    return KernelRow(
        profile=layers.profile,
        kernels=len(layers.kernels),
        per_layer=per_layer(layers.kernels),
        by_type=dict(sorted(Counter(one.type for one in layers.kernels).items())),
        activation_bytes=layers.activation_bytes,
        weight_bytes=layers.weight_bytes,
    )


def per_layer(kernels: Sequence[KernelFacts]) -> float | None:
    """Kernels of the typical layer: the lower median over layers; None where no kernel names one."""
    counts = Counter(one.layer for one in kernels if one.layer)
    return float(statistics.median_low(counts.values())) if counts else None


def _facts(kernels: Sequence[Kernel]) -> tuple[KernelFacts, ...]:
    return tuple(_fact(kernel, layer) for kernel, layer in zip(kernels, _layers(kernels), strict=True))


def _fact(kernel: Kernel, layer: str) -> KernelFacts:
    largest = max((one for one in kernel.constants if one.elements > 1), key=lambda one: one.elements, default=None)
    return KernelFacts(
        name=kernel.name,
        type=kernel.type,
        tactic=kernel.tactic,
        reads=tuple(one.dtype for one in kernel.inputs),
        weights=largest.dtype if largest else "",
        weight_elements=largest.elements if largest else 0,
        writes=tuple(one.dtype for one in kernel.outputs),
        nodes=kernel.nodes,
        layer=layer,
    )


def _layers(kernels: Sequence[Kernel]) -> list[str]:
    """The layer of each kernel; '' for none."""
    order: dict[str, int] = {}
    named = []
    for kernel in kernels:
        own = list(dict.fromkeys(found[1] for node in kernel.nodes if (found := _LAYER.match(node))))
        for layer in sorted(own, key=_natural):
            order.setdefault(layer, len(order))
        named.append(min(own, key=order.__getitem__, default=""))
    return [layer or ("" if _placed(kernels[at]) else _between(named, at)) for at, layer in enumerate(named)]


def _placed(kernel: Kernel) -> bool:
    """Does it name a part of the model that is no layer, like `mask.full` or `head/MatMul`? A traced `node_add_3` names none."""
    return any("." in node or "/" in node for node in kernel.nodes)


def _natural(layer: str) -> list[tuple[int, str]]:
    """`layers.10` after `layers.9`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", layer)]


def _between(named: Sequence[str], at: int) -> str:
    """The layer around a kernel that names none, if the one before is also the one after."""
    before = next((layer for layer in reversed(named[:at]) if layer), "")
    after = next((layer for layer in named[at + 1 :] if layer), "")
    return before if before == after else ""
