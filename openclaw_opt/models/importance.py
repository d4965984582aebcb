"""How much each FFN channel, head and layer of a decoder or an encoder matters: what pruning ranks by.

    magnitude    channel  ‖gate row‖² + ‖up row‖² + ‖down column‖²        (biases of the rows included)
                 head     ‖q rows‖² + ‖o columns‖², plus its share of ‖k rows‖² + ‖v rows‖²
    activation   channel  E[x²]·‖down column‖²: the energy it adds to the layer's output, x on calibration data
                 head     Σ E[x²]·‖o column‖² over the columns of the head
    wanda        channel  ‖x‖₂ · Σ |down column|, as Wanda weighs single weights, added up over the outputs
                 head     the same over the columns of the head
    taylor       channel  Σ over batches of (dL/dm)², m = 1 a factor on the channel, L the loss of the next token: with
                          W·x the layer's output this is (Σ w·dL/dw)² over the down column, to first order what is lost
                 head     the same with a factor on the whole head
                 An encoder has no next token. Its L is a random vector times each embedding: the mean of (dL/dm)² over
                 such vectors is ‖d embedding/dm‖², to second order how far embeddings move.

A key/value group counts as the sum of its query heads. Whole layers: 1 − E[cos(input, output)] over calibration tokens.
Padding counts nowhere.

`scale` makes channels of different layers comparable: activation energy is divided by that of the hidden states the layer
leaves, magnitude and wanda by the layer's total; taylor is in units of the loss everywhere.

Sources: Minitron (https://arxiv.org/abs/2407.14679), Wanda (https://arxiv.org/abs/2306.11695), ShortGPT (https://arxiv.org/abs/2403.03853),
Molchanov et al., Importance Estimation for Neural Network Pruning (https://arxiv.org/abs/1906.10771); the mean over random
vectors: Hutchinson, A stochastic estimator of the trace of the influence matrix (Communications in Statistics 19, 1990).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import sqrt
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openclaw_opt.models.blocks import Block, Prunable, blocks_of, layer_names, stream
from openclaw_opt.models.calibrate import Batch, Calibration, Progress, run_batches, watched
from openclaw_opt.models.decoder import Decoder

Importance = Literal["magnitude", "activation", "wanda", "taylor"]
Output = Tensor | tuple[Tensor, ...]
"""What a layer gives, see `stream`."""
DIRECTIONS = 4
"""Random directions of each batch's embeddings: a derivative each."""


@dataclass(frozen=True)
class Scores:
    """Importance in one layer, float64; larger is more important."""

    ffn: Tensor
    """[ffn]"""
    heads: Tensor
    """[q_heads]"""
    scale: float = 1.0
    """What scores are divided by before those of different layers are compared."""


def rank(model: Prunable, importance: Importance, calibration: Calibration | None, progress: Progress) -> list[Scores]:
    """Scores of every layer; all but magnitude need calibration data."""
    if importance == "magnitude":
        return magnitude_scores(model)
    assert calibration is not None, "check refuses ranking on data without any"
    if importance == "taylor":
        return taylor_scores(model, calibration, progress)
    return activation_scores(model, calibration, progress, wanda=importance == "wanda")


def magnitude_scores(model: Prunable) -> list[Scores]:
    """Scores from the weights alone, one a layer."""
    scores = ((_ffn_magnitude(block), _head_magnitude(block)) for block in blocks_of(model))
    return [Scores(ffn, heads, float(ffn.sum())) for ffn, heads in scores]


def _ffn_magnitude(block: Block) -> Tensor:
    rows = _row_energy(block.linear(block.wide))
    return rows.view(-1, block.sizes.ffn).sum(0) + _column_energy(block.linear(block.down))


def _head_magnitude(block: Block) -> Tensor:
    sizes, groups = block.sizes, block.sizes.q_heads // block.sizes.kv_heads
    rows = _by_head(block, torch.cat([_row_energy(block.linear(name)) for name in block.heads]))
    q, k, v = torch.split(rows, [sizes.q_heads, sizes.kv_heads, sizes.kv_heads])
    shared: Tensor = (k + v).repeat_interleave(groups) / groups
    return q + shared + _by_head(block, _column_energy(block.linear(block.o)))


def _row_energy(linear: nn.Linear) -> Tensor:
    energy = linear.weight.double().square().sum(1)
    return energy if linear.bias is None else energy + linear.bias.double().square()


def _column_energy(linear: nn.Linear) -> Tensor:
    return linear.weight.double().square().sum(0)


def _column_sum(linear: nn.Linear) -> Tensor:
    return linear.weight.double().abs().sum(0)


def _by_head(block: Block, columns: Tensor) -> Tensor:
    return columns.view(-1, block.head_dim).sum(1)


class _Real:
    """Which tokens of the batch that runs are no padding: bool [batch, length]."""

    mask: Tensor

    def starts(self, batch: Batch) -> None:
        self.mask = batch[1].bool()

    def of(self, x: Tensor) -> Tensor:
        """Their vectors, float64 [tokens, channels]."""
        return x[self.mask].double()


def activation_scores(
    model: Prunable, calibration: Calibration, progress: Progress, *, wanda: bool = False
) -> list[Scores]:
    """Scores from what each part adds on calibration data, one a layer: its energy, or the norm that Wanda takes."""
    blocks, real = blocks_of(model), _Real()
    names = [f"{block.name}.{part}" for block in blocks for part in (block.down, block.o)]
    energy: dict[str, Tensor] = {}
    left = {block.name: 0.0 for block in blocks}

    def seen(name: str, x: Tensor, y: Tensor) -> None:
        added = real.of(x).square().sum(0)
        energy[name] = energy[name] + added if name in energy else added

    def leaves(name: str, x: Tensor, y: Output) -> None:
        left[name] += float(real.of(stream(y)).square().sum())

    with watched(model, names, seen), watched(model, list(left), leaves):
        run_batches(model, calibration, progress, "ranking channels and heads", real.starts)
    made = []
    for block in blocks:
        (down, x), (o, y) = ((block.linear(part), energy[f"{block.name}.{part}"]) for part in (block.down, block.o))
        if wanda:
            ffn, heads = x.sqrt() * _column_sum(down), _by_head(block, y.sqrt() * _column_sum(o))
            made.append(Scores(ffn, heads, float(ffn.sum())))
        else:
            ffn, heads = x * _column_energy(down), _by_head(block, y * _column_energy(o))
            made.append(Scores(ffn, heads, left[block.name]))
    return made


def taylor_scores(model: Prunable, calibration: Calibration, progress: Progress) -> list[Scores]:
    """Scores from the loss's first derivatives, one a layer. Weights get no gradients; a batch's activations are kept."""
    sizes = [block.sizes for block in blocks_of(model)]
    made = [Scores(torch.zeros(one.ffn).double(), torch.zeros(one.q_heads).double()) for one in sizes]
    for i, batch in enumerate(calibration.batches):
        progress(i / len(calibration.batches), f"derivatives of the loss, batch {i + 1} of {len(calibration.batches)}")
        with torch.enable_grad(), _gates(model) as gates:
            for loss in _losses(model, batch, i):
                gradients = torch.autograd.grad(loss, list(gates.values()), retain_graph=True)
                for (at, part), gradient in zip(gates, gradients, strict=True):
                    getattr(made[at], part).add_(gradient.double().square())
    return made


def _losses(model: Prunable, batch: Batch, seed: int) -> list[Tensor]:
    """What is derived: a decoder's loss, or embeddings along random directions, +1 and −1, the same ones every time."""
    if isinstance(model, Decoder):
        return [next_token_loss(model(*batch)[0], batch[0])]
    embedding: Tensor = model(*batch)[1]
    chance = torch.Generator().manual_seed(seed)
    signs = 2.0 * torch.randint(2, (DIRECTIONS, *embedding.shape), generator=chance) - 1
    return [(direction * embedding).sum() / sqrt(DIRECTIONS) for direction in signs]


@contextmanager
def _gates(model: Prunable) -> Iterator[dict[tuple[int, str], Tensor]]:
    """While open, inputs of `down` and `o` are multiplied with ones, a channel's and a head's: what is derived by."""
    gates: dict[tuple[int, str], Tensor] = {}
    handles = []

    def hook(gate: Tensor, repeat: int) -> Callable[..., Tensor]:
        return lambda module, inputs: inputs[0] * gate.repeat_interleave(repeat)

    for i, block in enumerate(blocks_of(model)):
        parts = (("ffn", block.down, block.sizes.ffn, 1), ("heads", block.o, block.sizes.q_heads, block.head_dim))
        for part, name, count, repeat in parts:
            linear = block.linear(name)
            gates[i, part] = torch.ones(count, dtype=linear.weight.dtype, requires_grad=True)
            handles.append(linear.register_forward_pre_hook(hook(gates[i, part], repeat)))
    try:
        yield gates
    finally:
        for handle in handles:
            handle.remove()


def next_token_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """Mean cross-entropy of every token but the first of each sequence, in nats: [batch, length, vocab], [batch, length]."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def block_importance(model: Prunable, calibration: Calibration, progress: Progress) -> list[float]:
    """1 − mean cosine similarity of what goes into a layer and what comes out, over all calibration tokens."""
    names, real = layer_names(model), _Real()
    sums, tokens = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0)

    def seen(name: str, x: Tensor, y: Output) -> None:
        similar = F.cosine_similarity(real.of(x), real.of(stream(y)), dim=-1)
        sums[name] += float(similar.sum())
        tokens[name] += similar.numel()

    with watched(model, names, seen):
        run_batches(model, calibration, progress, "ranking layers", real.starts)
    return [1.0 - sums[name] / tokens[name] for name in names]


def least_important(importance: Sequence[float], count: int) -> list[int]:
    """Indices of the `count` smallest, sorted; of equal ones the last."""
    order = sorted(range(len(importance)), key=lambda i: (importance[i], -i))
    return sorted(order[:count])
