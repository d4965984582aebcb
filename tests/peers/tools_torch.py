"""A checkpoint as Hugging Face's code runs it, and what the tools that work on it share. Row: the untouched checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from accuracy_worker import Arrays, Made, Run, Task

CLASSES = {"decoder": "AutoModelForCausalLM", "encoder": "AutoModel", "vision": "AutoModelForImageClassification"}
CHUNK = 4
"""Calibration samples of equal length that run at once."""


def load(task: Task, dtype: str = "float32") -> Any:
    """The model in eval mode."""
    import torch
    import transformers

    kind = getattr(transformers, CLASSES[task.kind])
    return kind.from_pretrained(task.checkpoint, dtype=getattr(torch, dtype), local_files_only=True).eval()


def forward(model: Any, task: Task, sample: Arrays) -> Any:
    """A tensor [1, …]: logits, or an encoder's hidden states."""
    import torch

    feed = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in sample.items()}
    if "pixel_values" in feed:
        feed["pixel_values"] = feed["pixel_values"].to(next(model.parameters()).dtype)
    more = {"use_cache": False} if task.kind == "decoder" else {}
    with torch.no_grad():
        given = model(**feed, **more)
    return given.last_hidden_state if task.kind == "encoder" else given.logits


def runner(model: Any, task: Task) -> Run:
    return lambda sample: forward(model, task, sample).float().numpy()


def calibrator(task: Task) -> Callable[[Any], None]:
    """Runs a model over the calibration data."""

    def run(model: Any) -> None:
        for sample in task.samples("calibration"):
            forward(model, task, sample)

    return run


def head(task: Task) -> tuple[str, ...]:
    """What stays float everywhere, by name: the head of a decoder, the classifier of a vision model. An encoder has neither."""
    return {"decoder": ("lm_head",), "encoder": ("pooler",), "vision": ("classifier",)}[task.kind]


def linears(model: Any, task: Task) -> dict[str, Any]:
    """The linear (and convolution) layers that are to be quantized, by name."""
    import torch

    found = {name: m for name, m in model.named_modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))}
    return {name: m for name, m in found.items() if not any(word in name for word in head(task))}


def parameters(model: Any) -> int:
    """All but those of an encoder's pooler, which no embedding passes."""
    return sum(one.numel() for name, one in model.named_parameters() if "pooler" not in name)


def made(model: Any, task: Task, layers: dict[str, Any], **extra: Any) -> Made:
    """With those layers in low bits; an embedding that is not a layer is left out of nothing."""
    weights = sum(int(np.prod(one.weight.shape)) for one in layers.values())
    return Made(runner(model, task), parameters(model), len(layers), weights, extra)


def untouched(task: Task) -> Made:
    return made(load(task), task, {})


ROWS = {"float32": untouched}
