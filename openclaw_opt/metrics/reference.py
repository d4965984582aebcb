"""What the untouched checkpoint says on the evaluation data: run once, stored, compared with at every later stage.

For a decoder each position's whole distribution is kept, so that the divergence of any later artifact can be computed:

    log_probabilities.npy  float16 [sequences, length - 1, vocab], nats; position i predicts token i + 1
    targets.npy            float32 [sequences, length - 1], the log-probability of the token that came
    top.npy                int32   [sequences, length - 1], the most probable token

float16 rounds a log-probability near -10 by up to 0.004; after normalising again this leaves a KL floor of about 2e-6 nats
a token. Perplexity and top-1 come from the float32 files and have no such floor. The size is tokens × vocab × 2 bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from openclaw_opt.errors import VerificationError
from openclaw_opt.numerics.divergence import log_softmax, target_log_probability

if TYPE_CHECKING:
    from openclaw_opt.backends import Floats, Ids

    Logits = Callable[[Ids], Floats]
    """[batch, length] int64 -> [batch, length, vocab] float32."""

LOGIT_BYTES = 128 * 2**20
"""Logits held at once while running an evaluation set."""


@dataclass(frozen=True)
class TokenReference:
    """A decoder's stored distributions; the arrays are memory-mapped when they are asked for."""

    folder: Path

    def log_probabilities(self) -> NDArray[np.float16]:
        return _mapped(self.folder / "log_probabilities.npy")

    def targets(self) -> NDArray[np.float32]:
        return _mapped(self.folder / "targets.npy")

    def top(self) -> NDArray[np.int32]:
        return _mapped(self.folder / "top.npy")


@dataclass(frozen=True)
class ArrayReference:
    """An encoder's or vision model's stored outputs by name, float32, one row a sample."""

    folder: Path

    def output(self, name: str) -> Floats:
        return _mapped(self.folder / f"{name}.npy")

    def names(self) -> list[str]:
        return sorted(path.stem for path in self.folder.glob("*.npy"))


def store_tokens(logits: Logits, sequences: Ids, vocab: int, folder: Path) -> TokenReference:
    """Run `sequences` [n, length] and write what they give into `folder`. Raises VerificationError for NaN or infinity."""
    folder.mkdir(parents=True, exist_ok=True)
    count, length = sequences.shape
    shape = (count, length - 1)
    wide = np.lib.format.open_memmap(folder / "log_probabilities.npy", "w+", np.float16, (*shape, vocab))
    targets, top = np.zeros(shape, np.float32), np.zeros(shape, np.int32)
    for rows in batches(sequences, vocab):
        given = logits(sequences[rows])[:, :-1]
        check_finite(given, "the reference's logits")
        for row, one in zip(range(rows.start, rows.stop), given, strict=True):
            log_probabilities = log_softmax(one)
            wide[row] = log_probabilities
            targets[row] = target_log_probability(log_probabilities, sequences[row, 1:])
            top[row] = log_probabilities.argmax(-1)
    wide.flush()
    np.save(folder / "targets.npy", targets)
    np.save(folder / "top.npy", top)
    return TokenReference(folder)


def store_arrays(outputs: dict[str, Floats], folder: Path) -> ArrayReference:
    """Write each output, [samples, ...], into `folder`. Raises VerificationError for NaN or infinity."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in outputs.items():
        check_finite(values, f"the reference's {name}")
        np.save(folder / f"{name}.npy", np.asarray(values, np.float32))
    return ArrayReference(folder)


def batches(sequences: Ids, vocab: int) -> Iterator[slice]:
    """Slices of sequences whose logits stay within LOGIT_BYTES; at least one sequence each."""
    size = max(1, LOGIT_BYTES // (sequences.shape[1] * vocab * 4))
    for start in range(0, len(sequences), size):
        yield slice(start, min(start + size, len(sequences)))


def check_finite(values: NDArray[np.floating], what: str) -> None:
    if not np.isfinite(values).all():
        raise VerificationError(f"{what} hold NaN or infinity")


def _mapped(path: Path) -> NDArray[Any]:
    return np.asarray(np.load(path, mmap_mode="r"))
