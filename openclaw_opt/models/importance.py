"""How much each FFN channel, head and layer of the canonical decoder matters: what pruning ranks by.

    magnitude    channel  ‖gate row‖² + ‖up row‖² + ‖down column‖²        (biases of the rows included)
                 head     ‖q rows‖² + ‖o columns‖², plus its share of ‖k rows‖² + ‖v rows‖²
    activation   channel  E[x²]·‖down column‖²: the energy it adds to the layer's output, x on calibration data
                 head     Σ E[x²]·‖o column‖² over the columns of the head
    wanda        channel  ‖x‖₂ · Σ |down column|, as Wanda weighs single weights, added up over the outputs
                 head     the same over the columns of the head
    taylor       channel  Σ over batches of (dL/dm)², m = 1 a factor on the channel, L the loss of the next token: with
                          W·x the layer's output this is (Σ w·dL/dw)² over the down column, to first order what is lost
                 head     the same with a factor on the whole head

A key/value group counts as the sum of its query heads. Whole layers: 1 − E[cos(input, output)] over calibration tokens.

`scale` makes channels of different layers comparable: activation energy is divided by that of the hidden states the layer
leaves, magnitude and wanda by the layer's total; taylor is in units of the loss everywhere.

Sources: Minitron (https://arxiv.org/abs/2407.14679), Wanda (https://arxiv.org/abs/2306.11695), ShortGPT (https://arxiv.org/abs/2403.03853),
Molchanov et al., Importance Estimation for Neural Network Pruning (https://arxiv.org/abs/1906.10771).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openclaw_opt.models.calibrate import Calibration, Progress, run_batches, watched
from openclaw_opt.models.decoder import Decoder, Layer

Importance = Literal["magnitude", "activation", "wanda", "taylor"]


@dataclass(frozen=True)
class Scores:
    """Importance in one layer, float64; larger is more important."""

    ffn: Tensor
    """[ffn]"""
    heads: Tensor
    """[q_heads]"""
    scale: float = 1.0
    """What scores are divided by before those of different layers are compared."""


def rank(decoder: Decoder, importance: Importance, calibration: Calibration | None, progress: Progress) -> list[Scores]:
    """Scores of every layer; all but magnitude need calibration data."""
    if importance == "magnitude":
        return magnitude_scores(decoder)
    assert calibration is not None, "check refuses ranking on data without any"
    if importance == "taylor":
        return taylor_scores(decoder, calibration, progress)
    return activation_scores(decoder, calibration, progress, wanda=importance == "wanda")


def magnitude_scores(decoder: Decoder) -> list[Scores]:
    """Scores from the weights alone, one a layer."""
    scores = ((_ffn_magnitude(layer), _head_magnitude(layer)) for layer in layers_of(decoder))
    return [Scores(ffn, heads, float(ffn.sum())) for ffn, heads in scores]


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


def _column_sum(linear: nn.Module) -> Tensor:
    assert isinstance(linear, nn.Linear)
    return linear.weight.double().abs().sum(0)


def _by_head(layer: Layer, columns: Tensor) -> Tensor:
    return columns.view(-1, layer.spec.head_dim).sum(1)


def activation_scores(
    decoder: Decoder, calibration: Calibration, progress: Progress, *, wanda: bool = False
) -> list[Scores]:
    """Scores from what each part adds on calibration data, one a layer: its energy, or the norm that Wanda takes."""
    layers = layers_of(decoder)
    names = [f"layers.{i}.{part}" for i in range(len(layers)) for part in ("down", "o")]
    energy: dict[str, Tensor] = {}
    stream = [0.0] * len(layers)

    def seen(name: str, x: Tensor, y: Tensor) -> None:
        added = x.double().square().flatten(0, -2).sum(0)
        energy[name] = energy[name] + added if name in energy else added

    def left(name: str, x: Tensor, y: Sequence[Tensor]) -> None:
        stream[int(name.split(".")[1])] += float(y[0].double().square().sum())

    with watched(decoder, names, seen), watched(decoder, [f"layers.{i}" for i in range(len(layers))], left):  # type: ignore[arg-type]
        run_batches(decoder, calibration, progress, "ranking channels and heads")
    made = []
    for i, layer in enumerate(layers):
        down, o = energy[f"layers.{i}.down"], energy[f"layers.{i}.o"]
        if wanda:
            ffn, heads = down.sqrt() * _column_sum(layer.down), _by_head(layer, o.sqrt() * _column_sum(layer.o))
            made.append(Scores(ffn, heads, float(ffn.sum())))
        else:
            ffn, heads = down * _column_energy(layer.down), _by_head(layer, o * _column_energy(layer.o))
            made.append(Scores(ffn, heads, stream[i]))
    return made


def taylor_scores(decoder: Decoder, calibration: Calibration, progress: Progress) -> list[Scores]:
    """Scores from the loss's first derivatives, one a layer. Weights get no gradients; a batch's activations are kept."""
    layers = layers_of(decoder)
    made = [Scores(torch.zeros(n.sizes.ffn).double(), torch.zeros(n.sizes.q_heads).double()) for n in layers]
    for i, batch in enumerate(calibration.batches):
        progress(i / len(calibration.batches), f"derivatives of the loss, batch {i + 1} of {len(calibration.batches)}")
        with torch.enable_grad(), _gates(decoder) as gates:
            loss = next_token_loss(decoder(*batch)[0], batch[0])
            gradients = torch.autograd.grad(loss, list(gates.values()))
        for name, gradient in zip(gates, gradients, strict=True):
            at, part = name
            (made[at].ffn if part == "down" else made[at].heads).add_(gradient.double().square())
    return made


@contextmanager
def _gates(decoder: Decoder) -> Iterator[dict[tuple[int, str], Tensor]]:
    """While open, inputs of `down` and `o` are multiplied with ones, a channel's and a head's: what is derived by."""
    gates: dict[tuple[int, str], Tensor] = {}
    handles = []

    def hook(gate: Tensor, repeat: int) -> Callable[..., Tensor]:
        return lambda module, inputs: inputs[0] * gate.repeat_interleave(repeat)

    for i, layer in enumerate(layers_of(decoder)):
        for part, count, repeat in (("down", layer.sizes.ffn, 1), ("o", layer.sizes.q_heads, layer.spec.head_dim)):
            gates[i, part] = torch.ones(count, dtype=layer.down.weight.dtype, requires_grad=True)
            handles.append(layer.get_submodule(part).register_forward_pre_hook(hook(gates[i, part], repeat)))
    try:
        yield gates
    finally:
        for handle in handles:
            handle.remove()


def next_token_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """Mean cross-entropy of every token but the first of each sequence, in nats: [batch, length, vocab], [batch, length]."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


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


def least_important(importance: Sequence[float], count: int) -> list[int]:
    """Indices of the `count` smallest, sorted; of equal ones the last."""
    order = sorted(range(len(importance)), key=lambda i: (importance[i], -i))
    return sorted(order[:count])


def layers_of(decoder: Decoder) -> list[Layer]:
    return [layer for layer in decoder.layers if isinstance(layer, Layer)]
