"""`datasets`: a data set of the Hugging Face hub, or a folder of files, read by the package `datasets`.

`split` is that package's own word, with its slices: `train`, `test[:10%]`, `train[100:200]`. Rows without text are
left out. Nothing is downloaded before the source is read; what is compared for overlap is the data set's name,
configuration, revision and the slice, where two slices in percent are disjoint if their percents are.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from pydantic import field_validator

from openclaw_opt.data import Document, Source
from openclaw_opt.errors import MachineError, RecipeError, nearest

SPLIT = re.compile(r"(?P<name>\w[\w.-]*)(\[(?P<start>\d*)(?P<unit>%?):(?P<stop>\d*)%?\])?")


class Datasets(Source):
    """One document a row, its id the row's number in the split."""

    packages: ClassVar[Mapping[str, str]] = {"datasets": "datasets"}

    name: str
    """`org/name` on the hub, or a local folder."""
    config: str | None = None
    """The data set's configuration, e.g. `wikitext-2-raw-v1`."""
    field: str = "text"
    """The column that holds the text."""
    revision: str | None = None
    """Branch, tag or commit; a commit makes the data the same for ever."""

    @field_validator("split")
    @classmethod
    def _well_formed(cls, split: str) -> str:
        if not SPLIT.fullmatch(split):
            raise ValueError(f"split {split!r} is not a name with an optional slice, e.g. `train` or `train[:10%]`")
        return split

    def identities(self) -> frozenset[str]:
        whole = f"{self.name}/{self.config or 'default'}@{self.revision or 'newest'}"
        match = SPLIT.fullmatch(self.split)
        assert match is not None
        return frozenset(f"{whole}/{match['name']}/{percent}%" for percent in _percents(match))

    def documents(self) -> Iterator[Document]:
        rows = self._rows()
        if self.field not in rows.column_names:
            raise RecipeError(
                f"data set {self.name!r} has no column {self.field!r}",
                where="field",
                fix=nearest(self.field, rows.column_names),
            )
        for index in _scattered(len(rows), self.seed):
            text = rows[index][self.field]
            if not isinstance(text, str):
                raise RecipeError(
                    f"column {self.field!r} of {self.name!r} must hold text, row {index} holds {type(text).__name__}"
                )
            if text.strip():
                yield Document(f"{self.name}/{self.split}/{index}", text)

    def content_hash(self) -> str:
        """The package's own fingerprint of the rows: reading every row of a big set is not cheap."""
        return hashlib.sha256(f"{self.name}{self.field}{self._rows()._fingerprint}".encode()).hexdigest()

    def _rows(self) -> Any:
        if problem := self.missing():
            raise problem
        import datasets

        try:
            return datasets.load_dataset(self.name, self.config, split=self.split, revision=self.revision)
        except ConnectionError as error:
            raise MachineError(
                f"data set {self.name!r} is not on this machine and the hub cannot be reached: {error}",
                fix="download it once where there is a network, or use `source: text` with a local file",
            ) from error
        except (OSError, ValueError) as error:
            raise RecipeError(f"data set {self.name!r} cannot be loaded: {error}") from error


def _percents(match: re.Match[str]) -> range:
    """Which hundredths of the split the slice covers; a slice in rows counts as all of them."""
    if match["unit"] != "%" and not (match["start"] == "" and "%" in match[0]):
        return range(100)
    return range(int(match["start"] or 0), int(match["stop"] or 100))


def _scattered(count: int, seed: int) -> Iterator[int]:
    """0…count−1, each once, in an order scattered by a multiplier prime to `count`: no list of all rows is made."""
    digest = hashlib.sha256(f"{seed}".encode()).digest()
    step, start = int.from_bytes(digest[:8], "big") | 1, int.from_bytes(digest[8:16], "big")
    while count and math.gcd(step, count) != 1:
        step += 2
    return ((start + index * step) % count for index in range(count))
