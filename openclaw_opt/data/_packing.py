"""Packs documents into token sequences of one length, with the bytes of text they stand for.

Bytes. Bits per byte divides a model's loss by the UTF-8 bytes of the tokens it was scored on, so both must be about the
very same text. Token i covers the bytes from the end of token i−1 to its own end, in the original text; with that,
every byte is counted once, whatever the tokenizer's normaliser drops. A character that is several tokens is never cut
by the edge of a sequence.

Sequences. Documents, a blank line after each, become one stream of tokens, cut into windows one after the other;
`samples` of them are taken, evenly spaced over a pool of up to POOL times as many, so that no single document fills
the set. What the tokenizer puts in front of a text (`<bos>`) stands in front of every sequence, counts to its length,
and makes the first token after it one that a model predicts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from openclaw_opt.data import Document

POOL = 8
BETWEEN = "\n\n"


@dataclass(frozen=True)
class Packed:
    """Sequences that were found; `sequences` holds fewer rows than were asked for if there is too little text."""

    sequences: NDArray[np.int64]
    """[found, length] token ids."""
    bytes_each: NDArray[np.int64]
    """[found] UTF-8 bytes of the tokens that a model predicts: all but the first of each sequence."""
    documents: tuple[str, ...]
    """Ids of the documents that the sequences touch."""
    tokens: int
    """Tokens that were looked through."""

    @property
    def bytes(self) -> int:
        return int(self.bytes_each.sum())


def pack(documents: Iterable[Document], tokenizer: Tokenizer, samples: int, length: int) -> Packed:
    """At most `samples` sequences of `length` tokens. `length` is at least 2 above what `front` gives."""
    ahead = front(tokenizer)
    body = length - len(ahead)
    stream = _stream(documents, tokenizer, enough=POOL * samples * body)
    starts = _starts(stream.whole, body, first_is_predicted=bool(ahead))
    kept = min(samples, len(starts))
    starts = starts[np.arange(kept) * len(starts) // max(1, kept)]
    window = starts[:, None] + np.arange(body)
    unseen = np.concatenate([[0], stream.ends])[starts + (0 if ahead else 1)]  # the byte where prediction begins
    bos = np.tile(np.array(ahead, np.int64), (kept, 1))
    return Packed(
        sequences=np.concatenate([bos, stream.ids[window]], axis=1),
        bytes_each=stream.ends[window[:, -1]] - unseen,
        documents=tuple(stream.names[index] for index in np.unique(stream.document[window])),
        tokens=len(stream.ids),
    )


def front(tokenizer: Tokenizer) -> list[int]:
    """The ids that the tokenizer puts in front of a text."""
    plain, dressed = (tokenizer.encode("a", add_special_tokens=special).ids for special in (False, True))
    ahead = next((i for i in range(len(dressed)) if dressed[i : i + len(plain)] == plain), 0)
    return list(dressed[:ahead])


@dataclass(frozen=True)
class _Stream:
    """Tokens of consecutive documents. All arrays are [tokens]."""

    ids: NDArray[np.int64]
    ends: NDArray[np.int64]
    """Byte of the stream's text at which a token ends."""
    whole: NDArray[np.bool_]
    """The token begins a character: a sequence may begin here."""
    document: NDArray[np.int64]
    """Which document a token is of."""
    names: tuple[str, ...]


def _stream(documents: Iterable[Document], tokenizer: Tokenizer, enough: int) -> _Stream:
    """Documents in their order until there are more than `enough` tokens."""
    none = np.zeros(0, np.int64)
    ids, ends, whole, document = [none], [none], [none.astype(bool)], [none]
    names: list[str] = []
    tokens = size = 0
    for text in documents:
        body = text.text + BETWEEN
        encoding = tokenizer.encode(body, add_special_tokens=False)
        if not encoding.ids:
            continue
        token_ends, begins = cover(body, encoding.offsets)
        ids.append(np.array(encoding.ids, np.int64))
        ends.append(size + token_ends)
        whole.append(begins)
        document.append(np.full(len(encoding.ids), len(names)))
        names.append(text.id)
        tokens, size = tokens + len(encoding.ids), size + int(token_ends[-1])
        if tokens > enough:
            break
    joined = [np.concatenate(parts) for parts in (ids, ends, document)]
    return _Stream(joined[0], joined[1], np.concatenate(whole), joined[2], tuple(names))


def cover(text: str, offsets: list[tuple[int, int]]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """For each token the byte of `text` at which it ends, and whether it begins a character of its own.

    Args:
        offsets: begin and end of each token in characters of `text`; several tokens may share a character.
    """
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    widths = 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000)
    byte_at = np.concatenate([[0], np.cumsum(widths)])
    first, last = np.array(offsets, np.int64).T
    reached = np.maximum.accumulate(last)
    begins = np.concatenate([[True], first[1:] >= reached[:-1]])
    return byte_at[reached], begins


def _starts(whole: NDArray[np.bool_], body: int, *, first_is_predicted: bool) -> NDArray[np.int64]:
    """Where windows of `body` tokens begin, one after the other, edges never inside a character."""
    edge = np.append(whole, True)
    legal = edge[:-body] & edge[body:] if len(edge) > body else np.zeros(0, bool)
    if not first_is_predicted:
        legal &= edge[1 : len(legal) + 1]
    starts, position = [], 0
    while position < len(legal):
        if legal[position]:
            starts.append(position)
            position += body
        else:
            position += 1
    return np.array(starts, np.int64)
