"""What pruning did, in words and in rows of the report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from openclaw_opt.models.sizes import ENCODER_LAYERS

if TYPE_CHECKING:
    from openclaw_opt.models.pruning import Pruned
    from openclaw_opt.models.spec import Sized


def changes(before: Sized, after: Sized) -> str:
    """What became smaller, in words; sizes of the layers that stay, each different one once."""
    said = [f"hidden channels {before.hidden} → {after.hidden}"] if before.hidden != after.hidden else []
    said += [f"vocabulary {before.vocab} → {after.vocab}"] if before.vocab != after.vocab else []
    said += [f"layers {len(before.layers)} → {len(after.layers)}"] if len(before.layers) != len(after.layers) else []
    heads = (("q_heads", "query heads"), ("kv_heads", "key/value heads"))
    for name, title in (("ffn", "FFN channels"), *((("q_heads", "heads"),) if before.task == "encoder" else heads)):
        old, new = (sorted({getattr(layer, name) for layer in spec.layers}) for spec in (before, after))
        if old != new:
            said.append(f"{title} {'/'.join(map(str, old))} → {'/'.join(map(str, new))}")
    return ", ".join(said)


def widths(before: Sized, made: Pruned) -> list[dict[str, Any]]:
    """A row a remaining layer: its place in the original, sizes before and after, share of the importance kept."""
    rows = []
    for i, sizes in zip(made.cuts, made.model.spec.layers, strict=True):
        old = before.layers[i]
        ffn, heads = made.energy_kept[i]
        rows.append(
            {
                "layer": f"{'layers' if before.task == 'decoder' else ENCODER_LAYERS}.{i}",
                "ffn": [old.ffn, sizes.ffn],
                "q_heads": [old.q_heads, sizes.q_heads],
                "kv_heads": [old.kv_heads, sizes.kv_heads],
                "ffn_importance_kept": round(ffn, 6),
                "heads_importance_kept": round(heads, 6),
            }
        )
    return rows
