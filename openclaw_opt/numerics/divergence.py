"""How far two models' outputs are apart: log-likelihood, KL divergence, top-1 agreement, cosine, SQNR.

All sums are float64. Log-probabilities are `logits - logsumexp(logits)`, in nats, computed in float32 per row after the
row's maximum is taken off (error about 1e-6). KL is KL(reference ‖ engine) = Σ p·(log p − log q): what the reference
believes and the engine lost. It is at least 0; rounding can leave about -1e-7 a token, which is kept, not clipped.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]

LN2 = float(np.log(2.0))


@dataclass(frozen=True)
class SequenceScore:
    """Sums over the scored tokens of one sequence; the unit of every interval (tokens of a text are not independent)."""

    tokens: int
    nll: float
    """Σ −log q(target), nats."""
    reference_nll: float
    kl: float
    """Σ KL(reference ‖ engine), nats; NaN where the two have different vocabularies."""
    agreed: int
    """Positions where both have the same most probable token (ties: the lower id on both sides); 0 where vocabularies differ."""


def log_softmax(logits: Floats) -> Floats:
    """[..., vocab] any float -> log-probabilities float32, nats."""
    shifted = np.asarray(logits, np.float32) - np.max(logits, axis=-1, keepdims=True)
    sums = np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float64)
    return np.asarray(shifted - np.log(sums), np.float32)


def target_log_probability(log_probabilities: Floats, targets: Ids) -> NDArray[np.float64]:
    """[tokens, vocab], [tokens] -> [tokens] float64: the log-probability of each target."""
    return np.asarray(np.take_along_axis(log_probabilities, targets[:, None], axis=-1)[:, 0], np.float64)


def kl_divergence(reference: Floats, engine: Floats) -> NDArray[np.float64]:
    """Log-probabilities [tokens, vocab] twice -> KL(reference ‖ engine) of each token, float64 nats.

    The reference's row is normalised again first, so that one stored in float16 is still a distribution.
    """
    p = log_softmax(reference)
    return np.asarray(np.einsum("tv,tv->t", np.exp(p), p - engine, dtype=np.float64), np.float64)


def score_sequence(
    log_probabilities: Floats,
    targets: Ids,
    reference: Floats,
    reference_target: Floats,
    reference_top: NDArray[np.int32],
) -> SequenceScore:
    """One sequence's sums. Log-probabilities [tokens, vocab] of engine and reference at the positions before `targets` [tokens]."""
    return SequenceScore(
        tokens=len(targets),
        nll=-float(target_log_probability(log_probabilities, targets).sum()),
        reference_nll=-float(np.sum(reference_target, dtype=np.float64)),
        kl=float(kl_divergence(reference, log_probabilities).sum()),
        agreed=int((log_probabilities.argmax(-1) == reference_top).sum()),
    )


def score_text(log_probabilities: Floats, targets: Ids, reference_target: Floats) -> SequenceScore:
    """One sequence's likelihoods where engine and reference tokenize its text apart; `tokens` are the reference's.

    Log-probabilities [own tokens, vocab] at the positions before `targets` [own tokens]; the reference's [its tokens].
    """
    return SequenceScore(
        tokens=len(reference_target),
        nll=-float(target_log_probability(log_probabilities, targets).sum()),
        reference_nll=-float(np.sum(reference_target, dtype=np.float64)),
        kl=float("nan"),
        agreed=0,
    )


def cosine(left: Floats, right: Floats) -> NDArray[np.float64]:
    """Row-wise cosine similarity: [n, features] twice -> [n] float64. A zero row against a zero row is 1, against another 0."""
    a, b = np.asarray(left, np.float64), np.asarray(right, np.float64)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    equal = (a == b).all(-1)
    return np.asarray(np.where(norms > 0, (a * b).sum(-1) / np.where(norms > 0, norms, 1), equal), np.float64)


def nearest_neighbours(embeddings: Floats) -> Ids:
    """[n, features] -> [n]: for each row the index of the most cosine-similar other row. Needs n >= 2."""
    if len(embeddings) < 2:
        raise ValueError("nearest neighbours need at least two rows")
    rows = np.asarray(embeddings, np.float64)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-30)
    similarity = rows @ rows.T
    np.fill_diagonal(similarity, -np.inf)
    return np.asarray(similarity.argmax(-1), np.int64)


def sqnr_db(reference: Floats, approximation: Floats) -> float:
    """Signal to quantization-noise ratio, 10·log10(Σ ref² / Σ (ref − approx)²) in dB; infinite when they are equal."""
    signal = np.sum(np.square(reference, dtype=np.float64))
    noise = np.sum(np.square(np.asarray(reference, np.float64) - approximation))
    if noise == 0:
        return float("inf")
    return float(10 * np.log10(signal / noise)) if signal > 0 else float("-inf")
