"""A first recipe: what a user of that model and target would begin with, every line of it legal."""

from __future__ import annotations

from pathlib import Path

from openclaw_opt.checkpoint import list_checkpoint
from openclaw_opt.data.digits import Digits
from openclaw_opt.models.families import spec_from_config
from openclaw_opt.recipe_model import resolve_model
from openclaw_opt.targets import Target, formats_of, target_named

PREFERRED = ("fp8", "int8", "int4")
DATA = {"decoder": ("python-stdlib", 64, 256), "encoder": ("python-docstrings", 256, 64), "vision": ("digits", 256, 0)}
"""Task → source, samples, tokens in one."""
METRICS = {
    "decoder": ("perplexity, agreement, latency, memory, size, roofline", "perplexity.recovery"),
    "encoder": ("embedding, latency, memory, size", "embedding.cosine.mean"),
    "vision": ("classification, latency, memory, size", "agreement.class"),
}


def starter_recipe(model: str, target: str, file: Path) -> str:
    """YAML text. Raises RecipeError for an unknown target or a checkpoint that cannot be read."""
    row = target_named(target)
    where = resolve_model(model if not Path(model).exists() else str(Path(model).absolute()), Path.cwd())
    spec = spec_from_config(list_checkpoint(where).config)
    head = f"description: {Path(model).name} for {row.title}\nmodel: {where}\ntarget: {target}\n"
    if spec.task == "vision" and getattr(spec, "image", None) != Digits.image:
        return (
            f"{head}# No source that comes with openclaw-opt has images of this size, so nothing is calibrated and no accuracy known.\n"
            "passes: [export, fuse, build]\nmetrics: [latency, memory, size]\n"
        )
    source, samples, length = DATA[spec.task]
    sizes = f"samples: {samples}" + (
        f", length: {min(length, getattr(spec, 'context', None) or length)}" if length else ""
    )
    metrics, budget = METRICS[spec.task]
    return (
        f"{head}"
        "data:                    # replace by your own: {source: text, path: corpus.jsonl, ...}\n"
        f"  calibration: {{source: {source}, split: calibration, {sizes}}}\n"
        f"  evaluation:  {{source: {source}, split: evaluation, {sizes}}}\n"
        "passes:\n"
        f"  - quantize: {{format: {_format(row)}}}\n"
        "  - export\n"
        "  - fuse\n"
        "  - build\n"
        f"metrics: [{metrics}]\n"
        "budgets:\n"
        f'  {budget}: ">= 0.98"\n'
    )


def _format(target: Target) -> str:
    legal = formats_of(target, target.backend)
    return next(name for name in PREFERRED if name in legal)
