"""Zeros against closed forms: which weights go, what the others become, and that no better 2:4 weight exists than is claimed."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from openclaw_opt.numerics import sparsity
from openclaw_opt.numerics.gptq import NotPositive, gptq, output_error
from openclaw_opt.numerics.grid import grid_of
from openclaw_opt.numerics.sparsity import Sparse, by_magnitude, by_sparsegpt, by_wanda, is_two_of_four

METHODS = ("magnitude", "wanda", "sparsegpt")


def made(method: str, weight: Tensor, gram: Tensor, ratio: float | None) -> Sparse:
    if method == "magnitude":
        return by_magnitude(weight, ratio)
    return by_wanda(weight, gram, ratio) if method == "wanda" else by_sparsegpt(weight, gram, ratio)


def problem(seed: int, rows: int = 16, columns: int = 192) -> tuple[Tensor, Tensor]:
    """A weight, and products of inputs that are correlated and of different size; longer than one stride."""
    random = torch.Generator().manual_seed(seed)
    mix = torch.eye(columns) + 0.3 * torch.randn(columns, columns, generator=random) / columns**0.25
    x = torch.randn(1024, columns, generator=random) @ mix * torch.randn(columns, generator=random).exp()
    return torch.randn(rows, columns, generator=random), x.T @ x


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(METHODS), st.integers(1, 5), st.integers(1, 40))
def test_every_group_of_four_has_exactly_two_zeros(seed: int, method: str, rows: int, groups: int) -> None:
    weight, gram = problem(seed, rows, 4 * groups)
    done = made(method, weight, gram, None)
    assert bool((done.kept.reshape(-1, 4).sum(1) == 2).all())
    assert bool(((done.values.reshape(-1, 4) == 0).sum(1) == 2).all())
    assert is_two_of_four(done.values)
    assert done.share == 0.5
    assert not is_two_of_four(weight)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(METHODS), st.floats(0.05, 0.95))
def test_unstructured_zeros_are_as_many_as_asked(seed: int, method: str, ratio: float) -> None:
    weight, gram = problem(seed, 8, 160)
    done = made(method, weight, gram, ratio)
    groups = {"magnitude": [8 * 160], "wanda": [160] * 8, "sparsegpt": [8 * 128, 8 * 32]}[method]
    assert int((done.values == 0).sum()) == sum(round(ratio * size) for size in groups)
    assert torch.equal(done.values != 0, done.kept)


@pytest.mark.parametrize("ratio", [None, 0.5])
def test_magnitude_and_wanda_keep_what_their_papers_say(ratio: float | None) -> None:
    weight = torch.tensor([[1.0, -4.0, 3.0, 2.0], [0.5, 0.1, -0.2, 9.0]])
    gram = torch.diag(torch.tensor([100.0, 1.0, 1.0, 0.01]))
    wanda = by_wanda(weight, gram, ratio).values  # scores 10 4 3 0.2; 5 0.1 0.2 0.9
    assert torch.equal(wanda, torch.tensor([[1.0, -4.0, 0.0, 0.0], [0.5, 0.0, 0.0, 9.0]]))
    over_all = torch.tensor([[0.0, -4.0, 3.0, 2.0], [0.0, 0.0, 0.0, 9.0]])
    in_groups = torch.tensor([[0.0, -4.0, 3.0, 0.0], [0.5, 0.0, 0.0, 9.0]])
    assert torch.equal(by_magnitude(weight, ratio).values, in_groups if ratio is None else over_all)


@pytest.mark.parametrize("ratio", [None, 0.5])
def test_with_independent_inputs_sparsegpt_is_wanda_and_moves_no_weight(ratio: float | None) -> None:
    """H diagonal: U_jj² = 1 / H_jj, so w² / U² is Wanda's score squared, and nothing can make up for anything."""
    weight, _ = problem(3, rows=1, columns=128)
    gram = torch.diag(torch.rand(128, generator=torch.Generator().manual_seed(1)) + 0.1)
    ours, wanda = by_sparsegpt(weight, gram, ratio, damping=1e-7), by_wanda(weight, gram, ratio)
    assert torch.equal(ours.kept, wanda.kept)
    assert torch.equal(ours.values, wanda.values)
    equal = by_sparsegpt(weight, 3 * torch.eye(128), ratio)
    assert torch.equal(equal.values, by_magnitude(weight, ratio).values)


def by_columns(weight: Tensor, gram: Tensor, damping: float) -> Tensor:
    """2:4 as the paper writes it: float64, the inverse of what is left made smaller column by column."""
    work, hessian = weight.double().clone(), gram.double()
    inverse = torch.linalg.inv(hessian + damping * hessian.diagonal().mean() * torch.eye(len(hessian)))
    values, kept = torch.empty_like(work), torch.empty_like(work, dtype=torch.bool)
    for j in range(work.shape[1]):
        if (
            j % 4 == 0
        ):  # errors of the four as the first of them sees them: each on the inverse of itself and what follows
            left, scores = inverse.clone(), []
            for k in range(j, j + 4):
                scores.append(work[:, k].square() / left[k, k])
                left = left - torch.outer(left[:, k], left[k]) / left[k, k]
            best = torch.stack(scores, 1).argsort(1, descending=True)[:, :2]
            kept[:, j : j + 4] = torch.zeros(len(work), 4, dtype=torch.bool).scatter_(1, best, True)
        values[:, j] = work[:, j] * kept[:, j]
        work -= ((work[:, j] - values[:, j]) / inverse[j, j])[:, None] * inverse[j]
        inverse = inverse - torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
        inverse[j], inverse[:, j] = 0, 0
    return values.float()


@pytest.mark.parametrize("seed", range(3))
def test_sparsegpt_is_the_papers_algorithm(seed: int) -> None:
    weight, gram = problem(seed)
    ours, wanted = by_sparsegpt(weight, gram, None).values, by_columns(weight, gram, 0.01)
    assert torch.equal(ours != 0, wanted != 0)
    assert torch.allclose(ours, wanted, atol=2e-4)


def test_one_weight_that_goes_is_made_up_for_by_the_closed_form() -> None:
    """Optimal brain surgeon: δw = −w_p / (H⁻¹)_pp · (H⁻¹)_p."""
    _, gram = problem(4, 1, 8)
    weight = torch.ones(1, 8)
    weight[0, 0] = 1e-6
    done = by_sparsegpt(weight, gram, 1 / 8)
    hessian = (gram / gram.diagonal().mean()).double()
    inverse = torch.linalg.inv(hessian + 0.01 * torch.eye(8))
    assert done.kept.tolist() == [[False] + [True] * 7]
    wanted = weight.double() - weight[0, 0].double() / inverse[0, 0] * inverse[0]
    assert torch.allclose(done.values[0, 1:].double(), wanted[0, 1:], atol=1e-8)


@pytest.mark.parametrize("ratio", [None, 0.5, 0.75])
@pytest.mark.parametrize("seed", range(4))
def test_the_error_falls_from_magnitude_to_wanda_to_sparsegpt(seed: int, ratio: float | None) -> None:
    weight, gram = problem(seed, rows=32)
    magnitude, wanda, sparse = (output_error(weight, made(m, weight, gram, ratio).values, gram) for m in METHODS)
    assert sparse < wanda < magnitude


def best_error(row: Tensor, gram: Tensor, masks: list[Tensor], *, refit: bool) -> float:
    """The least error of any mask, its weights as they are or refitted by least squares."""
    errors = []
    for mask in masks:
        values = row * mask
        if refit:
            inside = gram[mask][:, mask].double()
            values = torch.zeros(len(row), dtype=torch.double)
            values[mask] = torch.linalg.solve(inside, (gram[mask].double() @ row.double()))
        errors.append(output_error(row[None], values[None], gram))
    return min(errors)


@pytest.mark.parametrize("seed", range(12))
def test_against_every_mask_there_is(seed: int) -> None:
    """Two groups of four: 36 masks. None is better than the best one, and SparseGPT is near it."""
    weight, gram = problem(seed, 1, 8)
    pairs = [list(pair) for pair in itertools.combinations(range(4), 2)]
    masks = []
    for first, second in itertools.product(pairs, pairs):
        mask = torch.zeros(8, dtype=torch.bool)
        mask[[*first, *(4 + j for j in second)]] = True
        masks.append(mask)
    errors = {m: output_error(weight, made(m, weight, gram, None).values, gram) for m in METHODS}
    best, best_as_is = (best_error(weight[0], gram, masks, refit=refit) for refit in (True, False))
    assert best <= errors["sparsegpt"] * (1 + 1e-6)
    assert best_as_is <= min(errors["magnitude"], errors["wanda"]) * (1 + 1e-6)
    alone = torch.diag(gram.diagonal())
    assert output_error(weight, by_wanda(weight, alone, None).values, alone) == pytest.approx(
        best_error(weight[0], alone, masks, refit=True), rel=1e-5
    )


def test_weights_of_an_input_that_is_never_there_go_first() -> None:
    weight, gram = problem(6, 4, 8)
    gram[[1, 2]], gram[:, [1, 2]] = 0, 0
    weight[:, [1, 2]] = 100
    for method in ("wanda", "sparsegpt"):
        assert made(method, weight, gram, None).kept[:, :4].tolist() == [[True, False, False, True]] * 4


def test_nan_is_refused_and_odd_sizes_too() -> None:
    weight, _ = problem(7, 2, 8)
    with pytest.raises(NotPositive):
        by_sparsegpt(weight, torch.full((8, 8), float("nan")), None)
    with pytest.raises(ValueError, match="groups of 4 do not divide 6"):
        sparsity.two_of_four(torch.ones(2, 6))
    assert not is_two_of_four(torch.zeros(2, 6))


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("kind", ["int4", "int8", "uint4"])
def test_gptq_keeps_zeros_that_it_is_told_of(kind: str, act_order: bool) -> None:
    weight, gram = problem(8)
    sparse = by_sparsegpt(weight, gram, None)
    grid = grid_of(sparse.values, kind, 32)
    held = gptq(sparse.values, gram, grid, act_order=act_order, zeros=~sparse.kept).values
    assert not bool(held[~sparse.kept].any())
    free = gptq(sparse.values, gram, grid, act_order=act_order).values
    assert bool(free[~sparse.kept].any())
    nearest = grid.rounded(sparse.values)
    assert not bool(nearest[~sparse.kept].any())
    errors = [output_error(sparse.values, values, gram) for values in (held, nearest)]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("seed", range(3))
def test_sparsegpt_chooses_what_modelopt_chooses(seed: int) -> None:
    from modelopt.torch.sparsity.weight_sparsity.magnitude import create_asp_mask
    from modelopt.torch.sparsity.weight_sparsity.sparsegpt import create_sgpt_mask

    weight, gram = problem(seed)
    settings = {"hessian_damp": 0.01, "pattern": "2:4 sparsity", "col_block_size": 128, "row_block_size": -1}
    theirs = create_sgpt_mask(weight, gram / gram.diagonal().mean(), settings)
    assert (by_sparsegpt(weight, gram, None).kept == theirs).float().mean() > 0.999  # float32 turns a rare tie over
    assert torch.equal(
        by_magnitude(weight, None).kept, create_asp_mask(torch.nn.Parameter(weight), "2:4 sparsity").bool()
    )
