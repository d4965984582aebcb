"""Turns a source into arrays: token sequences, padded sentences, images. Tokenized once, cached by content."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from openclaw_opt.data import Document, Source
from openclaw_opt.data._packing import BETWEEN, front, pack
from openclaw_opt.errors import RecipeError, nearest

TOKENIZER_KINDS = ("BPE", "WordPiece", "WordLevel", "Unigram")
VERSION = 2  # of the rules here and in _packing; a change makes every cached file stale
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class TokenSet:
    """Token sequences of equal length, and how much text they are."""

    sequences: NDArray[np.int64]
    """[samples, length] token ids."""
    bytes: int
    """UTF-8 bytes of the tokens that a model predicts: all but the first of each sequence."""
    fingerprint: str
    """sha256 (hex) of the sequences."""
    documents: tuple[str, ...]
    """Ids of the documents that the sequences touch."""
    bytes_each: NDArray[np.int64] | None = None
    """[samples] the bytes, sequence by sequence; None of a set that was not read from a source."""


@dataclass(frozen=True)
class SentenceSet:
    """Whole texts for an encoder, padded to the longest."""

    texts: tuple[str, ...]
    ids: NDArray[np.int64]
    """[samples, longest] token ids, with the tokenizer's special tokens."""
    mask: NDArray[np.int64]
    """[samples, longest] 1 for a token, 0 for padding."""
    fingerprint: str
    documents: tuple[str, ...]


@dataclass(frozen=True)
class ImageSet:
    """Images and what they show."""

    images: NDArray[np.float32]
    """[samples, channels, height, width]."""
    labels: NDArray[np.int64]
    """[samples]."""
    fingerprint: str
    documents: tuple[str, ...]


def load_tokens(source: Source, tokenizer_file: Path, cache: Path) -> TokenSet:
    """`source.samples` sequences of `source.length` tokens.

    Args:
        tokenizer_file: a `tokenizer.json`.
        cache: folder of cached arrays; made if absent.

    Raises:
        RecipeError: the source is empty, too short or cannot be read; the tokenizer is missing or broken.
        MachineError: the source needs a package that is not installed.
    """
    tokenizer, known = _tokenizer(tokenizer_file)
    arrays = _cached(cache, _key("tokens", source, known), lambda: _make_tokens(source, tokenizer))
    sequences, sizes = arrays["sequences"], arrays["bytes"]
    return TokenSet(sequences, int(sizes.sum()), _fingerprint(sequences), _strings(arrays["documents"]), sizes)


def load_sentences(source: Source, tokenizer_file: Path, cache: Path) -> SentenceSet:
    """`source.samples` documents as they are, each cut to `source.length` tokens. Arguments and errors: `load_tokens`."""
    tokenizer, known = _tokenizer(tokenizer_file)
    arrays = _cached(cache, _key("sentences", source, known), lambda: _make_sentences(source, tokenizer))
    ids, mask = arrays["ids"], arrays["mask"]
    return SentenceSet(_strings(arrays["texts"]), ids, mask, _fingerprint(ids, mask), _strings(arrays["documents"]))


def token_counts(source: Source, tokenizer_file: Path, cache: Path) -> dict[int, int]:
    """How often each token occurs in the whole text of the source, not in its samples alone. Errors: `load_tokens`."""
    tokenizer, known = _tokenizer(tokenizer_file)
    arrays = _cached(cache, _key("counts", source, known), lambda: _counted(source, tokenizer))
    return dict(zip(arrays["ids"].tolist(), arrays["counts"].tolist(), strict=True))


def _counted(source: Source, tokenizer: Tokenizer) -> Arrays:
    found = Counter(front(tokenizer))
    for document in _texts(source):
        found.update(tokenizer.encode(document.text + BETWEEN, add_special_tokens=False).ids)
    ids = sorted(found)
    return {"ids": np.array(ids, np.int64), "counts": np.array([found[i] for i in ids], np.int64)}


@dataclass(frozen=True)
class OwnTokens:
    """The text of token sequences in another tokenizer's tokens: ids of unequal length, and how many at the end are predicted."""

    sequences: tuple[NDArray[np.int64], ...]
    predicted: tuple[int, ...]


def in_own_tokens(data: TokenSet, tokenizer_file: Path, own_file: Path) -> OwnTokens:
    """Each sequence of byte-level tokens with its text encoded anew: what stood in front or came first, then what is predicted."""
    (theirs, _), (ours, _) = _tokenizer(tokenizer_file), _tokenizer(own_file)
    ahead, own_ahead = front(theirs), front(ours)
    begin = max(1, len(ahead))
    sequences, predicted = [], []
    for row in data.sequences.tolist():
        first = own_ahead if ahead else _encoded(ours, theirs, row[:begin])
        rest = _encoded(ours, theirs, row[begin:])
        sequences.append(np.array([*first, *rest], np.int64))
        predicted.append(len(rest))
    return OwnTokens(tuple(sequences), tuple(predicted))


def _encoded(ours: Tokenizer, theirs: Tokenizer, ids: list[int]) -> list[int]:
    text = theirs.decode(ids, skip_special_tokens=False)
    return list(ours.encode(text, add_special_tokens=False).ids)


def load_images(source: Source) -> ImageSet:
    """The first `source.samples` images of the split.

    Raises:
        RecipeError: the source holds no images, or fewer.
        MachineError: the source needs a package that is not installed.
    """
    found, n = source.images(), source.samples
    if len(found.ids) < n:
        raise _too_short(source, len(found.ids), "images")
    images, labels = found.pixels[:n], found.labels[:n]
    return ImageSet(images, labels, _fingerprint(images, labels), found.ids[:n])


def _make_tokens(source: Source, tokenizer: Tokenizer) -> Arrays:
    tokenizer.no_padding()  # an encoder's file may pad every text to 128
    if source.length < len(front(tokenizer)) + 2:
        raise RecipeError(f"sequences of {source.length} tokens are too short", where="length", fix="length: 256")
    packed = pack(_texts(source), tokenizer, source.samples, source.length)
    found = len(packed.sequences)
    if not packed.tokens:
        raise _empty(source)
    if found < source.samples:
        raise _too_short(source, found, f"sequences of {source.length} tokens", f"{packed.tokens} tokens in all")
    return {"sequences": packed.sequences, "bytes": packed.bytes_each, "documents": _as_bytes(packed.documents)}


def _make_sentences(source: Source, tokenizer: Tokenizer) -> Arrays:
    documents = list(itertools.islice(_texts(source), source.samples))
    if not documents:
        raise _empty(source)
    if len(documents) < source.samples:
        raise _too_short(source, len(documents), "sentences")
    padding = tokenizer.padding or {}
    tokenizer.enable_truncation(source.length)
    tokenizer.enable_padding(pad_id=padding.get("pad_id", 0), pad_token=padding.get("pad_token", "[PAD]"))
    encodings = tokenizer.encode_batch([document.text for document in documents])
    return {
        "ids": np.array([encoding.ids for encoding in encodings], np.int64),
        "mask": np.array([encoding.attention_mask for encoding in encodings], np.int64),
        "texts": _as_bytes([document.text for document in documents]),
        "documents": _as_bytes([document.id for document in documents]),
    }


def _texts(source: Source) -> Iterator[Document]:
    if problem := source.missing():
        raise problem
    return source.documents()


def _tokenizer(file: Path) -> tuple[Tokenizer, str]:
    """The tokenizer, cutting nothing off, and the sha256 (hex) of its file."""
    if not file.is_file():
        raise RecipeError(
            "no tokenizer.json", where=str(file.parent), fix="save the checkpoint with a fast tokenizer beside it"
        )
    raw = file.read_bytes()
    _check_tokenizer(raw, file)
    tokenizer = Tokenizer.from_str(raw.decode("utf-8"))
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True  # `<|endoftext|>` in a text is text
    return tokenizer, hashlib.sha256(raw).hexdigest()


def _check_tokenizer(raw: bytes, file: Path) -> None:
    """Find what can be wrong with a user's file before the library does, which raises nothing narrower than Exception."""
    try:
        kind = json.loads(raw)["model"]["type"]
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise RecipeError(
            f"not a tokenizer that the library `tokenizers` reads: {type(error).__name__}: {error}", where=str(file)
        ) from error
    if kind not in TOKENIZER_KINDS:
        raise RecipeError(
            f"tokenizer model {kind!r} is not known", where=str(file), fix=nearest(str(kind), TOKENIZER_KINDS)
        )


def _key(kind: str, source: Source, tokenizer: str) -> str:
    if problem := source.missing():
        raise problem
    parts = [VERSION, kind, source.described(), source.content_hash(), tokenizer]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _cached(folder: Path, key: str, make: Callable[[], Arrays]) -> Arrays:
    """The arrays stored under `key`, or those that `make` makes, stored whole or not at all."""
    file = folder / f"{key}.npz"
    try:
        with np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):  # absent, or damaged: made anew
        arrays = make()
    folder.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=folder, suffix=".new")
    with contextlib.ExitStack() as undo:
        undo.callback(os.unlink, name)
        with os.fdopen(handle, "wb") as new:
            np.savez_compressed(new, **arrays)  # type: ignore[arg-type]
        os.replace(name, file)
        undo.pop_all()
    return arrays


def _as_bytes(strings: Sequence[str]) -> NDArray[np.uint8]:
    """Strings as JSON: an array of strings would give each the room of the longest."""
    return np.frombuffer(json.dumps(list(strings)).encode(), np.uint8)


def _strings(array: NDArray[np.uint8]) -> tuple[str, ...]:
    return tuple(json.loads(array.tobytes()))


def _fingerprint(*arrays: NDArray[Any]) -> str:
    known = hashlib.sha256()
    for array in arrays:
        known.update(f"{array.dtype.str}{array.shape}".encode())
        known.update(np.ascontiguousarray(array).data)
    return known.hexdigest()


def _name(source: Source) -> str:
    return f"source {source.word()!r} (split {source.split})"


def _empty(source: Source) -> RecipeError:
    return RecipeError(f"{_name(source)} is empty", where="source", fix="choose another split or other files")


def _too_short(source: Source, there: int, what: str, more: str = "") -> RecipeError:
    held = f"{there} {what}" + (f" ({more})" if more else "")
    fix = f"samples: {there}" if there else "use more text, or a smaller `length`"
    return RecipeError(f"{_name(source)} holds {held}, the recipe asks for {source.samples}", where="samples", fix=fix)
