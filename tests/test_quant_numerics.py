"""Quantizers against their closed forms, and NVFP4 against nvidia-modelopt's packer, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from openclaw_opt.numerics import microscaling as mx
from openclaw_opt.numerics import quantization as q
from openclaw_opt.numerics.grid import grid_of, signed_grid

BLOCK = 16
FLOATS = st.one_of(st.just(0.0), st.floats(2.0**-13, 8192.0, width=32), st.floats(-8192.0, -(2.0**-13), width=32))
MATRICES = hnp.arrays(np.float32, st.tuples(st.integers(1, 3), st.sampled_from([16, 32, 64])), elements=FLOATS)
fast = settings(max_examples=60, deadline=None)


def _step(x: torch.Tensor, kind: str) -> torch.Tensor:
    return q.scale_of(q.channel_amax(x), kind)


@fast
@given(MATRICES, st.sampled_from(["int8", "int4"]))
def test_integer_error_is_at_most_half_a_step(array: np.ndarray, kind: str) -> None:
    x = torch.from_numpy(array)
    step = _step(x, kind)
    back = q.dequantize(q.quantize(x, q.channel_amax(x), kind), step)
    assert bool(((back - x).abs() <= step * (0.5 + 1e-4)).all())


@fast
@given(MATRICES, st.sampled_from(["int8", "int4", "fp8"]))
def test_quantizing_twice_changes_nothing(array: np.ndarray, kind: str) -> None:
    x = torch.from_numpy(array)
    amax = q.channel_amax(x)
    once = q.quantize(x, amax, kind)
    again = q.quantize(q.dequantize(once, q.scale_of(amax, kind)), amax, kind)
    assert torch.equal(once.float(), again.float())


@fast
@given(MATRICES)
def test_fp8_error_is_at_most_a_sixteenth_or_half_the_smallest_step(array: np.ndarray) -> None:
    x = torch.from_numpy(array)
    amax = q.channel_amax(x)
    scale = q.scale_of(amax, "fp8")
    back = q.dequantize(q.quantize(x, amax, "fp8"), scale)
    assert bool(((back - x).abs() <= torch.maximum(x.abs() / 16, scale * 2.0**-10) * (1 + 1e-4)).all())


@fast
@given(MATRICES)
def test_blocks_agree_with_each_block_alone(array: np.ndarray) -> None:
    x = torch.from_numpy(array)
    codes, scale = q.quantize_blocks(x, BLOCK)
    for row in range(x.shape[0]):
        for block in range(x.shape[1] // BLOCK):
            part = x[row : row + 1, block * BLOCK : (block + 1) * BLOCK]
            alone = q.quantize(part, q.channel_amax(part), "int4")
            assert torch.equal(codes[row : row + 1, block * BLOCK : (block + 1) * BLOCK], alone)
            assert scale[row, block] == _step(part, "int4")
    assert torch.equal(q.dequantize_blocks(codes, scale), q.dequantize(codes, scale.repeat_interleave(BLOCK, -1)))


@pytest.mark.parametrize("kind", ["int8", "int4", "fp8"])
def test_dead_values_are_zero_with_scale_one(kind: str) -> None:
    x = torch.full((1, 4), 2.0**-24)
    assert q.quantize(x, q.channel_amax(x), kind).float().count_nonzero() == 0
    assert q.scale_of(q.channel_amax(x), kind).item() == 1.0
    assert q.scale_of(q.channel_amax(2 * x), kind).item() == pytest.approx(2.0**-23 / q.TOP[kind])


@pytest.mark.parametrize("kind", ["int8", "int4", "fp8"])
def test_zeros_stay_zeros_and_nothing_divides_by_zero(kind: str) -> None:
    x = torch.zeros(2, 32)
    x[1, 3] = 5.0
    codes = q.quantize(x, q.channel_amax(x), kind)
    back = q.dequantize(codes, q.scale_of(q.channel_amax(x), kind))
    assert torch.equal(back[0], torch.zeros(32))
    assert back[1, 3] == pytest.approx(5.0)
    assert back[1].count_nonzero() == 1


def test_out_of_range_saturates() -> None:
    x, amax = torch.tensor([[-9.0, 9.0, 0.5]]), torch.tensor([[1.0]])
    assert q.quantize(x, amax, "int8").tolist() == [[-127, 127, 64]]
    assert q.quantize(x, amax, "int4").tolist() == [[-8, 7, 4]]  # 3.5 is a tie: to even
    assert q.quantize(x, amax, "fp8").float().tolist() == [[-448.0, 448.0, 224.0]]


@fast
@given(hnp.arrays(np.int8, st.tuples(st.integers(1, 4), st.sampled_from([2, 8, 34])), elements=st.integers(-8, 7)))
def test_int4_packing_is_lossless(array: np.ndarray) -> None:
    codes = torch.from_numpy(array)
    packed = q.pack_int4(codes)
    assert packed.dtype == torch.uint8
    assert packed.shape[-1] == codes.shape[-1] // 2
    assert torch.equal(q.unpack_int4(packed), codes)
    assert int(packed[0, 0]) == (int(array[0, 0]) & 0xF) | ((int(array[0, 1]) & 0xF) << 4)


def test_odd_rows_and_blocks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="odd number of four-bit codes"):
        q.pack_int4(torch.zeros(1, 3, dtype=torch.int8))
    with pytest.raises(ValueError, match="blocks of 32 do not divide 48"):
        q.quantize_blocks(torch.zeros(1, 48), 32)
    with pytest.raises(ValueError, match="blocks of 16 do not divide 24"):
        mx.quantize_nvfp4(torch.zeros(1, 24))


@pytest.mark.parametrize(
    ("sizes", "limit", "block"), [([96, 64], 128, 32), ([48], 32, 16), ([40], 32, None), ([256], 100, 64)]
)
def test_largest_block(sizes: list[int], limit: int, block: int | None) -> None:
    assert q.largest_block(sizes, limit) == block


def test_sqnr_is_twenty_db_a_decade_and_streams() -> None:
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    assert q.sqnr_db(x, x * 1.1) == pytest.approx(20.0)
    meter = q.SqnrMeter()
    for part in x.split(7):
        meter.add(part, part * 1.01)
    assert meter.db == pytest.approx(40.0)
    assert q.sqnr_db(x, x) is None
    assert q.sqnr_db(x * 0, x) is None


def test_relative_difference_counts_nan_as_infinite() -> None:
    assert q.relative_difference(torch.tensor([2.0, -4.0]), torch.tensor([2.0, -3.0])) == 0.25
    assert q.relative_difference(torch.ones(2), torch.tensor([1.0, float("nan")])) == float("inf")


def test_e2m1_takes_the_nearest_value_and_ties_to_even() -> None:
    grid = torch.tensor(mx.MAGNITUDES)
    assert torch.equal(mx.e2m1_values(mx.e2m1_codes(torch.cat((grid, -grid)))), torch.cat((grid, -grid)))
    ties = mx.e2m1_values(mx.e2m1_codes(torch.tensor(mx.BOUNDS)))
    assert ties.tolist() == [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0]
    x = torch.linspace(-7, 7, 4001)
    nearest = (x[:, None].abs() - grid).abs().min(-1).values
    assert torch.allclose((mx.e2m1_values(mx.e2m1_codes(x)) - x).abs(), nearest, atol=1e-6)


@fast
@given(MATRICES)
def test_nvfp4_equals_modelopt_bit_for_bit(array: np.ndarray) -> None:
    from modelopt.torch.quantization.qtensor import NVFP4QTensor

    x = torch.from_numpy(array)
    if float(x.abs().max()) < 1e-3:
        x[0, 0] = 1.0  # modelopt divides 0 by 0 for a whole tensor of zeros
    ours = mx.quantize_nvfp4(x)
    theirs, scale, shared = NVFP4QTensor.quantize(x.clone(), BLOCK)
    assert torch.equal(ours.packed, theirs._quantized_data)
    assert torch.equal(ours.scale.view(torch.uint8), scale.view(torch.uint8))
    assert torch.equal(ours.global_scale, shared)
    value = theirs.dequantize(scale=scale, double_scale=shared, block_sizes={-1: BLOCK})
    assert torch.equal(ours.dequantize(), value)


@fast
@given(MATRICES, st.sampled_from(["int8", "int4", "fp8"]))
def test_codes_equal_modelopt_bit_for_bit(array: np.ndarray, kind: str) -> None:
    from modelopt.torch.quantization.tensor_quant import fake_tensor_quant, scaled_e4m3

    x = torch.from_numpy(array)
    amax = q.channel_amax(x)
    integers = fake_tensor_quant(x, amax, None, 4 if kind == "int4" else 8, False, False)
    theirs = scaled_e4m3(x, amax, None, 4, 3) if kind == "fp8" else integers
    scale = q.scale_of(amax, kind)
    same = q.quantize(theirs, amax, kind).float()
    assert torch.equal(q.quantize(x, amax, kind).float(), same)
    assert torch.allclose(q.dequantize(q.quantize(x, amax, kind), scale), theirs, rtol=1e-6, atol=0)


@fast
@given(MATRICES)
def test_nvfp4_error_is_at_most_a_quarter_of_the_block(array: np.ndarray) -> None:
    x = torch.from_numpy(array)
    ours = mx.quantize_nvfp4(x)
    step = (ours.scale.float() * ours.global_scale).repeat_interleave(BLOCK, -1)
    # 1 is half the widest gap (4 to 6); FP8 rounding of the scale clips by at most another 0.4
    assert bool(((ours.dequantize() - x).abs() <= step * (1 + 1e-5)).all())


def test_nvfp4_of_zeros_is_zero_and_saturates() -> None:
    assert torch.equal(mx.fake_quantize_nvfp4(torch.zeros(2, 32)), torch.zeros(2, 32))
    x = torch.full((1, 16), 100.0)
    assert torch.equal(mx.fake_quantize_nvfp4(x, amax=torch.tensor(1.0)), torch.ones(1, 16))


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 6), st.integers(1, 4), st.sampled_from((16, 32)), st.integers(0, 2**32 - 1))
def test_a_signed_grid_holds_the_largest_of_a_block_exactly(n: int, blocks: int, block: int, seed: int) -> None:
    """Steps are an eighth of the largest value; only what passes the code 7 on the other side is further off than half a step."""
    weight = torch.randn(n, blocks * block, generator=torch.Generator().manual_seed(seed))
    grid = signed_grid(weight, block)
    codes, rounded = grid.codes(weight), grid.rounded(weight)
    parts, made = weight.reshape(n, blocks, block), rounded.reshape(n, blocks, block)
    at = parts.abs().argmax(-1, keepdim=True)
    torch.testing.assert_close(made.gather(-1, at), parts.gather(-1, at))
    assert (codes.reshape(n, blocks, block).gather(-1, at) == -8).all()
    step = (parts.abs().amax(-1, keepdim=True) / 8).expand_as(parts)
    off, clipped = (made - parts).abs(), codes.reshape(n, blocks, block) == 7
    assert (off <= torch.where(clipped, step, step / 2) * (1 + 1e-5)).all()


def test_signed_ranges_round_finer_and_zero_blocks_stay_zero() -> None:
    weight = torch.randn(256, 512, generator=torch.Generator().manual_seed(0))
    weight[0, :32] = 0
    plain, signed = (
        float((grid.rounded(weight) - weight).square().mean())
        for grid in (grid_of(weight, "int4", 32), signed_grid(weight, 32))
    )
    assert signed < 0.88 * plain, "steps are 7/8 as wide; clipping takes back a part of the 0.77"
    assert not signed_grid(weight, 32).rounded(weight)[0, :32].any()


def test_signed_ranges_are_those_of_onnx_runtimes_own_rounding() -> None:
    """The reference: ONNX Runtime's quantizer, symmetric, as onnxruntime-genai's builder calls it."""
    from onnxruntime.capi._pybind_state import quantize_matmul_4bits

    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(3))
    codes, scales, zeros = np.zeros((64, 3, 16), np.uint8), np.zeros((64, 3), np.float32), np.zeros((64, 2), np.uint8)
    quantize_matmul_4bits(codes, np.ascontiguousarray(weight.T.numpy()), scales, zeros, 32, 64, 96, True)
    grid = signed_grid(weight, 32)
    np.testing.assert_allclose(grid.scale.numpy(), scales, rtol=1e-6)
    theirs = np.stack([codes & 15, codes >> 4], -1).reshape(64, 96).astype(np.int32) - 8
    ours = grid.codes(weight).numpy()
    assert (np.abs(ours - theirs) <= 1).all()
    assert (ours != theirs).mean() < 1e-3, "ties round otherwise"
