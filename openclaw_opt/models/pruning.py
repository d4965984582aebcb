"""Structured pruning of the canonical decoder: rank channels, heads and layers, slice the weights, prove the slices.

Importance, per layer:
    magnitude    channel  ‖gate row‖² + ‖up row‖² + ‖down column‖²        (biases of the rows included)
                 head     ‖q rows‖² + ‖o columns‖², plus its share of ‖k rows‖² + ‖v rows‖²
    activation   channel  E[x²]·‖down column‖²: the energy it adds to the layer's output, x on calibration data
                 head     Σ E[x²]·‖o column‖² over the columns of the head
A key/value group counts as the sum of its query heads. Whole layers: 1 − E[cos(input, output)] over calibration tokens.
Sources: Minitron (https://arxiv.org/abs/2407.14679), Wanda (https://arxiv.org/abs/2306.11695), ShortGPT (https://arxiv.org/abs/2403.03853).

The proof: the decoder with the removed parts set to zero (columns of down and o; both branches of a removed layer) and the
shrunk one give the same hidden states and logits within TOLERANCE.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openclaw_opt.errors import VerificationError
from openclaw_opt.models.calibrate import (
    Batch,
    Calibration,
    Progress,
    decoder_batch,
    layer_outputs,
    run_batches,
    watched,
)
from openclaw_opt.models.decoder import Decoder, Layer
from openclaw_opt.models.spec import DecoderSpec, LayerSpec
from openclaw_opt.numerics.quantization import relative_difference

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Scores:
    """Importance in one layer, float64; larger is more important."""

    ffn: Tensor
    """[ffn]"""
    heads: Tensor
    """[q_heads]"""


@dataclass(frozen=True)
class Cut:
    """What is kept of one layer: sorted indices."""

    ffn: Tensor
    q: Tensor
    kv: Tensor

    def sizes(self, before: LayerSpec) -> LayerSpec:
        return before.model_copy(update={"ffn": len(self.ffn), "q_heads": len(self.q), "kv_heads": len(self.kv)})


def magnitude_scores(decoder: Decoder) -> list[Scores]:
    """Scores from the weights alone, one a layer."""
    return [Scores(_ffn_magnitude(layer), _head_magnitude(layer)) for layer in layers_of(decoder)]


def _ffn_magnitude(layer: Layer) -> Tensor:
    rows = _row_energy(layer.gate_up if layer.spec.gated else layer.up)
    return rows.view(-1, layer.sizes.ffn).sum(0) + _column_energy(layer.down)


def _head_magnitude(layer: Layer) -> Tensor:
    sizes, groups = layer.sizes, layer.sizes.q_heads // layer.sizes.kv_heads
    rows = _by_head(layer, _row_energy(layer.qkv))
    q, k, v = torch.split(rows, [sizes.q_heads, sizes.kv_heads, sizes.kv_heads])
    shared: Tensor = (k + v).repeat_interleave(groups) / groups
    return q + shared + _by_head(layer, _column_energy(layer.o))


def _row_energy(linear: nn.Module) -> Tensor:
    assert isinstance(linear, nn.Linear)
    energy = linear.weight.double().square().sum(1)
    return energy if linear.bias is None else energy + linear.bias.double().square()


def _column_energy(linear: nn.Module) -> Tensor:
    assert isinstance(linear, nn.Linear)
    return linear.weight.double().square().sum(0)


def _by_head(layer: Layer, columns: Tensor) -> Tensor:
    return columns.view(-1, layer.spec.head_dim).sum(1)


def activation_scores(decoder: Decoder, calibration: Calibration, progress: Progress) -> list[Scores]:
    """Scores from the energy that each part adds on calibration data, one a layer."""
    names = [f"layers.{i}.{part}" for i in range(len(decoder.layers)) for part in ("down", "o")]
    energy: dict[str, Tensor] = {}

    def seen(name: str, x: Tensor, y: Tensor) -> None:
        added = x.double().square().flatten(0, -2).sum(0)
        energy[name] = energy[name] + added if name in energy else added

    with watched(decoder, names, seen):
        run_batches(decoder, calibration, progress, "ranking channels and heads")
    return [
        Scores(
            energy[f"layers.{i}.down"] * _column_energy(layer.down),
            _by_head(layer, energy[f"layers.{i}.o"] * _column_energy(layer.o)),
        )
        for i, layer in enumerate(layers_of(decoder))
    ]


def block_importance(decoder: Decoder, calibration: Calibration, progress: Progress) -> list[float]:
    """1 − mean cosine similarity of what goes into a layer and what comes out, over all calibration tokens."""
    names = [f"layers.{i}" for i in range(len(decoder.layers))]
    sums, tokens = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0)

    def seen(name: str, x: Tensor, y: Sequence[Tensor]) -> None:
        similar = F.cosine_similarity(x.double(), y[0].double(), dim=-1)
        sums[name] += float(similar.sum())
        tokens[name] += similar.numel()

    with watched(decoder, names, seen):  # type: ignore[arg-type]
        run_batches(decoder, calibration, progress, "ranking layers")
    return [1.0 - sums[name] / tokens[name] for name in names]


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


def layers_of(decoder: Decoder) -> list[Layer]:
    return [layer for layer in decoder.layers if isinstance(layer, Layer)]


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


def prove(original: Decoder, shrunk: Decoder, cuts: Mapping[int, Cut], calibration: Calibration | None) -> float:
    """Mask `original` (in place) and compare: the largest relative difference of hidden states and logits.

    Raises:
        VerificationError: it is above TOLERANCE; the first layer (of the original) where it is, is named.
    """
    wanted, probe = [f"layers.{i}" for i in cuts] + ["head"], _probe(original.spec, calibration)
    mask(original, cuts)
    before = dict(layer_outputs(original, probe))
    worst = 0.0
    for name, (_, made) in zip(wanted, layer_outputs(shrunk, probe), strict=True):
        difference = relative_difference(before[name], made)
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


def least_important(importance: Sequence[float], count: int) -> list[int]:
    """Indices of the `count` smallest, sorted; of equal ones the last."""
    order = sorted(range(len(importance)), key=lambda i: (importance[i], -i))
    return sorted(order[:count])


@dataclass(frozen=True)
class Plan:
    """What to do to a decoder: how many layers go, what sizes the others get, and how parts are ranked."""

    drop: int
    sizes: Callable[[LayerSpec], LayerSpec]
    """Sizes of a layer before → after."""
    by_activation: bool
    narrows: bool


@dataclass(frozen=True)
class Pruned:
    """The shrunk decoder, what stays of which layer of the original, and the numbers behind it."""

    decoder: Decoder
    cuts: dict[int, Cut]
    block_importance: list[float]
    """Of every layer of the original; empty where no layer goes."""
    energy_kept: dict[int, tuple[float, float]]
    """Layer → share of the importance of its channels and of its heads that stays, 0 to 1."""


def prune_decoder(decoder: Decoder, plan: Plan, calibration: Calibration | None, progress: Progress) -> Pruned:
    """Rank and shrink. The proof is `prove`, with a decoder that `mask` may change."""
    before = layers_of(decoder)
    importance: list[float] = []
    if plan.drop:
        assert calibration is not None
        importance = block_importance(decoder, calibration, lambda part, text: progress(part / 2, text))
    dropped = least_important(importance, plan.drop)
    if plan.narrows and plan.by_activation:
        assert calibration is not None
        scores = activation_scores(decoder, calibration, lambda part, text: progress(0.5 + part / 2, text))
    else:
        scores = magnitude_scores(decoder)
    cuts = {
        i: choose(scores[i], layer.sizes, plan.sizes(layer.sizes)) for i, layer in enumerate(before) if i not in dropped
    }
    kept = {i: (_share(scores[i].ffn, cut.ffn), _share(scores[i].heads, cut.q)) for i, cut in cuts.items()}
    return Pruned(shrink(decoder, cuts), cuts, importance, kept)


def _share(scores: Tensor, kept: Tensor) -> float:
    total = float(scores.sum())
    return float(scores[kept].sum()) / total if total > 0 else 1.0
