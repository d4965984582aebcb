"""Structured pruning of decoders and encoders: cut what ranks last (`models.importance`), slice the weights, prove the slices.

The proof: the model with the removed parts set to zero (columns of down and o; both branches of a removed layer; removed
channels of the hidden states, see `models.hidden`) and the shrunk one give the same hidden states and outputs within TOLERANCE.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from openclaw_opt.errors import VerificationError
from openclaw_opt.models.blocks import Block, blocks_of, elements
from openclaw_opt.models.calibrate import Batch, Calibration, Progress, decoder_batch, watched
from openclaw_opt.models.decoder import Decoder, Layer
from openclaw_opt.models.hf import Encoder, resized
from openclaw_opt.models.hidden import hidden_scores, mask_hidden, narrowed
from openclaw_opt.models.importance import Importance, Scores, block_importance, layers_of, least_important, rank
from openclaw_opt.models.linear import replace_layer
from openclaw_opt.models.spec import LayerSpec, Spec
from openclaw_opt.numerics.quantization import relative_difference

TOLERANCE = 1e-4
ENDS = ("head", "embedding")
"""Names of what a model gives; the others are hidden states."""


@dataclass(frozen=True)
class Cut:
    """What is kept of one layer: sorted indices."""

    ffn: Tensor
    q: Tensor
    kv: Tensor

    def sizes(self, before: LayerSpec) -> LayerSpec:
        return before.model_copy(update={"ffn": len(self.ffn), "q_heads": len(self.q), "kv_heads": len(self.kv)})


def choose(scores: Scores, before: LayerSpec, after: LayerSpec) -> Cut:
    """The most important channels, key/value groups, and query heads within each of these, as many as `after` has."""
    by_group = scores.heads.view(before.kv_heads, -1)
    each = by_group.shape[1]
    kv = _top(by_group.sum(1), after.kv_heads)
    q = [group * each + _top(by_group[group], after.q_heads // after.kv_heads) for group in kv.tolist()]
    return Cut(_top(scores.ffn, after.ffn), torch.cat(q), kv)


def _top(scores: Tensor, count: int) -> Tensor:
    """Sorted indices of the `count` largest; of equal ones the first."""
    return scores.argsort(descending=True, stable=True)[:count].sort().values


def shrink(module: nn.Module, cuts: Mapping[int, Cut]) -> nn.Module:
    """A model of the layers in `cuts`, in their order, each with what its cut keeps. Weights are copies."""
    old = blocks_of(module)
    layers = tuple(cut.sizes(old[i].sizes) for i, cut in cuts.items())
    made = _empty_like(module, layers)
    inside = tuple(f"{block.name}." for block in old)
    state = {name: value for name, value in module.state_dict().items() if not name.startswith(inside)}
    for new, (i, cut) in zip(blocks_of(made), cuts.items(), strict=True):
        state |= {f"{new.name}.{name}": value for name, value in _sliced(module, old[i], cut).items()}
    made.load_state_dict(state, assign=True)
    if isinstance(made, Decoder):
        made.tie()
    return made.eval().requires_grad_(False)


def _empty_like(module: nn.Module, layers: tuple[LayerSpec, ...]) -> nn.Module:
    """The same kind of model with other layers, without numbers."""
    if isinstance(module, Decoder):
        with torch.device("meta"):
            return Decoder(module.spec.model_copy(update={"layers": layers}))
    assert isinstance(module, Encoder)
    return resized(module, layers)


def _sliced(module: nn.Module, block: Block, cut: Cut) -> dict[str, Tensor]:
    rows: dict[str, list[Tensor]] = {}
    for wide in block.ffn:
        rows.setdefault(wide.linear, []).append(wide.start + cut.ffn)
    for each, heads in ((block.q, cut.q), (block.k, cut.kv), (block.v, cut.kv)):
        rows.setdefault(each.linear, []).append(each.start + elements(heads, block.head_dim))
    columns = {block.o: elements(cut.q, block.head_dim), block.down: cut.ffn}
    made = {}
    for name, value in module.get_submodule(block.name).state_dict().items():
        part, _, kind = name.rpartition(".")
        if part in rows:
            value = value[torch.cat(rows[part])]
        elif part in columns and kind == "weight":
            value = value[:, columns[part]]
        made[name] = value.contiguous()
    return made


def mask(module: nn.Module, cuts: Mapping[int, Cut]) -> None:
    """Set what `cuts` removes to zero, in place, without changing a shape; removed layers give back what they get."""
    for i, block in enumerate(blocks_of(module)):
        if i in cuts:
            _zero_columns(block.linear(module, block.o), elements(cuts[i].q, block.head_dim))
            _zero_columns(block.linear(module, block.down), cuts[i].ffn)
        elif isinstance(module, Decoder):
            _silence(layers_of(module)[i])
        else:
            replace_layer(module, block.name, _Through())


class _Through(nn.Module):
    """In the place of an encoder's layer: after two norms, no weights make it one."""

    def forward(self, hidden: Tensor, *context: Any, **options: Any) -> Tensor:
        return hidden


def _silence(layer: Layer) -> None:
    """Both branches of a decoder's layer add nothing."""
    for part in (layer.o, layer.down):
        _zero_columns(part, torch.empty(0, dtype=torch.long))
        part.bias = None if part.bias is None else nn.Parameter(torch.zeros_like(part.bias), requires_grad=False)
    if layer.spec.post_norms:
        for norm in (layer.norm_post_attn, layer.norm_post_mlp):
            norm.weight = nn.Parameter(torch.zeros_like(norm.weight), requires_grad=False)
            assert norm.bias is None


def _zero_columns(linear: nn.Linear, kept: Tensor) -> None:
    zeroed = torch.zeros_like(linear.weight)
    zeroed[:, kept] = linear.weight[:, kept]
    linear.weight = nn.Parameter(zeroed, requires_grad=False)


def prove(
    original: nn.Module,
    shrunk: nn.Module,
    cuts: Mapping[int, Cut],
    calibration: Calibration | None,
    hidden: Tensor | None = None,
) -> float:
    """Mask `original` (in place) and compare: the largest relative difference of hidden states and outputs.

    Args:
        hidden: channels of the hidden states that stay; None for all.

    Raises:
        VerificationError: it is above TOLERANCE; the first layer (of the original) where it is, is named.
    """
    old, probe = blocks_of(original), _probe(original, calibration)
    mask(original, cuts)
    if hidden is not None:
        assert isinstance(original, Decoder)
        mask_hidden(original, hidden)
    before = _outputs(original, [old[i].name for i in cuts], probe)
    after = _outputs(shrunk, [block.name for block in blocks_of(shrunk)], probe)
    worst = 0.0
    for (name, whole), (_, made) in zip(before, after, strict=True):
        known = whole if hidden is None or name in ENDS else whole[..., hidden]
        difference = relative_difference(known, made)
        if difference > TOLERANCE:
            raise VerificationError(
                f"the shrunk model differs from the masked one by {difference:.2g} of the largest value "
                f"(at most {TOLERANCE:g} is rounding)",
                where=name,
            )
        worst = max(worst, difference)
    return worst


@torch.no_grad()
def _outputs(module: nn.Module, names: Sequence[str], batch: Batch) -> list[tuple[str, Tensor]]:
    """Hidden states after the layers in `names`, then what the model gives: logits, or an embedding."""
    seen: list[tuple[str, Tensor]] = []
    with watched(module, names, lambda name, x, y: seen.append((name, y[0] if isinstance(y, tuple) else y))):
        given = module(*batch)
    return [*seen, ("head", given[0]) if isinstance(module, Decoder) else ("embedding", given[1])]


def _probe(module: nn.Module, calibration: Calibration | None) -> Batch:
    """The batch the proof runs on: the first of the calibration data, or random tokens."""
    if calibration is not None:
        return calibration.batches[0]
    assert isinstance(module, (Decoder, Encoder))
    shape = (4, min(64, module.spec.context or 64))
    ids = torch.randint(module.spec.vocab or 2, shape, generator=torch.Generator().manual_seed(0))
    batch = decoder_batch(ids)
    return batch if isinstance(module, Decoder) else (ids, batch[1], torch.zeros_like(ids))


def parameters_of(module: nn.Module) -> int:
    """Elements of all parameters; shared ones count once."""
    return sum(value.numel() for value in module.parameters())


@dataclass(frozen=True)
class Plan:
    """What to do to a model: how many layers go, what sizes the others get, and how parts are ranked."""

    drop: int
    sizes: Callable[[LayerSpec], LayerSpec]
    """Sizes of a layer before → after."""
    importance: Importance
    narrows: bool
    widths: Callable[[Spec, list[Scores]], list[int]] | None = None
    """FFN widths of the layers that stay, from the spec with the other cuts made and those layers' scores; None: as `sizes` says."""
    hidden: int | None = None
    """Channels of the hidden states that stay; None for all."""


@dataclass(frozen=True)
class Pruned:
    """The shrunk model, what stays of which layer of the original, and the numbers behind it."""

    module: nn.Module
    spec: Spec
    cuts: dict[int, Cut]
    block_importance: list[float]
    """Of every layer of the original; empty where no layer goes."""
    energy_kept: dict[int, tuple[float, float]]
    """Layer → share of the importance of its channels and of its heads that stays, 0 to 1."""
    hidden: Tensor | None = None
    """Sorted indices of the hidden states' channels that stay; None for all."""
    hidden_kept: float = 1.0
    """Share of their importance that stays."""


def prune_model(module: nn.Module, plan: Plan, calibration: Calibration | None, progress: Progress) -> Pruned:
    """Rank and shrink a Decoder or an Encoder. The proof is `prove`, with a model that `mask` may change."""
    before = blocks_of(module)
    importance: list[float] = []
    if plan.drop:
        assert calibration is not None
        importance = block_importance(module, calibration, lambda part, text: progress(part / 3, text))
    dropped = least_important(importance, plan.drop)
    by = plan.importance if plan.narrows else "magnitude"
    scores = rank(module, by, calibration, lambda part, text: progress((1 + part) / 3, text))
    stay = [i for i in range(len(before)) if i not in dropped]
    assert isinstance(module, (Decoder, Encoder))
    sizes = dict(zip(stay, _sizes(module.spec, plan, stay, scores), strict=True))
    cuts = {i: choose(scores[i], before[i].sizes, sizes[i]) for i in stay}
    kept = {i: (_share(scores[i].ffn, cut.ffn), _share(scores[i].heads, cut.q)) for i, cut in cuts.items()}
    shrunk = shrink(module, cuts)
    assert isinstance(shrunk, (Decoder, Encoder))
    if plan.hidden is None:
        return Pruned(shrunk, shrunk.spec, cuts, importance, kept)
    assert isinstance(module, Decoder)
    assert isinstance(shrunk, Decoder)
    channels = hidden_scores(module, plan.importance, calibration, lambda part, text: progress((2 + part) / 3, text))
    hidden = _top(channels, plan.hidden)
    made = narrowed(shrunk, hidden)
    return Pruned(made, made.spec, cuts, importance, kept, hidden, _share(channels, hidden))


def _sizes(spec: Spec, plan: Plan, stay: Sequence[int], scores: Sequence[Scores]) -> tuple[LayerSpec, ...]:
    """Of the layers that stay."""
    layers = tuple(plan.sizes(spec.layers[i]) for i in stay)
    if plan.widths is None:
        return layers
    hidden = spec.hidden if plan.hidden is None else plan.hidden
    widths = plan.widths(spec.model_copy(update={"layers": layers, "hidden": hidden}), [scores[i] for i in stay])
    return tuple(layer.model_copy(update={"ffn": width}) for layer, width in zip(layers, widths, strict=True))


def _share(scores: Tensor, kept: Tensor) -> float:
    total = float(scores.sum())
    return float(scores[kept].sum()) / total if total > 0 else 1.0
