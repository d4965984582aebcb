"""The tables of docs/metrics.md that hold figures are made again from the code that decides."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from openclaw_opt.comparison.margins import KINDS
from openclaw_opt.numerics.paired import Flips, fewest_items, is_equivalent, tango_interval
from openclaw_opt.numerics.stats import minimum_samples

PAGE = (Path(__file__).parent.parent / "docs" / "metrics.md").read_text(encoding="utf-8")


def cells(start: str) -> list[str]:
    """The cells after the first of the table row that starts so."""
    line = next(line for line in PAGE.splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def fewest_without_a_flip(confidence: float) -> int:
    count = 1
    while not is_equivalent(tango_interval(Flips(0, 0, count), 2 * confidence - 1), -0.005, 0.005):
        count += 1
    return count


def test_the_table_of_fewest_samples() -> None:
    sure = (0.9, 0.95, 0.99)
    assert cells("anything by a bootstrap") == [str(fewest_items(c)) for c in sure]
    for start, q, over in (
        ("a p50 within", 50, 0), ("a p90,", 90, 0), ("a p99, none", 99, 0), ("a p99, one", 99, 1), ("a p99, two", 99, 2)
    ):  # fmt: skip
        assert cells(start) == [str(minimum_samples(q, over, c)) for c in sure], start
    assert cells("equal shares within half a point") == [str(fewest_without_a_flip(c)) for c in sure]


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_of_margins(kind: str) -> None:
    stated = re.sub(r" nat$", "", cells(f"{kind} |")[1])
    assert stated == str(KINDS[kind].margin)
