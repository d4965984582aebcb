"""`text`: your own files. `path` is a file, a folder (searched through) or a glob; .txt, .md, .py and .jsonl are read.

A document is one record of a .jsonl file (its `field`), or one `unit` of any other file: the whole file, a line, or a
paragraph (lines up to a blank one). Blank documents are left out.

`split: all` is every document. `train`, `calibration` and `evaluation` are disjoint parts of them (80, 10 and 10 in
a hundred): the hash of a document's *text* decides, so equal texts are in one split, whatever files they stand in.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import ValidationInfo, field_validator

from openclaw_opt.data import Document, Source, folder_of, part_of, shuffled
from openclaw_opt.errors import RecipeError, nearest

SUFFIXES = (".jsonl", ".md", ".py", ".txt")


@dataclass(frozen=True)
class Record:
    """Where a document lies: bytes `start` to `end` of `file`, from `line` on."""

    file: Path
    line: int
    start: int
    end: int


class Text(Source):
    """One document a file, line, paragraph or JSONL record; its id is `file:line`."""

    splits: ClassVar[tuple[str, ...]] = ("all", "train", "calibration", "evaluation")

    split: str = "all"
    path: str
    """File, folder or glob; a relative one counts from the recipe's folder."""
    field: str = "text"
    """Key of the text in a JSONL record."""
    unit: Literal["file", "line", "paragraph"] = "file"
    """What a document is in files other than JSONL."""

    @field_validator("path")
    @classmethod
    def _found(cls, path: str, info: ValidationInfo) -> str:
        whole = str(folder_of(info) / Path(path).expanduser())
        if not Path(whole).exists() and not glob.has_magic(whole):
            beside = [p.name for p in Path(whole).parent.glob("*")] if Path(whole).parent.is_dir() else []
            near = nearest(Path(path).name, beside) if beside else ""
            raise ValueError(f"no such file or folder {path!r}" + (f"; {near}" if near.startswith("did") else ""))
        if not _files(whole):
            raise ValueError(f"{path!r} holds no {', '.join(SUFFIXES)} file")
        return whole

    def identities(self) -> frozenset[str]:
        return frozenset(f"sha256:{digest}" for digest, _ in self._records())

    def content_hash(self) -> str:
        return hashlib.sha256("\n".join(sorted(self.identities())).encode()).hexdigest()

    def documents(self) -> Iterator[Document]:
        anchor = _anchor(self.path)
        where = {f"{digest}:{record.file}:{record.line}": record for digest, record in self._records()}
        for name in shuffled(list(where), self.seed):
            record = where[name]
            with record.file.open("rb") as file:
                file.seek(record.start)
                raw = file.read(record.end - record.start)
            yield Document(f"{os.path.relpath(record.file, anchor)}:{record.line}", self._text(raw, record))

    def _records(self) -> Iterator[tuple[str, Record]]:
        """Digest of the text and place of every document of the split, in the files' order."""
        for file in _files(self.path):
            unit = "line" if file.suffix == ".jsonl" else self.unit
            for raw, record in _pieces(file, unit):
                text = self._text(raw, record)
                digest = hashlib.sha256(text.encode()).hexdigest()
                if text.strip() and self.split in ("all", part_of(digest)):
                    yield digest, record

    def _text(self, raw: bytes, record: Record) -> str:
        where = f"{record.file}:{record.line}"
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise RecipeError(
                f"byte {record.start + error.start} is not UTF-8", where=where, fix="save the file as UTF-8"
            ) from error
        return _field(text, self.field, where) if record.file.suffix == ".jsonl" and text.strip() else text


def _anchor(path: str) -> Path:
    """The folder that ids count from: the one that `path` names, or the last before the first wildcard."""
    if Path(path).is_dir():
        return Path(path)
    fixed = Path(path).parent
    while glob.has_magic(str(fixed)):
        fixed = fixed.parent
    return fixed


def _files(path: str) -> list[Path]:
    """Readable files, sorted by name, so that every machine sees the same order."""
    if Path(path).is_file():
        found = [Path(path)]
    elif Path(path).is_dir():
        found = [file for file in Path(path).rglob("*") if file.is_file()]
    else:
        found = [Path(name) for name in glob.glob(path, recursive=True) if Path(name).is_file()]
    return sorted(file for file in found if file.suffix in SUFFIXES)


def _pieces(file: Path, unit: str) -> Iterator[tuple[bytes, Record]]:
    """The raw bytes of each unit of a file, one at a time."""
    try:
        with file.open("rb") as lines:
            gathered: list[bytes] = []
            first, start, position = 1, 0, 0
            for number, line in enumerate(lines, 1):
                if gathered and (unit == "line" or (unit == "paragraph" and not line.strip())):
                    yield b"".join(gathered), Record(file, first, start, position)
                    gathered, first, start = [], number, position
                gathered.append(line)
                position += len(line)
            if gathered:
                yield b"".join(gathered), Record(file, first, start, position)
    except OSError as error:
        raise RecipeError(f"cannot be read: {error.strerror}", where=str(file)) from error


def _field(line: str, field: str, where: str) -> str:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise RecipeError(f"not JSON: {error.msg} at column {error.colno}", where=where) from error
    if not isinstance(record, dict):
        raise RecipeError(f"a JSON object is wanted, got {type(record).__name__}", where=where)
    if field not in record:
        raise RecipeError(f"no field {field!r}", where=where, fix=f"field: {nearest(field, record)}")
    if not isinstance(record[field], str):
        raise RecipeError(f"field {field!r} must be text, got {type(record[field]).__name__}", where=where)
    return str(record[field])
