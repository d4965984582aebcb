"""One way of a peer's to make a model smaller, in a process of its own: what the smaller model says on our evaluation data.

    python accuracy_worker.py ROW TASK OUT

TASK holds checkpoint/, task.json (`task`: decoder, encoder or vision), calibration.npz and evaluation.npz, the same arrays that ours
is calibrated and evaluated on: `ids` of token sequences, `ids` and `mask` of padded sentences, or `images`. OUT gets output.npy, a row
a sample: logits [length, vocab], hidden states [longest, hidden] (zeros for padding), or logits [classes]; and made.json. Nothing is
scored here, and nothing of openclaw_opt is imported.

Samples run one at a time and without their padding: a scale that is found for a whole batch is a sample's own, the kindest case.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
Run = Callable[[Arrays], np.ndarray]
"""One sample's inputs by their names in Hugging Face's code, each [1, …] → its output, [1, …] float32."""
TOOLS = {
    "torch": "tools_torch", "modelopt": "tools_modelopt", "torchao": "tools_torchao", "torch_pruning": "tools_pruning",
    "llmcompressor": "tools_llmcompressor", "onnxruntime": "tools_onnxruntime", "genai": "tools_genai",
    "openvino": "tools_openvino",
}  # fmt: skip
"""First word of a row's name → the file that makes it; its ROWS are rest of the name → what makes it."""
VERSIONS = (
    "torch", "transformers", "nvidia-modelopt", "torchao", "torch-pruning", "llmcompressor", "compressed-tensors", "onnxruntime",
    "onnxruntime-gpu", "onnxruntime-genai", "onnx", "optimum-intel", "openvino", "nncf",
)  # fmt: skip


@dataclass(frozen=True)
class Task:
    """What a row is made from, and a folder for its files."""

    folder: Path
    work: Path

    @property
    def kind(self) -> str:
        return str(json.loads((self.folder / "task.json").read_text())["task"])

    @property
    def checkpoint(self) -> str:
        return str(self.folder / "checkpoint")

    def samples(self, split: str, *, padded: bool = False) -> list[Arrays]:
        """`calibration` or `evaluation`, a sample at a time; padding left out where it is not asked for."""
        with np.load(self.folder / f"{split}.npz") as stored:
            arrays = {name: stored[name] for name in stored.files}
        if self.kind == "vision":
            return [{"pixel_values": one[None]} for one in arrays["images"]]
        if self.kind == "decoder":
            return [{"input_ids": one[None], "attention_mask": np.ones_like(one[None])} for one in arrays["ids"]]
        lengths = np.full(len(arrays["ids"]), arrays["ids"].shape[1]) if padded else arrays["mask"].sum(1)
        return [
            {
                "input_ids": ids[None, :n],
                "attention_mask": mask[None, :n],
                "token_type_ids": np.zeros_like(ids[None, :n]),
            }
            for ids, mask, n in zip(arrays["ids"], arrays["mask"], lengths, strict=True)
        ]


@dataclass(frozen=True)
class Made:
    """The smaller model, and how much of it is in low bits."""

    run: Run
    parameters: int
    """Of the whole model, as it now is."""
    layers: int
    """With weights in low bits."""
    weights: int
    """Numbers in those."""
    extra: dict[str, Any] = field(default_factory=dict)


def outputs(made: Made, task: Task) -> np.ndarray:
    """Every evaluation sample's output in one array; an encoder's shorter texts end in zeros."""
    rows = [np.asarray(made.run(sample), np.float32)[0] for sample in task.samples("evaluation")]
    if task.kind != "encoder":
        return np.stack(rows)
    longest = max(len(row) for row in rows)
    return np.stack([np.pad(row, ((0, longest - len(row)), (0, 0))) for row in rows])


def peak_bytes() -> int:
    """Largest resident memory of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def versions() -> dict[str, str]:
    found = {}
    for name in VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def row(name: str) -> Callable[[Task], Made]:
    """What makes the row. Raises KeyError for a name that no tool has."""
    tool, rest = name.split("-", 1)
    sys.path.insert(0, str(Path(__file__).parent))
    made: Callable[[Task], Made] = importlib.import_module(TOOLS[tool]).ROWS[rest]
    return made


def main() -> None:
    name, folder, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    os.dup2(2, 1)  # what libraries print is for the log
    out.mkdir(parents=True, exist_ok=True)
    task = Task(folder, out)
    began = time.monotonic()
    made = row(name)(task)
    seconds, peak = time.monotonic() - began, peak_bytes()
    np.save(out / "output.npy", outputs(made, task))
    facts = {"seconds": seconds, "peak_bytes": peak, "versions": versions(), **made.extra}
    counts = {"parameters": made.parameters, "layers": made.layers, "weights": made.weights}
    (out / "made.json").write_text(json.dumps(counts | facts))


if __name__ == "__main__":
    main()
