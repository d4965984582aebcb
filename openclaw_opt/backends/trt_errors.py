"""What TensorRT's builder says → an error that says what to do. One row a symptom, first match wins."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from openclaw_opt.errors import MachineError, OptError, RecipeError, VerificationError

LAST_LINES = 5


@dataclass(frozen=True)
class Symptom:
    """Attributes: pattern: searched in the error lines; kind: what to raise; what: named groups of the pattern fill it in."""

    pattern: str
    kind: type[OptError]
    what: str
    fix: str


SYMPTOMS = (
    Symptom(
        r"Cannot compile for target\(s\) (?P<sm>.+?), because the model contains HW-specific datatypes: (?P<dtype>[\w, ]+)",
        RecipeError,
        "{sm} has no kernels for {dtype}",
        "choose a number format this target has: `openclaw-opt list formats`",
    ),
    Symptom(
        r"Attention operation was not supported by a dedicated kernel",
        VerificationError,
        "an attention has no fused kernel for its element type or head size on this target, and is not marked decomposable",
        "use float16 or bfloat16 and a head size that is a multiple of 8 between 16 and 256",
    ),
    Symptom(
        r"libnvinfer_lean|lean runtime",
        MachineError,
        "a version-compatible engine needs TensorRT's lean runtime, which is not installed",
        "build without version compatibility, or install tensorrt-lean",
    ),
    Symptom(
        r"not found in the accelerator list",
        MachineError,
        "this TensorRT does not compile for the target",
        "install a tensorrt-rtx that knows it, or choose another target",
    ),
    Symptom(
        r"CUDA initialization failure|no CUDA-capable device|CUDA driver version is insufficient|cudaError(?:NoDevice|_enum)|generateForCurrent",
        MachineError,
        "the builder needs an NVIDIA GPU and its driver, and found none",
        "run the same build on a machine with the target GPU",
    ),
    Symptom(
        r"optimization profile|[Pp]rofile.*(?:kMIN|kOPT|kMAX|is not valid|invalid)",
        RecipeError,
        "TensorRT does not take the shape ranges",
        "each of batch and prompt must be [min, opt, max] with min <= opt <= max <= context",
    ),
    Symptom(
        r"No space left on device",
        MachineError,
        "the disk is full",
        "free space on the disk that holds the output folder",
    ),
)  # fmt: skip

NO_IMPLEMENTATION = Symptom(
    r"Could not find any implementation for node (?P<node>\S+)",
    VerificationError,
    "TensorRT found no kernel for {node}, and its log tells of no shortage of memory",
    "keep that layer in half precision, or choose another format",
)


def refused(lines: Sequence[str], log: Path, shortages: Sequence[str] = ()) -> OptError:
    """The error for a build that ended with 'no'; `lines` are the log's error lines, `shortages` those about memory."""
    text = "\n".join(lines)
    symptoms = SYMPTOMS if shortages else (*SYMPTOMS, NO_IMPLEMENTATION)
    for symptom in symptoms:
        if found := re.search(symptom.pattern, text):
            return symptom.kind(symptom.what.format(**found.groupdict()), where=str(log), fix=symptom.fix)
    if shortages:
        return out_of_memory(shortages, log)
    said = " | ".join(lines[-LAST_LINES:]) or "it does not say why"
    return VerificationError(f"TensorRT could not build the engine: {said}", where=str(log))


def out_of_memory(shortages: Sequence[str], log: Path) -> MachineError:
    """The error for a build that ran out of memory, whatever the compiler called it."""
    return MachineError(
        f"the builder ran out of memory: {shortages[-1][:200]}",
        where=str(log),
        fix="free memory, or build with a smaller batch, prompt or context",
    )


def crashed(code: int, lines: Sequence[str], log: Path, address_limit: int | None = None) -> OptError:
    """The error for a builder process that ended with `code` (negative: a signal) and without a word.

    Args:
        address_limit: bytes of address space it was allowed. The compiler dies of some allocations that fail under one.
    """
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        what = f"the TensorRT builder process was killed by {name}"
        likely = "out of memory is the usual reason; " if name == "SIGKILL" or address_limit is not None else ""
        if address_limit is not None:
            likely = f"its address space is limited to {address_limit / 2**30:.2f} GiB (ulimit -v), and {likely}"
    else:
        what, likely = f"the TensorRT builder process ended with code {code} and no result", ""
    tail = "".join(f"\n    {line[:300]}" for line in lines[-LAST_LINES:])
    return MachineError(
        f"{what}; {likely}its last words:{tail or ' none'}",
        where=str(log),
        fix="run the build again; the log has the details",
    )


def parse_refused(node: str, op: str, why: str, onnx: Path) -> OptError:
    """The error for a graph TensorRT's parser does not take."""
    return VerificationError(
        f"TensorRT's parser refuses node {node or '(unnamed)'} ({op or 'unknown operator'}): {why}",
        where=str(onnx),
        fix="a newer TensorRT may take it; else this model is not for this target: report it with the recipe and the model",
    )
