"""Structured pruning of a decoder or an encoder: cut what ranks last (`models.importance`), slice the weights, prove the slices.

The proof: the model with the removed parts set to zero (columns of down and o; both branches of a removed layer; removed
channels of the hidden states, see `models.hidden`) and the shrunk one give the same hidden states, and the same logits or
embeddings, within TOLERANCE. A removed layer of an encoder is passed by instead: its norms stand after its branches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from openclaw_opt.errors import VerificationError
from openclaw_opt.models.blocks import Block, Passed, Prunable, blocks_of, empty_like, layer_names, stack_of
from openclaw_opt.models.calibrate import (
    Batch,
    Calibration,
    Progress,
    decoder_batch,
    layer_outputs,
    sentence_batches,
)
from openclaw_opt.models.decoder import Decoder, Layer
from openclaw_opt.models.hidden import hidden_scores, mask_hidden, narrowed
from openclaw_opt.models.importance import Importance, Scores, block_importance, least_important, rank
from openclaw_opt.models.linear import replace_layer
from openclaw_opt.models.spec import DecoderSpec, LayerSpec, Sized
from openclaw_opt.numerics.quantization import relative_difference

TOLERANCE = 1e-4


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


def shrink(model: Prunable, cuts: Mapping[int, Cut]) -> Prunable:
    """A model of the layers in `cuts`, in their order, each with what its cut keeps. Weights of layers are copies."""
    old, stack = blocks_of(model), stack_of(model)
    layers = tuple(cut.sizes(old[i].sizes) for i, cut in cuts.items())
    made = empty_like(model, model.spec.model_copy(update={"layers": layers}))
    state = {name: value for name, value in model.state_dict().items() if not name.startswith(f"{stack}.")}
    for new, (i, cut) in enumerate(cuts.items()):
        state |= {f"{stack}.{new}.{name}": value for name, value in _sliced(old[i], cut).items()}
    made.load_state_dict(state, assign=True)
    if isinstance(made, Decoder):
        made.tie()
    return made.eval().requires_grad_(False)


def _sliced(block: Block, cut: Cut) -> dict[str, Tensor]:
    rows, columns = block.rows(cut.q, cut.kv, cut.ffn), block.columns(cut.q, cut.ffn)
    made = {}
    for name, value in block.module.state_dict().items():
        part, _, kind = name.rpartition(".")
        if part in rows:
            value = value[rows[part]]
        elif part in columns and kind == "weight":
            value = value[:, columns[part]]
        made[name] = value.contiguous()
    return made


def mask(model: Prunable, cuts: Mapping[int, Cut]) -> None:
    """Set what `cuts` removes to zero, in place, without changing a shape."""
    for i, block in enumerate(blocks_of(model)):
        if i in cuts:
            for part, kept in block.columns(cuts[i].q, cuts[i].ffn).items():
                _zero_columns(block.linear(part), kept)
        elif isinstance(model, Decoder):
            _zero_branches(block)
        else:
            replace_layer(model, block.name, Passed())  # its norms stand after its branches, and would stay


def _zero_branches(block: Block) -> None:
    layer = block.module
    assert isinstance(layer, Layer)
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
    original: Prunable,
    shrunk: Prunable,
    cuts: Mapping[int, Cut],
    calibration: Calibration | None,
    hidden: Tensor | None = None,
) -> float:
    """Mask `original` (in place) and compare: the largest relative difference of hidden states and of logits
    or embeddings.

    Args:
        hidden: channels of the hidden states that stay; None for all.

    Raises:
        VerificationError: it is above TOLERANCE; the first layer (of the original) where it is, is named.
    """
    probe, names = _probe(original, calibration), layer_names(original)
    mask(original, cuts)
    if hidden is not None:
        assert isinstance(original, Decoder), "check refuses it for encoders"
        mask_hidden(original, hidden)
    outputs = layer_outputs(original, probe)
    before, wanted = dict(outputs), [*(names[i] for i in cuts), outputs[-1][0]]
    worst = 0.0
    for name, (_, made) in zip(wanted, layer_outputs(shrunk, probe), strict=True):
        known = before[name] if hidden is None or name == "head" else before[name][..., hidden]
        difference = relative_difference(known, made)
        if difference > TOLERANCE:
            raise VerificationError(
                f"the shrunk model differs from the masked one by {difference:.2g} of the largest value "
                f"(at most {TOLERANCE:g} is rounding)",
                where=name,
            )
        worst = max(worst, difference)
    return worst


def _probe(model: Prunable, calibration: Calibration | None) -> Batch:
    """The batch the proof runs on: the first of the calibration data, or random tokens."""
    if calibration is not None:
        return calibration.batches[0]
    shape, spec = (4, min(64, model.spec.context or 64)), model.spec
    assert spec.vocab is not None
    ids = torch.randint(spec.vocab, shape, generator=torch.Generator().manual_seed(0))
    if isinstance(spec, DecoderSpec):
        return decoder_batch(ids)
    lengths = torch.arange(shape[1] - shape[0], shape[1]) + 1
    (batch,) = sentence_batches(ids, (torch.arange(shape[1]) < lengths[:, None]).long(), shape[0])
    return batch


def parameters_of(model: nn.Module) -> int:
    """Elements of all parameters; shared ones count once."""
    return sum(value.numel() for value in model.parameters())


@dataclass(frozen=True)
class Plan:
    """What to do to a model: how many layers go, what sizes the others get, and how parts are ranked."""

    drop: int
    sizes: Callable[[LayerSpec], LayerSpec]
    """Sizes of a layer before → after."""
    importance: Importance
    narrows: bool
    widths: Callable[[Sized, list[Scores]], list[int]] | None = None
    """FFN widths of the layers that stay, from the spec with the other cuts made and those layers' scores; None: as `sizes` says."""
    hidden: int | None = None
    """Channels of the hidden states that stay; None for all."""


@dataclass(frozen=True)
class Pruned:
    """The shrunk model, what stays of which layer of the original, and the numbers behind it."""

    model: Prunable
    cuts: dict[int, Cut]
    block_importance: list[float]
    """Of every layer of the original; empty where no layer goes."""
    energy_kept: dict[int, tuple[float, float]]
    """Layer → share of the importance of its channels and of its heads that stays, 0 to 1."""
    hidden: Tensor | None = None
    """Sorted indices of the hidden states' channels that stay; None for all."""
    hidden_kept: float = 1.0
    """Share of their importance that stays."""


def prune_model(model: Prunable, plan: Plan, calibration: Calibration | None, progress: Progress) -> Pruned:
    """Rank and shrink. The proof is `prove`, with a model that `mask` may change."""
    before = blocks_of(model)
    importance: list[float] = []
    if plan.drop:
        assert calibration is not None
        importance = block_importance(model, calibration, lambda part, text: progress(part / 3, text))
    dropped = least_important(importance, plan.drop)
    by = plan.importance if plan.narrows else "magnitude"
    scores = rank(model, by, calibration, lambda part, text: progress((1 + part) / 3, text))
    stay = [i for i in range(len(before)) if i not in dropped]
    sizes = dict(zip(stay, _sizes(model.spec, plan, stay, scores), strict=True))
    cuts = {i: choose(scores[i], before[i].sizes, sizes[i]) for i in stay}
    kept = {i: (_share(scores[i].ffn, cut.ffn), _share(scores[i].heads, cut.q)) for i, cut in cuts.items()}
    shrunk = shrink(model, cuts)
    if plan.hidden is None:
        return Pruned(shrunk, cuts, importance, kept)
    assert isinstance(model, Decoder), "check refuses it for encoders"
    assert isinstance(shrunk, Decoder)
    channels = hidden_scores(model, plan.importance, calibration, lambda part, text: progress((2 + part) / 3, text))
    hidden = _top(channels, plan.hidden)
    return Pruned(narrowed(shrunk, hidden), cuts, importance, kept, hidden, _share(channels, hidden))


def _sizes(spec: Sized, plan: Plan, stay: Sequence[int], scores: Sequence[Scores]) -> tuple[LayerSpec, ...]:
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
