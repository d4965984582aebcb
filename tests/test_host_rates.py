"""The ceilings of this machine, and the fraction of them that an engine reaches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from openclaw_opt.backends import host_rates
from openclaw_opt.cli.progress import Silent
from openclaw_opt.pipeline import build
from openclaw_opt.recipe import load_recipe
from openclaw_opt.store import Store


@pytest.mark.slow
def test_rates_are_measured_and_positive() -> None:
    rates = host_rates.measure(2**20)
    assert rates.bandwidth > 1e8
    assert rates.peak["fp16"] > 1e8
    assert f"on {host_rates.cores()} cores, measured in this run" in rates.note


def test_a_reading_takes_as_long_as_its_bytes() -> None:
    reader = host_rates.Reader(8 * 2**20)
    assert reader._times == host_rates.AT_LEAST // (8 * 2**20)
    assert sum(part.nbytes for part in reader._parts) == 8 * 2**20
    reader.close()


@pytest.mark.slow
def test_on_host_the_roofline_has_a_bound_and_a_fraction_with_an_interval(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    file = write_recipe(
        ("metrics: [perplexity, size]", "metrics: [roofline]"), ('  perplexity.recovery: ">= 0.5"\n', "  {}\n")
    )
    report = build(load_recipe(file), store=Store(tmp_path / "cache"), output=tmp_path / "out", hooks=Silent())
    rows = {row.name: row for row in report.measurements}
    assert rows["roofline.decode_ms"].subject == "bound"
    assert "measured in this run" in rows["roofline.decode_ms"].note
    fraction = rows["roofline.decode_fraction"]
    assert fraction.value is not None
    assert fraction.low is not None
    assert fraction.low <= fraction.value
    assert "best token by best reading" in fraction.note
