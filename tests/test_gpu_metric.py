"""`gpu`: the arithmetic on readings of a known card, the library's own names, and what is said where there is no card."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pynvml
import pytest

from openclaw_opt import nvml
from openclaw_opt.cli.progress import Silent
from openclaw_opt.metrics.gpu import Gpu, Watch
from openclaw_opt.pipeline import build
from openclaw_opt.recipe import load_recipe
from openclaw_opt.remeasure import opened, subject_of
from openclaw_opt.store import Store
from openclaw_opt.targets import TARGETS, host

MIB = 2**20
WATTS = 250.0


@dataclass
class Known:
    """A card that draws 250 W at all times, half busy, and holds more memory at each reading up to 300 MiB."""

    counts_energy: bool = True
    tells: bool = True
    readings: list[int] = field(default_factory=list)

    def used(self) -> int | None:
        self.readings.append(min(100 + 50 * len(self.readings), 300) * MIB)
        return self.readings[-1] if self.tells else None

    def watts(self) -> float | None:
        return WATTS if self.tells else None

    def joules(self) -> float | None:
        return WATTS * time.perf_counter() if self.counts_energy and self.tells else None

    def busy(self) -> float | None:
        return 0.5 if self.tells else None


def watched(card: Known) -> dict[str, float | str]:
    """Numbers of 4 tokens every 20 ms, or why there are none."""
    metric = Gpu(seconds=0.3)

    def request() -> int:
        time.sleep(0.02)
        return 4

    watch, answered = metric.watched(request, card)
    assert answered % 4 == 0
    rows = metric.rows(watch, answered, 100 * MIB, "decoder")
    assert [row.name for row in rows] == metric.measurement_names("decoder")
    if card.tells:
        by_hand = WATTS * watch.seconds / answered
        assert rows[1].value == pytest.approx(by_hand, rel=0.05)
    return {row.name: row.not_measured if row.value is None else row.value for row in rows}


@pytest.mark.parametrize("counts_energy", [True, False])
def test_numbers_of_a_known_card(counts_energy: bool) -> None:
    found = watched(Known(counts_energy))
    assert found["gpu.power_w"] == pytest.approx(WATTS, rel=0.05)
    assert found["gpu.utilisation"] == 0.5
    assert found["gpu.memory_mib"] == 200


def test_a_card_that_does_not_tell_is_not_guessed() -> None:
    assert set(watched(Known(tells=False)).values()) == {"the card does not tell it to NVML"}


def test_the_thread_ends_with_the_block() -> None:
    card = Known()
    with Watch(card) as watch:
        time.sleep(0.12)
    count = len(card.readings)
    time.sleep(0.12)
    assert len(card.readings) == count == len(watch.used) >= 2


def test_the_library_has_every_name_that_is_called() -> None:
    """nvidia-ml-py is the real one here, though no card is."""
    called = set(re.findall(r"(?:_library|library|pynvml)\.(\w+)", Path(nvml.__file__).read_text()))
    assert "nvmlDeviceGetTotalEnergyConsumption" in called
    assert not [name for name in called if not hasattr(pynvml, name)]


class Library:
    """Two cards, as pynvml shows them."""

    NVMLError = pynvml.NVMLError

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return ("GPU-aa11", "GPU-bb22")[handle]

    def nvmlDeviceGetName(self, handle: int) -> str:
        return f"card {handle}"


@pytest.mark.parametrize(
    ("visible", "title"),
    [(None, "card 0"), ("1", "card 1"), ("1,0", "card 1"), ("GPU-bb", "card 1"), ("2", None), ("", None), ("-1", None)],
)
def test_the_card_is_the_one_cuda_sees(visible: str | None, title: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(nvml.VISIBLE, raising=False)
    if visible is not None:
        monkeypatch.setenv(nvml.VISIBLE, visible)
    card = nvml._first(Library())
    assert (card and card.title) == title


@pytest.mark.slow
@pytest.mark.skipif(host().is_gpu, reason="this machine has a GPU: the engine would run on it")
def test_without_a_card_it_says_so(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    nothing = ('  perplexity.recovery: ">= 0.5"\n', "  {}\n")
    recipe = load_recipe(write_recipe(("metrics: [perplexity, size]", "metrics: []"), nothing))
    folder = tmp_path / "out"
    build(recipe, store=Store(tmp_path / "cache"), output=folder, hooks=Silent())
    _, engine, _ = opened(folder)
    subject = subject_of(folder, engine, recipe)
    assert {row.not_measured for row in Gpu().measure(subject)} == {"the engine runs on the CPU"}
    card = replace(subject, target=TARGETS["l4"])
    assert {row.not_measured for row in Gpu().measure(card)} == {"NVML shows no NVIDIA card on this machine"}
