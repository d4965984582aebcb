"""Where an lm-eval task is defined: in a folder of the user's, or in the lm-eval that is installed. Imports neither.

A task file that names Python code (`!function`) runs it; from a folder of the user's that is refused unless asked for.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Iterator
from glob import has_magic
from pathlib import Path
from typing import Any

import yaml

from openclaw_opt.errors import MachineError, RecipeError, nearest

SUFFIXES = (".yaml", ".yml")
_NAME = re.compile(r"^(?:task|group):[ \t]*(['\"]?)([\w.+-]+)\1[ \t]*(?:#.*)?$", re.MULTILINE)
_CODE = re.compile(r"!function\b")


def missing() -> MachineError | None:
    """What is not installed; None if it is there."""
    if importlib.util.find_spec("lm_eval") is not None:
        return None
    return MachineError("lm-eval is not installed", fix="pip install 'openclaw-opt[lm-eval]'")


def check_tasks(tasks: tuple[str, ...], folder: Path | None, *, code: bool) -> None:
    """Raises RecipeError for a name that nothing defines, twice the same, a file that cannot be read, data that is not there, or
    code that was not asked for."""
    if not tasks:
        raise RecipeError("lm-eval needs at least one task", fix="tasks: [python_next_line]")
    twice = sorted({one for one in tasks if tasks.count(one) > 1})
    if twice:
        raise RecipeError(f"task {twice[0]!r} is named twice")
    own = named_in(folder) if folder is not None else {}
    for name in tasks:
        if name in own and folder is not None:
            _check_own(name, own[name], folder, code=code)
        elif not _in_lm_eval(name):
            known = own or named_in(_installed())
            fix = nearest(name, known) if known else "name its `folder`"
            raise RecipeError(f"no lm-eval task is called {name!r}", fix=fix)


def _check_own(name: str, file: Path, folder: Path, *, code: bool) -> None:
    text = file.read_text(encoding="utf-8", errors="replace")
    if _CODE.search(text) and not code:
        raise RecipeError(f"task {name!r} runs Python code ({file.name}: !function)", fix="code: true, if you trust it")
    try:
        options = yaml.load(text, _Tagged)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark is not None else 1
        raise RecipeError(f"task {name!r}: {file.name}:{line} is no YAML: {error.problem}") from error
    if not isinstance(options, dict):
        raise RecipeError(f"task {name!r}: {file.name} holds no mapping")
    absent = [one for one in _local_files(options) if not (folder / one).is_file()]
    if absent:
        raise RecipeError(
            f"task {name!r}: {file.name} reads {absent[0]!r}, which is not in the folder",
            fix="data_files count from the folder that the recipe names",
        )


class _Tagged(yaml.SafeLoader):
    """YAML whose tags (`!function`) name things that are not looked at here."""


_Tagged.add_multi_constructor("!", lambda loader, suffix, node: None)


def _local_files(options: dict[str, Any]) -> Iterator[str]:
    """What `dataset_kwargs: {data_files: …}` names on this disk: not addresses, no patterns."""
    arguments = options.get("dataset_kwargs")
    waiting = [arguments.get("data_files")] if isinstance(arguments, dict) else []
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
        elif isinstance(one, str) and "://" not in one and not has_magic(one):
            yield one


def named_in(folder: Path | None) -> dict[str, Path]:
    """Name of every task and group → the file that defines it."""
    found: dict[str, Path] = {}
    for file in _files(folder) if folder is not None else ():
        for match in _NAME.finditer(file.read_text(encoding="utf-8", errors="replace")):
            found[match[2]] = file
    return found


def digest_of(folder: Path) -> str:
    """sha256 over the names and bytes of every file in the folder: what its tasks ask."""
    whole = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        whole.update(f"{file.relative_to(folder).as_posix()}\0".encode())
        whole.update(hashlib.sha256(file.read_bytes()).digest())
    return whole.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.suffix in SUFFIXES)


def _installed() -> Path | None:
    """lm-eval's own tasks; finding a package does not import it."""
    spec = importlib.util.find_spec("lm_eval")
    return Path(spec.origin).parent / "tasks" if spec is not None and spec.origin else None


def _in_lm_eval(name: str) -> bool:
    """The file of that name first: reading all twelve thousand takes seconds."""
    folder = _installed()
    if folder is None:
        return True  # `missing` says what is wrong
    if any(_defines(file, name) for suffix in SUFFIXES for file in folder.rglob(f"{name}{suffix}")):
        return True
    return name in named_in(folder)


def _defines(file: Path, name: str) -> bool:
    return any(match[2] == name for match in _NAME.finditer(file.read_text(encoding="utf-8", errors="replace")))
