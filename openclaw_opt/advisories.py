"""Known traps and miscompiles of TensorRT, by version and compute capability: data that `check` prints and a build records.

A row holds where all of it matches. A version that is not known (the package is not installed here) matches every range: the
engine will be built by some version on another machine.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from openclaw_opt.artifacts import GraphFacts
from openclaw_opt.targets import Target

RTX, CLASSIC = "tensorrt_rtx", "tensorrt"


@dataclass(frozen=True)
class Advisory:
    """One row.

    Attributes:
        id: stable name, for suppressing and citing.
        module: `tensorrt_rtx` or `tensorrt`.
        since, until: versions it was seen in, both ends included, compared part by part; empty for open.
        compute: compute capabilities; empty for all.
        needs: traits of the job that must all be there, see `traits`.
        what: what happens, and what is done about it here.
        source: where it was seen. `tried` means with the builder, by this project.
    """

    id: str
    module: str
    since: str
    until: str
    compute: tuple[tuple[int, int], ...]
    needs: tuple[str, ...]
    what: str
    source: str


ADVISORIES = (
    Advisory(
        "rtx-softcap-kernels",
        RTX,
        "1.7",
        "",
        (),
        ("softcap",),
        "soft-capped attention has no fused kernel: five kernels a layer, two of which copy the cache",
        "tried, tensorrt_rtx 1.7.1",
    ),
    Advisory(
        "rtx-qk-norm-kernel",
        RTX,
        "1.7",
        "",
        (),
        ("qk_norm",),
        "the norm of q and k costs one kernel a layer that is not fused into the rotation",
        "tried, tensorrt_rtx 1.7.1",
    ),
    Advisory(
        "rtx-1.4-no-weights",
        RTX,
        "1.4",
        "1.4.99",
        (),
        ("quantized",),
        "the layer table shows no weights: the receipt cannot say what was realised; install 1.5 or later",
        "tried, tensorrt_rtx 1.4.0",
    ),
    Advisory(
        "rtx-1.4-gpu",
        RTX,
        "1.4",
        "1.4.99",
        (),
        ("quantized",),
        "quantized graphs do not build without a GPU (Cuda Runtime in generateForCurrent); install 1.5 or later",
        "tried, tensorrt_rtx 1.4.0",
    ),
    Advisory(
        "rtx-fp8-attention",
        RTX,
        "",
        "",
        (),
        ("fp8", "attention"),
        "Q/DQ around attention runs in half precision with three more kernels; attention is left in half precision",
        "tried, tensorrt_rtx 1.7.1",
    ),
    Advisory(
        "trt-fc-horizontal",
        CLASSIC,
        "10.13",
        "10.13.99",
        ((11, 0),),
        ("decoder",),
        "separate q, k and v merged by the compiler came out corrupted at batch 1; they are merged before the build here",
        "TensorRT-Edge-LLM issues 105 and 151",
    ),
    Advisory(
        "trt-fusion-nan",
        CLASSIC,
        "11.2",
        "11.2.99",
        (),
        (),
        "a fusion was seen to give NaN that goes away with more outputs: compare the engine's outputs on the GPU host",
        "examples-monorepo issue 87",
    ),
    Advisory(
        "trt-mxfp8-nan",
        CLASSIC,
        "11.0",
        "",
        (),
        ("mxfp8",),
        "blocks of zeros give NaN",
        "TensorRT-Edge-LLM, builder source",
    ),
    Advisory(
        "trt-refit-bias",
        CLASSIC,
        "11.3",
        "11.3.99",
        (),
        ("refit",),
        "REFIT may drop the bias of a GEMM even without a refit; REFIT_IDENTICAL does not",
        "TensorRT 11.3 documentation, Refitting",
    ),
    Advisory(
        "trt-not-repeatable",
        CLASSIC,
        "",
        "",
        (),
        (),
        "the builder times tactics: two builds of one graph may differ in bytes and in the last bits of outputs",
        "TensorRT issues 4730 and 4798",
    ),
    Advisory(
        "trt-oom-disguised",
        CLASSIC,
        "",
        "",
        (),
        (),
        "too little GPU memory may show as `could not find any implementation`; the log is searched for it",
        "TensorRT issues 4582, 4258 and 2643",
    ),
)


def advisories(targets: Sequence[Target], version: str, traits: Iterable[str]) -> list[Advisory]:
    """The rows that hold for a job; `version` is that of the targets' module, empty where it is not installed."""
    there, computes = set(traits), {target.compute for target in targets}
    return [
        row
        for row in ADVISORIES
        if any(row.module == target.module for target in targets)
        and (not row.compute or computes & set(row.compute))
        and there.issuperset(row.needs)
        and _within(version, row)
    ]


def traits_of(facts: GraphFacts) -> set[str]:
    """What of a graph the rows' `needs` name: its task, formats, and what its attention does."""
    formats = {layer.format for layer in facts.quantized}
    words = {facts.task, facts.dtype, *formats, *({"quantized"} if formats else ())}
    if facts.kv or facts.task == "encoder":
        words.add("attention")
    fused = {"explicit_softcap": "softcap", "joint_qk_norm": "qk_norm"}
    return words | {word for name, word in fused.items() if facts.fusions.get(name)}


def told(rows: Iterable[Advisory]) -> tuple[str, ...]:
    """Each as one sentence with its id and source."""
    return tuple(f"advisory {row.id}: {row.what} ({row.source})" for row in rows)


def _within(version: str, row: Advisory) -> bool:
    if not version:
        return True
    parts = _parts(version)
    return (not row.since or parts >= _parts(row.since)) and (not row.until or parts <= _parts(row.until))


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
