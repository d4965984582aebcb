"""GPTQ, clip search, zero points and histogram ranges, against straightforward references, closed forms and nvidia-modelopt."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from openclaw_opt.numerics import gptq as gptq_module
from openclaw_opt.numerics import histogram as hist
from openclaw_opt.numerics.clipping import block_grams, clipped_grid
from openclaw_opt.numerics.gptq import NotPositive, gptq, output_error
from openclaw_opt.numerics.grid import Grid, grid_of
from openclaw_opt.numerics.quantization import quantize_blocks

BLOCK = 32


def problem(seed: int, rows: int = 16, columns: int = 128) -> tuple[Tensor, Tensor]:
    """A weight, and products of inputs that are correlated and of very different size."""
    random = torch.Generator().manual_seed(seed)
    mix = torch.eye(columns) + 0.3 * torch.randn(columns, columns, generator=random) / columns**0.25
    x = torch.randn(1024, columns, generator=random) @ mix * torch.randn(columns, generator=random).exp()
    return torch.randn(rows, columns, generator=random), x.T @ x


def by_columns(weight: Tensor, gram: Tensor, grid: Grid, damping: float) -> Tensor:
    """Optimal brain quantization in a fixed order as the paper writes it: float64, the inverse made smaller column by column."""
    work, hessian = weight.double().clone(), gram.double()
    inverse = torch.linalg.inv(hessian + damping * hessian.diagonal().mean() * torch.eye(len(hessian)))
    rounded = torch.empty_like(work)
    for j in range(work.shape[1]):
        rounded[:, j] = grid.column(work[:, j].float(), j // BLOCK)
        work -= ((work[:, j] - rounded[:, j]) / inverse[j, j])[:, None] * inverse[j]
        inverse = inverse - torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
        inverse[j], inverse[:, j] = 0, 0
    return rounded.float()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["int4", "uint4"])
def test_gptq_is_optimal_brain_quantization(seed: int, kind: str) -> None:
    weight, gram = problem(seed, columns=192)  # longer than one stride
    grid = grid_of(weight, kind, BLOCK)
    ours = gptq(weight, gram, grid, act_order=False).values
    wanted = by_columns(weight, gram, grid, 0.01)
    same = ((ours - wanted).abs() < 1e-5).float().mean()
    assert same > 0.99  # float32 turns a rare tie over, and what comes after it
    assert output_error(weight, ours, gram) == pytest.approx(output_error(weight, wanted, gram), rel=0.02)


def test_gptq_equals_modelopts() -> None:
    from modelopt.torch.quantization.utils.calib_utils import compute_hessian_inverse, gptq_blockwise_update

    weight, gram = problem(5)
    grid = grid_of(weight, "int4", BLOCK)
    theirs = weight.clone()
    gptq_blockwise_update(theirs, compute_hessian_inverse(gram, weight, 0.01), 128, grid.rounded)
    ours = gptq(weight, gram, grid, act_order=False).values
    assert ((ours - theirs).abs() < 1e-5).float().mean() > 0.99
    assert output_error(weight, ours, gram) == pytest.approx(output_error(weight, theirs, gram), rel=0.02)


@pytest.mark.parametrize("seed", range(4))
def test_gptq_beats_rounding_and_order_beats_none(seed: int) -> None:
    weight, gram = problem(seed)
    grid = grid_of(weight, "int4", BLOCK)
    nearest, plain, ordered = (
        output_error(weight, values, gram)
        for values in (
            grid.rounded(weight),
            gptq(weight, gram, grid, act_order=False).values,
            gptq(weight, gram, grid).values,
        )
    )
    assert ordered < plain < 0.9 * nearest


def test_with_independent_inputs_gptq_is_rounding() -> None:
    weight, _ = problem(1)
    grid = grid_of(weight, "int4", BLOCK)
    assert torch.equal(gptq(weight, torch.eye(128) * 7.0, grid).values, grid.rounded(weight))


def test_an_unused_input_is_rounded_and_moves_nothing() -> None:
    weight, gram = problem(2)
    gram[5], gram[:, 5] = 0, 0
    grid = grid_of(weight, "int4", BLOCK)
    first = gptq(weight, gram, grid).values
    assert torch.equal(first[:, 5], grid.rounded(weight)[:, 5])
    weight[:, 5] *= 0.5
    assert torch.equal(gptq(weight, gram, grid).values[:, 6:], first[:, 6:])


def test_few_inputs_raise_the_damping_and_nan_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, _ = problem(3)
    x = torch.randn(4, 128, generator=torch.Generator().manual_seed(0)) * 1e3
    grid = grid_of(weight, "int4", BLOCK)
    made = gptq(weight, x.T @ x, grid, damping=1e-9)
    assert made.damping > 1e-9
    assert made.values.isfinite().all()
    with pytest.raises(NotPositive):
        gptq(weight, torch.full((128, 128), float("nan")), grid)
    assert gptq_module.MOST_DAMPING == 1


# Grids.


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["int4", "int8", "uint4"]), st.floats(-3, 3), st.floats(1e-3, 1e3))
def test_rounding_is_within_half_a_step_and_idempotent(seed: int, kind: str, shift: float, size: float) -> None:
    weight = (torch.randn(4, 64, generator=torch.Generator().manual_seed(seed)) + shift) * size
    grid = grid_of(weight, kind, BLOCK)
    rounded = grid.rounded(weight)
    step = grid.scale.repeat_interleave(BLOCK, 1)
    # A zero point is rounded too, so the ends of an asymmetric block may lie half a step beyond the codes.
    assert bool(((weight - rounded).abs() <= step * (1.001 if kind == "uint4" else 0.501)).all())
    assert torch.equal(grid.codes(rounded), grid.codes(weight))
    low, high = grid.limits
    assert bool(((grid.codes(weight) >= low) & (grid.codes(weight) <= high)).all())


def test_symmetric_blocks_are_those_of_the_format() -> None:
    weight, _ = problem(0)
    codes, scale = quantize_blocks(weight, BLOCK)
    grid = grid_of(weight, "int4", BLOCK)
    assert torch.equal(grid.scale, scale)
    assert ((grid.codes(weight) - codes).abs() > 0).float().mean() < 1e-3  # ties fall as the last bit says


def test_a_zero_point_halves_the_step_of_one_sided_blocks() -> None:
    weight = torch.rand(8, 64, generator=torch.Generator().manual_seed(0))
    one, other = grid_of(weight, "int4", BLOCK), grid_of(weight, "uint4", BLOCK)
    assert torch.allclose(other.scale * 15, one.scale * 7)
    assert other.zero is not None
    assert not other.zero.any()
    assert torch.equal(grid_of(torch.zeros(2, 64), "uint4", BLOCK).rounded(torch.zeros(2, 64)), torch.zeros(2, 64))


@pytest.mark.parametrize("kind", ["int4", "uint4"])
def test_the_clip_search_finds_the_best_of_its_grid(kind: str) -> None:
    weight, gram = problem(4, rows=3, columns=64)
    found = clipped_grid(weight, kind, BLOCK, block_grams(gram, BLOCK))
    for row, block in itertools.product(range(3), range(2)):
        cut = slice(block * BLOCK, (block + 1) * BLOCK)
        part, inner = weight[row : row + 1, cut], gram[cut, cut]
        costs = [output_error(part, grid_of(part, kind, BLOCK, 1 - 0.05 * i).rounded(part), inner) for i in range(11)]
        own = output_error(part, found.rounded(weight)[row : row + 1, cut], inner)
        assert own == pytest.approx(min(costs), rel=1e-4)


def test_without_inputs_the_search_is_for_the_weights_own_error() -> None:
    weight, _ = problem(4)
    plain, clipped = grid_of(weight, "int4", BLOCK), clipped_grid(weight, "int4", BLOCK)
    eye = clipped_grid(weight, "int4", BLOCK, torch.eye(BLOCK).expand(4, BLOCK, BLOCK))
    assert torch.allclose(clipped.scale, eye.scale)
    errors = [(weight - grid.rounded(weight)).square().sum() for grid in (plain, clipped)]
    assert errors[1] < 0.95 * errors[0]


# Histograms.


def gaussian(count: int = 200_000) -> hist.Histogram:
    x = torch.randn(count, generator=torch.Generator().manual_seed(0))
    made = hist.Histogram(float(x.abs().max()))
    for part in x.split(count // 4):
        made.add(part)
    return made


def test_a_stream_counts_like_the_whole() -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    whole, parts = hist.Histogram(3.0), hist.Histogram(3.0)
    whole.add(x)
    for part in x.split(77):
        parts.add(part)
    assert np.array_equal(whole.counts, parts.counts)
    assert whole.counts.sum() == 1000
    assert whole.counts[-1] >= int((x.abs() > 3).sum()) > 0


def test_percentile_of_a_gaussian_is_its_quantile() -> None:
    found = hist.percentile_range(gaussian(), 99)
    assert found == pytest.approx(2.5758, abs=0.03)  # P(|x| < 2.5758) = 0.99
    assert hist.percentile_range(gaussian(), 100) == pytest.approx(gaussian().top)


def test_mse_of_a_gaussian_is_the_optimal_clip() -> None:
    """Brute force over the density: clipping and rounding error of 8 bits; the optimum of a uniform quantizer is near 3.92 σ."""
    x = np.linspace(0, 8, 400_001)
    density = np.exp(-(x**2) / 2)
    candidates = np.arange(2.5, 5.5, 0.02)
    errors = []
    for top in candidates:
        step = top / 127
        back = np.clip(np.round(x / step), -127, 127) * step
        errors.append(((x - back) ** 2 * density).sum())
    best = candidates[int(np.argmin(errors))]
    assert best == pytest.approx(3.92, abs=0.1)
    histogram = hist.Histogram(8.0)
    middles = (histogram.edges[1:] + histogram.edges[:-1]) / 2
    histogram.counts = np.exp(-(middles**2) / 2) * 1e6
    assert hist.mse_range(histogram, "int8") == pytest.approx(best, abs=0.12)


def test_entropy_of_equal_bins_keeps_the_whole_range() -> None:
    histogram = hist.Histogram(1.0)
    histogram.counts[:] = 100
    assert hist.entropy_range(histogram) == 1.0


def test_entropy_cuts_a_lone_outlier() -> None:
    histogram = gaussian()
    tail = hist.Histogram(histogram.top * 16)
    tail.add(torch.randn(200_000, generator=torch.Generator().manual_seed(0)))
    tail.counts[-1] += 1
    assert hist.entropy_range(tail) < 0.5 * tail.top


@pytest.mark.parametrize("method", ["entropy", "percentile"])
def test_ranges_equal_modelopts(method: str) -> None:
    """Not mse: modelopt 0.47 takes the first range it tries, 0.27 for this normal distribution."""
    from modelopt.torch.quantization.calib import histogram as theirs

    histogram = gaussian(20_000)
    counts, edges = histogram.counts.copy(), histogram.edges
    wanted = {
        "entropy": lambda: theirs._compute_amax_entropy(counts, edges, 8, False, 64, 128),
        "percentile": lambda: theirs._compute_amax_percentile(counts, edges, 99.9),
    }[method]()
    if method == "entropy":  # theirs takes minutes at a stride of 1
        copy = histogram.counts.copy()
        copy[0] = copy[1]
        tried = range(hist.LEAST, hist.BINS + 1, 64)
        values = [hist._divergence(copy, bins) for bins in tried]
        best = max(bins for bins, value in zip(tried, values, strict=True) if value == min(values))
        assert float(wanted) == pytest.approx(float(edges[best]))
        assert hist.entropy_range(histogram) <= histogram.top
        assert min(values) >= hist._divergence(copy, round(hist.entropy_range(histogram) / histogram.top * hist.BINS))
        return
    # They take the lower edge of the bin in which the share is reached, so that a little more lies beyond it.
    assert hist.range_of(histogram, method, "int8", 99.9) == pytest.approx(float(wanted) + histogram.top / hist.BINS)


def test_a_range_is_the_top_where_nothing_was_seen() -> None:
    assert hist.range_of(hist.Histogram(2.0), "mse", "int8", 99.9) == 2.0
    assert math.isfinite(hist.range_of(gaussian(2000), "mse", "fp8", 99.9))
