"""A full disk: one sentence, exit code 3, nothing half-written, whole passes kept."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from openclaw_opt.cli.progress import Silent
from openclaw_opt.errors import MachineError, RecipeError
from openclaw_opt.pipeline import build
from openclaw_opt.recipe import load_recipe
from openclaw_opt.store import Store


def mounted(folder: Path, kilobytes: int) -> Iterator[Path]:
    """A real file system of that size; only root may mount one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small file system is not permitted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path / "small", 160)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path / "tiny", 1600)


@pytest.mark.slow
def test_the_output_folder_s_disk_fills(write_recipe: Callable[..., Path], tmp_path: Path, small_disk: Path) -> None:
    file, store = write_recipe(), Store(tmp_path / "cache")
    with pytest.raises(MachineError) as caught:
        build(load_recipe(file), store=store, output=small_disk / "out", hooks=Silent())
    assert caught.value.exit_code == 3
    where, _, told = str(caught.value).partition(": ")
    assert Path(where).is_relative_to(small_disk), "the full disk, not where the file came from"
    assert told == "the disk is full\n  fix: free space and run the same command: whole passes are kept"
    assert [path.name for path in small_disk.iterdir() if path.name != ".out.lock"] == []
    report = build(load_recipe(file), store=store, output=tmp_path / "out", hooks=Silent())
    assert all(record.cached for record in report.passes), "whole passes are kept"


def test_a_cache_too_small_for_the_passes_is_found_before_work(
    write_recipe: Callable[..., Path], tmp_path: Path, small_disk: Path
) -> None:
    with pytest.raises(MachineError, match=r"the cache needs up to .* GiB for 5 passes") as caught:
        build(load_recipe(write_recipe()), store=Store(small_disk), output=tmp_path / "out", hooks=Silent())
    assert "--cache" in caught.value.fix
    assert not (tmp_path / "out").exists()


def test_passes_after_the_wanted_artifact_want_no_disk(
    write_recipe: Callable[..., Path], tmp_path: Path, small_disk: Path
) -> None:
    recipe, output = load_recipe(write_recipe()), tmp_path / "out"
    with pytest.raises(MachineError, match=r"the cache needs up to .* GiB for 2 passes"):
        build(recipe, store=Store(small_disk), output=output, hooks=Silent(), until="model")
    with pytest.raises(RecipeError, match="--until modle: unknown stage"):
        build(recipe, store=Store(small_disk), output=output, hooks=Silent(), until="modle")


def test_the_cache_s_disk_fills_in_a_pass(
    write_recipe: Callable[..., Path], tmp_path: Path, tiny_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openclaw_opt.plan._check_disk", lambda plan, store: None)
    filler = tiny_disk / "filler"
    filler.write_bytes(b"x" * 1_300_000)
    with pytest.raises(MachineError, match="the disk is full"):
        build(load_recipe(write_recipe()), store=Store(tiny_disk), output=tmp_path / "out", hooks=Silent())
    assert not (tmp_path / "out").exists()
    assert list(tiny_disk.glob(".work-*")) == []
