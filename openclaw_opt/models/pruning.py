"""Structured pruning of the canonical decoder: cut what ranks last (`models.importance`), slice the weights, prove the slices.

The proof: the decoder with the removed parts set to zero (columns of down and o; both branches of a removed layer; removed
channels of the hidden states, see `models.hidden`) and the shrunk one give the same hidden states and logits within TOLERANCE.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from openclaw_opt.errors import VerificationError
from openclaw_opt.models.calibrate import Batch, Calibration, Progress, decoder_batch, layer_outputs
from openclaw_opt.models.decoder import Decoder, Layer
from openclaw_opt.models.hidden import hidden_scores, mask_hidden, narrowed
from openclaw_opt.models.importance import Importance, Scores, block_importance, layers_of, least_important, rank
from openclaw_opt.models.spec import DecoderSpec, LayerSpec
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


def shrink(decoder: Decoder, cuts: Mapping[int, Cut]) -> Decoder:
    """A decoder of the layers in `cuts`, in their order, each with what its cut keeps. Weights are copies."""
    old = layers_of(decoder)
    spec = decoder.spec.model_copy(update={"layers": tuple(cut.sizes(old[i].sizes) for i, cut in cuts.items())})
    with torch.device("meta"):
        made = Decoder(spec)
    state = {name: value for name, value in decoder.state_dict().items() if not name.startswith("layers.")}
    for new, (i, cut) in enumerate(cuts.items()):
        state |= {f"layers.{new}.{name}": value for name, value in _sliced(old[i], cut).items()}
    made.load_state_dict(state, assign=True)
    made.tie()
    return made.eval().requires_grad_(False)


def _sliced(layer: Layer, cut: Cut) -> dict[str, Tensor]:
    sizes, dim = layer.sizes, layer.spec.head_dim
    heads = torch.cat((cut.q, sizes.q_heads + cut.kv, sizes.q_heads + sizes.kv_heads + cut.kv))
    wide = torch.cat((cut.ffn, sizes.ffn + cut.ffn)) if layer.spec.gated else cut.ffn
    rows = {"qkv": _elements(heads, dim), "gate_up": wide, "up": wide}
    columns = {"o": _elements(cut.q, dim), "down": cut.ffn}
    made = {}
    for name, value in layer.state_dict().items():
        part, kind = name.split(".")
        if part in rows:
            value = value[rows[part]]
        elif part in columns and kind == "weight":
            value = value[:, columns[part]]
        made[name] = value.contiguous()
    return made


def _elements(heads: Tensor, head_dim: int) -> Tensor:
    """Indices of every element of `heads`, head-major."""
    return (heads[:, None] * head_dim + torch.arange(head_dim)).flatten()


def mask(decoder: Decoder, cuts: Mapping[int, Cut]) -> None:
    """Set what `cuts` removes to zero, in place, without changing a shape."""
    for i, layer in enumerate(layers_of(decoder)):
        if i in cuts:
            _zero_columns(layer.o, _elements(cuts[i].q, layer.spec.head_dim))
            _zero_columns(layer.down, cuts[i].ffn)
            continue
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
    original: Decoder,
    shrunk: Decoder,
    cuts: Mapping[int, Cut],
    calibration: Calibration | None,
    hidden: Tensor | None = None,
) -> float:
    """Mask `original` (in place) and compare: the largest relative difference of hidden states and logits.

    Args:
        hidden: channels of the hidden states that stay; None for all.

    Raises:
        VerificationError: it is above TOLERANCE; the first layer (of the original) where it is, is named.
    """
    wanted, probe = [f"layers.{i}" for i in cuts] + ["head"], _probe(original.spec, calibration)
    mask(original, cuts)
    if hidden is not None:
        mask_hidden(original, hidden)
    before = dict(layer_outputs(original, probe))
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


def _probe(spec: DecoderSpec, calibration: Calibration | None) -> Batch:
    """The batch the proof runs on: the first of the calibration data, or random tokens."""
    if calibration is not None:
        return calibration.batches[0]
    shape = (4, min(64, spec.context))
    return decoder_batch(torch.randint(spec.vocab, shape, generator=torch.Generator().manual_seed(0)))


def parameters_of(decoder: Decoder) -> int:
    """Elements of all parameters; shared ones count once."""
    return sum(value.numel() for value in decoder.parameters())


@dataclass(frozen=True)
class Plan:
    """What to do to a decoder: how many layers go, what sizes the others get, and how parts are ranked."""

    drop: int
    sizes: Callable[[LayerSpec], LayerSpec]
    """Sizes of a layer before → after."""
    importance: Importance
    narrows: bool
    widths: Callable[[DecoderSpec, list[Scores]], list[int]] | None = None
    """FFN widths of the layers that stay, from the spec with the other cuts made and those layers' scores; None: as `sizes` says."""
    hidden: int | None = None
    """Channels of the hidden states that stay; None for all."""


@dataclass(frozen=True)
class Pruned:
    """The shrunk decoder, what stays of which layer of the original, and the numbers behind it."""

    decoder: Decoder
    cuts: dict[int, Cut]
    block_importance: list[float]
    """Of every layer of the original; empty where no layer goes."""
    energy_kept: dict[int, tuple[float, float]]
    """Layer → share of the importance of its channels and of its heads that stays, 0 to 1."""
    hidden: Tensor | None = None
    """Sorted indices of the hidden states' channels that stay; None for all."""
    hidden_kept: float = 1.0
    """Share of their importance that stays."""


def prune_decoder(decoder: Decoder, plan: Plan, calibration: Calibration | None, progress: Progress) -> Pruned:
    """Rank and shrink. The proof is `prove`, with a decoder that `mask` may change."""
    before = layers_of(decoder)
    importance: list[float] = []
    if plan.drop:
        assert calibration is not None
        importance = block_importance(decoder, calibration, lambda part, text: progress(part / 3, text))
    dropped = least_important(importance, plan.drop)
    by = plan.importance if plan.narrows else "magnitude"
    scores = rank(decoder, by, calibration, lambda part, text: progress((1 + part) / 3, text))
    stay = [i for i in range(len(before)) if i not in dropped]
    sizes = dict(zip(stay, _sizes(decoder.spec, plan, stay, scores), strict=True))
    cuts = {i: choose(scores[i], before[i].sizes, sizes[i]) for i in stay}
    kept = {i: (_share(scores[i].ffn, cut.ffn), _share(scores[i].heads, cut.q)) for i, cut in cuts.items()}
    shrunk = shrink(decoder, cuts)
    if plan.hidden is None:
        return Pruned(shrunk, cuts, importance, kept)
    channels = hidden_scores(decoder, plan.importance, calibration, lambda part, text: progress((2 + part) / 3, text))
    hidden = _top(channels, plan.hidden)
    return Pruned(narrowed(shrunk, hidden), cuts, importance, kept, hidden, _share(channels, hidden))


def _sizes(spec: DecoderSpec, plan: Plan, stay: Sequence[int], scores: Sequence[Scores]) -> tuple[LayerSpec, ...]:
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
