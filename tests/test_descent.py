"""Descent after GPTQ: the error never grows, ends where no code can lower it, and its scales are least squares."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from openclaw_opt.numerics.clipping import block_grams, clipped_grid
from openclaw_opt.numerics.descent import descended, row_errors
from openclaw_opt.numerics.fitting import Options, fitted
from openclaw_opt.numerics.gptq import gptq, output_error
from openclaw_opt.numerics.grid import Grid, grid_of

KINDS = ("int4", "uint4", "int8")


def problem(seed: int, rows: int = 8, columns: int = 64, unused: int = 0) -> tuple[Tensor, Tensor]:
    """A weight, and products of inputs that depend on each other."""
    random = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=random) / columns**0.5
    x = torch.randn(256, columns, generator=random) @ mix * torch.rand(columns, generator=random).exp()
    x[:, :unused] = 0
    return torch.randn(rows, columns, generator=random), x.T @ x


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 1000), st.sampled_from(KINDS), st.sampled_from([16, 32, 64]), st.integers(1, 4), st.booleans(), st.integers(0, 20)
)  # fmt: skip
def test_no_row_gets_worse_and_all_lies_on_the_grid(
    seed: int, kind: str, block: int, sweeps: int, hold: bool, unused: int
) -> None:
    weight, gram = problem(seed, unused=unused)
    zeros = torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed)) < 0.5 if hold else None
    if zeros is not None:
        weight = weight.masked_fill(zeros, 0.0)
    grid = grid_of(weight, kind, block)
    start = gptq(weight, gram, grid, zeros=zeros).values
    values, moved = descended(weight, start, gram, grid, sweeps=sweeps, zeros=zeros)
    assert (row_errors(weight, values, gram) <= row_errors(weight, start, gram)).all()
    assert (moved.rounded(values) - values).abs().max() <= 1e-5 * values.abs().max()
    assert zeros is None or not values[zeros].any()


def test_it_gains_where_gptq_ended() -> None:
    for seed in range(4):
        weight, gram = problem(seed, rows=32, columns=128)
        grid = grid_of(weight, "int4", 32)
        start = gptq(weight, gram, grid).values
        values, _ = descended(weight, start, gram, grid)
        assert output_error(weight, values, gram) < 0.95 * output_error(weight, start, gram)


@pytest.mark.parametrize("kind", ["int4", "uint4"])
def test_it_ends_where_no_single_code_lowers_the_error(kind: str) -> None:
    weight, gram = problem(3, rows=2, columns=32)
    grid = grid_of(weight, kind, 16)
    values, moved = descended(weight, gptq(weight, gram, grid).values, gram, grid, sweeps=60)
    codes, least = moved.codes(values), row_errors(weight, values, gram)
    low, high = moved.limits
    for j in range(weight.shape[1]):
        for code in torch.arange(low, high + 1):
            other = codes.clone()
            other[:, j] = code
            assert (row_errors(weight, moved.values(other), gram) >= least * (1 - 1e-4)).all()


def test_scales_are_least_squares() -> None:
    """One block a row: s = (w·H·c) / (c·H·c) in closed form, and no code changes."""
    weight, gram = problem(5, rows=4, columns=16)
    grid = grid_of(weight, "int8", 16)
    codes = grid.codes(weight)
    off = Grid("int8", grid.scale * 1.2)
    values, moved = descended(
        weight, off.values(codes), gram, off, sweeps=1, zeros=torch.zeros(4, 16, dtype=torch.bool)
    )
    wide, h, w = codes.double(), gram.double(), weight.double()
    wanted = ((w @ h) * wide).sum(-1) / ((wide @ h) * wide).sum(-1)
    assert moved.scale[:, 0].double() == pytest.approx(wanted, rel=1e-4)
    assert (
        row_errors(weight, values, gram) <= row_errors(weight, (wanted[:, None] * wide).float(), gram) * (1 + 1e-6)
    ).all()


def test_with_independent_inputs_the_codes_are_the_nearest() -> None:
    weight, _ = problem(1)
    grid = grid_of(weight, "int4", 32)
    values, moved = descended(weight, grid.rounded(weight), torch.eye(64) * 7.0, grid, sweeps=1)
    assert torch.equal(values, moved.rounded(weight))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([("int4", 32), ("uint4", 16), ("int8", 64)]), st.integers(0, 3))
def test_each_row_is_at_least_as_good_as_gptq_on_either_grid(seed: int, what: tuple[str, int], sweeps: int) -> None:
    (kind, block), (weight, gram) = what, problem(seed, rows=6)
    made = fitted(weight, gram.clone(), Options(kind, block, sweeps=sweeps))
    own = row_errors(weight, made.values, gram)
    for grid in (grid_of(weight, kind, block), clipped_grid(weight, kind, block, block_grams(gram, block))):
        assert (own <= row_errors(weight, gptq(weight, gram, grid).values, gram) * (1 + 1e-5)).all()
    assert (made.grid.rounded(made.values) - made.values).abs().max() <= 1e-5 * made.values.abs().max()


def test_rows_in_parts_are_rows_together(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, gram = problem(7, rows=10)
    options: Any = Options("uint4", 32)
    zeros = weight.abs() < 0.3
    whole = fitted(weight.masked_fill(zeros, 0), gram.clone(), options, zeros)
    monkeypatch.setattr("openclaw_opt.numerics.fitting.ROWS", 3)
    parts = fitted(weight.masked_fill(zeros, 0), gram.clone(), options, zeros)
    assert torch.allclose(whole.values, parts.values, atol=1e-5)
    assert torch.equal(whole.values == 0, parts.values == 0)
