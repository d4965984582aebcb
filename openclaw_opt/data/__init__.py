"""Where calibration and evaluation data come from: one file a source, and the file's name is the recipe's word.

    data:
      calibration: {source: python-stdlib, split: calibration, samples: 64, length: 256}
      evaluation:  {source: python-stdlib, split: evaluation}

A source is a frozen value. It says what it holds (`identities`) without tokenizing anything, so that `check` finds
calibration data that overlaps evaluation data before any work. `data.load` turns a source into arrays.
To add one, write `data/my_source.py` with one subclass of `Source`; the recipe's word is then `my-source`.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from openclaw_opt.errors import MachineError, OptError, RecipeError, nearest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Kind = Literal["text", "images"]
NOT_SOURCES = frozenset({"load"})
SHARED_SHOWN = 3


@dataclass(frozen=True)
class Document:
    """One text. `id` names it for people and is unique in its source."""

    id: str
    text: str


@dataclass(frozen=True)
class Images:
    """`pixels` float32 [n, channels, height, width], `labels` int64 [n], `ids` as in `identities`."""

    pixels: NDArray[np.float32]
    labels: NDArray[np.int64]
    ids: tuple[str, ...]


class Source(BaseModel):
    """What a recipe's `data:` entry says. Subclasses set `splits` and implement `identities` and `documents`."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    kind: ClassVar[Kind] = "text"
    splits: ClassVar[tuple[str, ...]] = ()
    """Legal words for `split`; empty if any word may be legal."""
    image: ClassVar[tuple[int, int, int] | None] = None
    """Channels, height and width of every image; None for text, or where they differ."""
    packages: ClassVar[Mapping[str, str]] = {}
    """Module to the distribution that pip installs it from; what must be there beyond our own dependencies."""

    split: str
    """Which part of the source; which words are legal depends on it."""
    samples: int = Field(default=64, gt=0, strict=True)
    """How many sequences, sentences or images."""
    length: int = Field(default=256, gt=0, strict=True)
    """Tokens in a sequence; for sentences the most tokens kept."""
    seed: int = Field(default=0, ge=0, strict=True)
    """Decides the order in which documents are taken. The same seed gives the same data on every machine."""

    @field_validator("split")
    @classmethod
    def _known_split(cls, split: str) -> str:
        if cls.splits and split not in cls.splits:
            raise ValueError(f"unknown split {split!r}; {_hint(split, cls.splits)}")
        return split

    @classmethod
    def word(cls) -> str:
        """The recipe's word: the file's name with `-` for `_`."""
        return cls.__module__.rpartition(".")[2].replace("_", "-")

    def described(self) -> dict[str, Any]:
        """Every field and the word itself: `parse_source(source.described())` equals the source."""
        return {"source": self.word(), **self.model_dump(mode="json")}

    def documents(self) -> Iterator[Document]:
        """The split's documents, in an order that depends on the source's fields alone.

        Raises:
            RecipeError: the source holds no text, or its text cannot be read.
        """
        raise RecipeError(f"source {self.word()!r} holds {self.kind}, not text", fix="use a text source for this model")

    def images(self) -> Images:
        """The split's images.

        Raises:
            RecipeError: the source holds no images.
            MachineError: a package is missing.
        """
        raise RecipeError(f"source {self.word()!r} holds {self.kind}, not images", fix="use `source: digits`")

    def identities(self) -> frozenset[str]:
        """What the split holds, as strings that two sources share exactly when they share data."""
        raise AssertionError(f"{type(self).__name__} says no identities")

    def content_hash(self) -> str:
        """sha256 (hex) of what the split holds now. Cheaper than tokenizing it; the cache's key."""
        known = hashlib.sha256()
        for document in self.documents():
            known.update(f"{document.id}\0{document.text}\0".encode())
        return known.hexdigest()

    def missing(self) -> MachineError | None:
        """What must be installed before this source can be read; None if nothing."""
        absent = [name for module, name in self.packages.items() if importlib.util.find_spec(module) is None]
        if not absent:
            return None
        return MachineError(
            f"source {self.word()!r} needs {', '.join(absent)}, which is not installed",
            fix=f"pip install {' '.join(absent)}",
        )


def part_of(name: str) -> str:
    """`evaluation`, `calibration` (a tenth each) or `train`, by a hash of `name` that is stable for ever."""
    bucket = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 10
    return {0: "evaluation", 1: "calibration"}.get(bucket, "train")


def shuffled(names: list[str], seed: int) -> list[str]:
    """`names` in an order that a hash of name and seed gives; no random generator is involved."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())


def source_names() -> tuple[str, ...]:
    """Every source's word, from the file names alone: nothing is imported."""
    files = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(sorted(name.replace("_", "-") for name in files if name not in NOT_SOURCES and name[0] != "_"))


def source_class(name: str) -> type[Source]:
    """The class of the source called `name`; imports its file and no other source's.

    Raises:
        RecipeError: there is no such source.
    """
    if name not in source_names():
        raise RecipeError(f"unknown data source {name!r}", where="source", fix=nearest(name, source_names()))
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    own: list[type[Source]] = [value for value in vars(module).values() if _is_source_of(value, module.__name__)]
    assert len(own) == 1, f"{module.__name__} must define exactly one Source"
    return own[0]


def parse_source(entry: Mapping[str, Any] | str, *, folder: Path = Path()) -> Source:
    """The source that a recipe's entry names. Relative paths in it count from `folder`.

    Args:
        entry: a mapping with the key `source` and the source's fields, or the word alone.

    Raises:
        RecipeError: with every mistake of the entry in `mistakes`; `where` is the field.
    """
    fields = {"source": entry} if isinstance(entry, str) else dict(entry)
    word = fields.pop("source", None)
    if not isinstance(word, str):
        raise RecipeError(
            "no `source`" if word is None else f"`source` must be a word, got {word!r}",
            where="source",
            fix=f"legal: {', '.join(source_names())}",
        )
    cls = source_class(word)
    try:
        return cls.model_validate(fields, context={"folder": folder})
    except ValidationError as error:
        mistakes = [_mistake(cls, dict(problem)) for problem in error.errors(include_url=False)]
        first = mistakes[0]
        raise RecipeError(first.what, where=first.where, fix=first.fix, mistakes=mistakes) from error


def overlap(a: Source, b: Source) -> str | None:
    """A sentence that says what two sources share, or None if they are disjoint."""
    shared = sorted(a.identities() & b.identities())
    if not shared:
        return None
    more = f" and {len(shared) - SHARED_SHOWN} more" if len(shared) > SHARED_SHOWN else ""
    names = ", ".join(shared[:SHARED_SHOWN])
    return (
        f"{a.word()} (split {a.split}) and {b.word()} (split {b.split}) share "
        f"{len(shared)} document{'s' * (len(shared) > 1)}: {names}{more}"
    )


def folder_of(info: ValidationInfo) -> Path:
    """Where a source's relative paths count from: `parse_source`'s folder, or the working directory."""
    return Path((info.context or {}).get("folder", Path()))


def _is_source_of(value: object, module: str) -> bool:
    return isinstance(value, type) and issubclass(value, Source) and value.__module__ == module


def _hint(word: str, legal: tuple[str, ...]) -> str:
    hint = nearest(word, legal)
    return hint if hint.startswith("legal") else f"legal: {', '.join(legal)}; {hint}"


def _mistake(cls: type[Source], problem: dict[str, Any]) -> OptError:
    """pydantic's finding as ours: the field, the value, what is legal."""
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return RecipeError(
            f"unknown key {where!r} for source {cls.word()!r}", where=where, fix=nearest(where, cls.model_fields)
        )
    if problem["type"] == "missing":
        legal = f"legal: {', '.join(cls.splits)}" if where == "split" and cls.splits else ""
        return RecipeError(f"source {cls.word()!r} needs {where!r}", where=where, fix=legal)
    if problem["type"] == "value_error":
        return RecipeError(str(problem["ctx"]["error"]), where=where)
    return RecipeError(f"{problem['msg'][0].lower()}{problem['msg'][1:]}, got {problem['input']!r}", where=where)
