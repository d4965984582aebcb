"""Fixtures shared by the tests: a tiny checkpoint with text it can read, and a recipe for it."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: two workers share two cores

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from tests import tiny

settings.register_profile("gate", derandomize=True)
settings.register_profile("explore", derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "gate"))

RECIPE = """\
description: a tiny random Llama
model: {model}
target: host
data:
  calibration: {{source: text, path: {calibration}, split: all, samples: 16, length: 64}}
  evaluation:  {{source: text, path: {evaluation}, split: all, samples: 8, length: 48}}
passes:
  - quantize: {{format: int8, algorithm: max}}
  - export
  - fuse
  - build
metrics: [perplexity, size]
budgets:
  perplexity.recovery: ">= 0.5"
"""


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers with a tokenizer whose words are `<0>` … `<255>`. Read only."""
    return tiny.write_checkpoint(tmp_path_factory.mktemp("tiny-llama"), "llama")


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Calibration and evaluation text in that tokenizer's words, disjoint."""
    folder = tmp_path_factory.mktemp("text")
    found = {}
    for seed, name in enumerate(("calibration", "evaluation")):
        rng = random.Random(seed)
        lines = [" ".join(f"<{rng.randrange(3, 256)}>" for _ in range(40)) for _ in range(60)]
        found[name] = folder / f"{name}.txt"
        found[name].write_text("\n".join(lines) + "\n")
    return found


@pytest.fixture
def write_recipe(tmp_path: Path, tiny_llama: Path, corpora: dict[str, Path]) -> Callable[..., Path]:
    """Write the recipe above, after replacing text in it; `copy=True` gives it a checkpoint of its own to spoil."""

    def write(*replacements: tuple[str, str], name: str = "tiny", copy: bool = False) -> Path:
        model = tiny_llama
        if copy:
            model = Path(shutil.copytree(tiny_llama, tmp_path / "checkpoint"))
        text = RECIPE.format(model=model, **corpora)
        for old, new in replacements:
            assert old in text, old
            text = text.replace(old, new)
        file = tmp_path / f"{name}.yaml"
        file.write_text(text)
        return file

    return write
