"""Content-addressed cache of pass results: a folder an entry, named by the key of everything that decided it.

    <root>/<key>/            the result's files and done.json
    <root>/.work-<pid>-<n>/  being made; renamed when whole, removed when its process is gone
    <root>/unfinished/<key>/ what a killed pass goes on from; removed when the pass is done
    <root>/hashes.json       sha256 of checkpoint files by path, size and modification time
    <root>/.locks/<key>      held while an entry is made, so that two builds at once do not both make it

An entry appears by one rename, so a killed build leaves nothing half-written and the next one goes on from the last whole
pass. A failure is never stored.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openclaw_opt import interrupts
from openclaw_opt.errors import MachineError

DONE = "done.json"
WORK = ".work-"
WAIT_S = 0.5


def digest(value: Any) -> str:
    """sha256 (hex) of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


@dataclass(frozen=True)
class Store:
    """The cache under `root`, which is made when something is first put."""

    root: Path

    def find(self, key: str) -> dict[str, Any] | None:
        """The record of a whole entry, or None."""
        record = self.folder(key) / DONE
        if not record.is_file():
            return None
        found: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        return found

    def folder(self, key: str) -> Path:
        return self.root / key[:32]

    def unfinished(self, key: str) -> Path:
        """Where a pass keeps what its next run goes on from; made by the pass itself."""
        return self.root / "unfinished" / key[:32]

    @contextlib.contextmanager
    def making(self) -> Iterator[Path]:
        """A fresh work folder; removed afterwards unless `keep` took it. Raises MachineError when it cannot be made."""
        self._sweep()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=f"{WORK}{os.getpid()}-", dir=self.root))
        except OSError as error:
            raise MachineError(
                f"the cache folder cannot be written: {error.strerror}", where=str(self.root), fix="--cache FOLDER"
            ) from error
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def keep(self, folder: Path, key: str, record: dict[str, Any]) -> Path:
        """Turn a work folder into the entry of `key`. If another process was first, its entry stays."""
        (folder / DONE).write_text(json.dumps(record, indent=1, ensure_ascii=False), encoding="utf-8")
        final = self.folder(key)
        try:
            folder.rename(final)
        except OSError:
            if self.find(key) is None:
                raise
        return final

    @contextlib.contextmanager
    def claimed(self, key: str) -> Iterator[None]:
        """Nobody else makes this entry meanwhile: look for it inside, make it if it is not there. A dead owner's claim is none.

        Claims are nested in one order only: times of passes, a pass, its accuracy, the reference; so they cannot wait for each other in a circle.
        """
        from filelock import FileLock, Timeout

        folder = self.root / ".locks"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / key[:32])
            while not lock.is_locked:
                with contextlib.suppress(Timeout):  # waits in pieces, so that Ctrl-C is seen
                    lock.acquire(timeout=WAIT_S, poll_interval=0.02)
                interrupts.check()
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise MachineError(
                f"the cache folder cannot be written: {error.strerror}", where=str(self.root), fix="--cache FOLDER"
            ) from error
        try:
            yield
        finally:
            lock.release()

    def drop(self, key: str) -> None:
        """Forget an entry whose files are not what its record says."""
        shutil.rmtree(self.folder(key), ignore_errors=True)

    def _sweep(self) -> None:
        """Remove work folders whose process is gone (`kill -9`, power cut)."""
        import psutil

        for folder in self.root.glob(f"{WORK}*"):
            pid = int(folder.name.removeprefix(WORK).split("-")[0])
            if not psutil.pid_exists(pid):
                shutil.rmtree(folder, ignore_errors=True)


def tree_size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def sha256_file(path: Path) -> str:
    """sha256 (hex) of a file, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
