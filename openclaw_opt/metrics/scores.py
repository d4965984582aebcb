"""Runs an artifact over the evaluation data, once, and reduces what it says as it goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from openclaw_opt.artifacts import GraphFacts
from openclaw_opt.backends import DecoderSession, GenericSession
from openclaw_opt.errors import MachineError, VerificationError
from openclaw_opt.metrics.reference import TokenReference, batches, check_finite
from openclaw_opt.numerics.divergence import SequenceScore, log_softmax, score_sequence, score_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from openclaw_opt.backends import Floats, Ids
    from openclaw_opt.data.load import ImageSet, OwnTokens, SentenceSet, TokenSet
    from openclaw_opt.metrics.reference import Logits
    from openclaw_opt.metrics.subject import Opener

SAMPLES_AT_ONCE = 32
OUTPUT = {"encoder": "embedding", "vision": "logits"}


def score_tokens(opener: Opener, data: TokenSet, reference: TokenReference) -> tuple[SequenceScore, ...]:
    """One row a sequence. Raises VerificationError when the logits are not finite."""
    assert opener.open is not None, opener.why
    with opener.open() as session:
        assert isinstance(session, DecoderSession)
        return score_sequences(session.logits, data.sequences, reference)


def score_sequences(logits: Logits, sequences: Ids, reference: TokenReference) -> tuple[SequenceScore, ...]:
    """The same for anything that gives logits."""
    wide, targets, top = reference.log_probabilities(), reference.targets(), reference.top()
    if wide.shape[:2] != (len(sequences), sequences.shape[1] - 1):
        raise VerificationError(
            f"the stored reference is of {list(wide.shape[:2])} positions, the data has {list(sequences.shape)} tokens",
            where=str(reference.folder),
        )
    scores: list[SequenceScore] = []
    for rows in batches(sequences, wide.shape[2]):
        given = logits(sequences[rows])[:, :-1]
        check_finite(given, "the engine's logits")
        scores += [
            score_sequence(log_softmax(one), sequences[row, 1:], wide[row].astype(np.float32), targets[row], top[row])
            for row, one in zip(range(rows.start, rows.stop), given, strict=True)
        ]
    return tuple(scores)


def score_own_tokens(
    opener: Opener, own: OwnTokens, reference: TokenReference, context: int | None
) -> tuple[SequenceScore, ...]:
    """One row a sequence of the artifact's own tokens, one sequence at a time; counts of tokens are the reference's.

    Raises:
        VerificationError: the logits are not finite.
        MachineError: a sequence is longer than the context.
    """
    longest = max(len(ids) for ids in own.sequences)
    if context is not None and longest > context:
        raise MachineError(f"the text of a sequence is {longest} of its own tokens, and its context is {context}")
    assert opener.open is not None, opener.why
    targets = reference.targets()
    scores = []
    with opener.open() as session:
        assert isinstance(session, DecoderSession)
        for ids, predicted, theirs in zip(own.sequences, own.predicted, targets, strict=True):
            given = session.logits(ids[None])[0, -predicted - 1 : -1]
            check_finite(given, "the engine's logits")
            scores.append(score_text(log_softmax(given), ids[-predicted:], theirs))
    return tuple(scores)


def array_outputs(opener: Opener, data: TokenSet | SentenceSet | ImageSet, facts: GraphFacts) -> dict[str, Floats]:
    """The task's output over the data, one row a sample: an encoder's `embedding`, a classifier's `logits`."""
    assert opener.open is not None, opener.why
    name = OUTPUT[facts.task]
    with opener.open() as session:
        assert isinstance(session, GenericSession)
        rows = np.concatenate([session.infer(feed)[name] for feed in feeds(data, facts)])
    check_finite(rows, f"the engine's {name}")
    return {name: rows}


def feeds(data: TokenSet | SentenceSet | ImageSet, facts: GraphFacts) -> list[dict[str, NDArray[np.generic]]]:
    """The evaluation data as graph inputs, in batches."""
    arrays = _arrays(data, facts)
    count = len(next(iter(arrays.values())))
    return [
        {name: value[start : start + SAMPLES_AT_ONCE] for name, value in arrays.items()}
        for start in range(0, count, SAMPLES_AT_ONCE)
    ]


def _arrays(data: TokenSet | SentenceSet | ImageSet, facts: GraphFacts) -> dict[str, NDArray[np.generic]]:
    from openclaw_opt.data.load import ImageSet, SentenceSet

    known: dict[str, NDArray[np.generic]] = {}
    if isinstance(data, ImageSet):
        known = {"pixel_values": data.images}
    elif isinstance(data, SentenceSet):
        known = {"input_ids": data.ids, "attention_mask": data.mask, "token_type_ids": np.zeros_like(data.ids)}
    missing = facts.batch_first_shapes.keys() - known.keys()
    if missing:
        raise VerificationError(f"the evaluation data has nothing for the graph's inputs {sorted(missing)}")
    return {name: known[name] for name in facts.batch_first_shapes}
