"""Torch-Pruning: a fifth of the channels inside every FFN goes, and nothing else; by magnitude, and by Taylor's first order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accuracy_worker import Made, Task
from tools_torch import load, parameters, runner

ROOTS = {"decoder": "gate_proj", "encoder": "intermediate.dense"}
SHARE = 0.2
ROUND = 32
"""Channels left are a multiple of this, as ours are on a CPU."""


def pruned(importance: str) -> Callable[[Task], Made]:
    def make(task: Task) -> Made:
        import torch
        import torch_pruning as tp

        model = load(task)
        for one in model.parameters():
            one.requires_grad_(True)
        sample = {name: torch.from_numpy(value) for name, value in task.samples("calibration")[0].items()}
        more = {"use_cache": False} if task.kind == "decoder" else {}
        roots = [m for name, m in model.named_modules() if name.endswith(ROOTS[task.kind])]
        width = roots[0].out_features
        left = -(-round(width * (1 - SHARE)) // ROUND) * ROUND
        graph = tp.DependencyGraph().build_dependency(
            model, example_inputs=sample, forward_fn=lambda m, x: m(**x, **more)[0]
        )
        if importance == "taylor":
            _gradients(model, task)
        score = {"magnitude": tp.importance.GroupMagnitudeImportance, "taylor": tp.importance.GroupTaylorImportance}[
            importance
        ]()
        for root in roots:
            group = graph.get_pruning_group(root, tp.prune_linear_out_channels, idxs=list(range(width)))
            order = torch.argsort(score(group))[: width - left].tolist()
            graph.get_pruning_group(root, tp.prune_linear_out_channels, idxs=order).prune()
        model.zero_grad()
        return Made(runner(model, task), parameters(model), 0, 0, {"width": left})

    return make


def _gradients(model: Any, task: Task) -> None:
    """Of the language model's own loss on the calibration data; an encoder has none, so the squared length of what it says."""
    import torch

    if task.kind != "decoder":
        raise ValueError("an encoder without a head has no loss to take a derivative of")
    for sample in task.samples("calibration"):
        ids = torch.from_numpy(sample["input_ids"])
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()


ROWS = {"magnitude": pruned("magnitude"), "taylor": pruned("taylor")}
