"""A training's state on disk: one safetensors file with weights, best weights and AdamW's moments, and the rest as JSON.

The JSON stands in the file's own header, so that one rename puts all of it in place: a kill leaves the old state or the new.
Nothing is drawn from a generator with a state: the order of the data is a function of seed and step.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

FILE = "training.safetensors"
KEY = "progress"
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class Progress:
    """What a training knows besides tensors."""

    step: int = 0
    """Optimizer steps done."""
    best_step: int = 0
    best_loss: float = float("inf")
    stale: int = 0
    """Looks at the held-back data since the best one."""
    losses: list[float] = field(default_factory=list)
    """Of the steps since the last look."""
    curve: list[dict[str, Any]] = field(default_factory=list)
    """A row a look: step, train, held_back, learning_rate."""
    seconds: float = 0.0
    """Spent training, over all runs."""
    resumed: list[int] = field(default_factory=list)
    """Steps at which another run went on."""


def write_state(
    folder: Path, progress: Progress, student: nn.Module, optimizer: torch.optim.Optimizer, best: Mapping[str, Tensor]
) -> None:
    """Replace the state in `folder`, which is made if absent."""
    tensors = {f"best.{name}": value for name, value in best.items()}
    for name, value in student.named_parameters():
        tensors[f"student.{name}"] = value.detach()
        kept = optimizer.state.get(value, {})
        tensors |= {f"{moment}.{name}": kept[moment] for moment in MOMENTS if moment in kept}
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{FILE}.part"
    plain = {name: value.cpu().contiguous() for name, value in tensors.items()}
    save_file(plain, part, metadata={KEY: json.dumps(asdict(progress))})
    os.replace(part, folder / FILE)


def read_state(
    folder: Path, student: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[Progress, dict[str, Tensor]] | None:
    """Put the state in `folder` into student and optimizer: what was known, and the best weights. None if there is none,
    or it is damaged: then nothing was changed."""
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        with safe_open(file, "pt") as stored:
            progress = Progress(**json.loads(stored.metadata()[KEY]))
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError:
        return None
    for name, value in student.named_parameters():
        with torch.no_grad():
            value.copy_(tensors[f"student.{name}"])
        if progress.step and f"{MOMENTS[0]}.{name}" in tensors:  # not of what the output does not depend on
            moments = {moment: tensors[f"{moment}.{name}"].to(value.device) for moment in MOMENTS}
            optimizer.state[value] = {"step": torch.tensor(float(progress.step)), **moments}
    best = {name.removeprefix("best."): value for name, value in tensors.items() if name.startswith("best.")}
    return progress, best
