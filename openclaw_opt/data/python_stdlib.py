"""`python-stdlib`: the standard library's sources of the running Python. Needs no download, is on every machine.

A module goes to a split by a hash of its dotted name, so a module is in the same split on every machine and in every
Python version: a tenth `evaluation`, a tenth `calibration`, the rest `train`; the three are disjoint.
Left out: tests, installed packages, and what a program wrote (codec tables, pydoc's topics, build settings): tables
that are nearly equal to each other would make held-out text look easier than it is.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import ClassVar

from openclaw_opt.data import Document, Source, part_of, shuffled

LEFT_OUT = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "encodings", "pydoc_data", "lib-dynload"}
)


class PythonStdlib(Source):
    """One document a module, its id the dotted name."""

    splits: ClassVar[tuple[str, ...]] = ("train", "calibration", "evaluation")

    def identities(self) -> frozenset[str]:
        return frozenset(f"stdlib:{name}" for name in module_names(self.split))

    def documents(self) -> Iterator[Document]:
        for name in shuffled(module_names(self.split), self.seed):
            text = read_module(name)
            if text.strip():
                yield Document(name, text)


def module_names(split: str) -> list[str]:
    """Dotted names of the split's modules, sorted."""
    return sorted(name for name in _modules() if part_of(name) == split)


def read_module(name: str) -> str:
    """The module's source, newlines as \\n; a byte that is not UTF-8 becomes U+FFFD."""
    return _modules()[name].read_text(encoding="utf-8", errors="replace")


@cache
def _modules() -> dict[str, Path]:
    root = Path(sysconfig.get_paths()["stdlib"])
    found: dict[str, Path] = {}
    for folder, inner, files in os.walk(root):
        inner[:] = [name for name in inner if name not in LEFT_OUT]  # site-packages can hold 100 000 files
        for file in (Path(folder, name) for name in files if name.endswith(".py")):
            if name := _dotted(file.relative_to(root)):
                found[name] = file
    return found


def _dotted(file: Path) -> str:
    """`json/decoder.py` → `json.decoder`; empty if the file is left out."""
    parts = file.with_suffix("").parts
    if LEFT_OUT & set(parts) or parts[-1].startswith("_sysconfigdata") or not all(map(str.isidentifier, parts)):
        return ""
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
