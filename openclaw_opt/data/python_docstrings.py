"""`python-docstrings`: English sentences from the standard library's docstrings, for text encoders.

One document is the first paragraph of one docstring, on one line. Modules are split as in `python-stdlib`, and a
paragraph that also stands in an evaluation module is left out of `calibration` and `train` (and one of calibration's
out of `train`), so that no text is in two splits.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import re
import warnings
from collections.abc import Iterator
from functools import cache
from typing import ClassVar

from openclaw_opt.data import Document, Source, shuffled
from openclaw_opt.data.python_stdlib import module_names, read_module

SPLITS_BY_RIGHT = ("evaluation", "calibration", "train")
"""A paragraph that stands in several splits belongs to the first of these."""
FEWEST_WORDS = 5
LEAST_LETTERS = 0.85
"""Share of letters and spaces: leaves out grammars, tables and examples."""
WORD = re.compile(r"[A-Za-z][A-Za-z']*")
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class PythonDocstrings(Source):
    """One document a paragraph, its id `module:line`."""

    splits: ClassVar[tuple[str, ...]] = ("train", "calibration", "evaluation")

    def identities(self) -> frozenset[str]:
        return frozenset(f"stdlib:{name}" for name in module_names(self.split))

    def content_hash(self) -> str:
        """Of the modules' sources: cheaper than parsing them."""
        known = hashlib.sha256()
        for name in _modules_up_to(self.split):
            known.update(f"{name}\0{read_module(name)}\0".encode())
        return known.hexdigest()

    def documents(self) -> Iterator[Document]:
        texts = _paragraphs(self.split)
        for name in shuffled(list(texts), self.seed):
            yield Document(name, texts[name])


def _modules_up_to(split: str) -> list[str]:
    before = SPLITS_BY_RIGHT[: SPLITS_BY_RIGHT.index(split) + 1]
    return [name for earlier in before for name in module_names(earlier)]


@cache
def _paragraphs(split: str) -> dict[str, str]:
    """Id to text: each text once, and none that belongs to a split with an earlier right."""
    earlier = SPLITS_BY_RIGHT[: SPLITS_BY_RIGHT.index(split)]
    taken = {text for other in earlier for text in _paragraphs(other).values()}
    found: dict[str, str] = {}
    for module in module_names(split):
        for line, text in _of_module(module):
            if text not in taken:
                taken.add(text)
                found[f"{module}:{line}"] = text
    return found


def _of_module(module: str) -> Iterator[tuple[int, str]]:
    """Line and first paragraph of every docstring that reads as English."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old sources hold invalid escapes; they are not ours to mend
        try:
            tree = ast.parse(read_module(module))
        except SyntaxError:  # lib2to3 ships Python 2 templates
            return
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and (docstring := ast.get_docstring(node, clean=False)):
            text = _first_paragraph(docstring)
            if _is_english(text):
                yield getattr(node, "lineno", 1), text


def _is_english(text: str) -> bool:
    letters = sum(character.isalpha() or character == " " for character in text)
    return len(WORD.findall(text)) >= FEWEST_WORDS and letters >= LEAST_LETTERS * len(text)


def _first_paragraph(docstring: str) -> str:
    return " ".join(re.split(r"\n\s*\n", inspect.cleandoc(docstring).strip(), maxsplit=1)[0].split())
