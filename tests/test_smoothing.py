"""SmoothQuant of our own: exact in float, the closed form of its factors, the same as modelopt's; and before GPTQ, for scales a token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from openclaw_opt.backends.engines import open_session
from openclaw_opt.data import Source
from openclaw_opt.graph import to_onnxruntime
from openclaw_opt.models.calibrate import Calibration, decoder_calibration
from openclaw_opt.models.decoder import Decoder
from openclaw_opt.models.export import export_graph
from openclaw_opt.models.linear import replace_layer
from openclaw_opt.models.modelopt import calibrated, layer_of
from openclaw_opt.models.refining import refined
from openclaw_opt.models.schemes import Algorithm, Scheme
from openclaw_opt.models.spec import read_facts
from openclaw_opt.numerics.smoothing import LARGEST, SMALLEST, smoothing_factors
from openclaw_opt.passes import View
from openclaw_opt.passes.quantize import Quantize
from tests.passes_alone import Alone
from tests.test_prune import CPU, LAYER, decoder_of, silent
from tests.test_prune import SPEC as DECODER

SIZES = st.lists(st.floats(1e-2, 1e2), min_size=4, max_size=4)


@given(inputs=SIZES, weights=SIZES, alpha=st.sampled_from([0.0, 0.3, 0.5, 0.8, 1.0]))
def test_factors_have_the_closed_form_and_change_nothing(
    inputs: list[float], weights: list[float], alpha: float
) -> None:
    """(W / s)·(s ∘ x) = W·x, and the range that is left to each side is the geometric mean that alpha weighs."""
    x, w = torch.tensor(inputs), torch.tensor(weights)
    s = smoothing_factors(x, w, alpha)
    assert torch.allclose(s * x, w.pow(1 - alpha) * x.pow(1 - alpha), rtol=1e-4)
    assert torch.allclose(w / s, w.pow(alpha) * x.pow(alpha), rtol=1e-4)
    vectors = (torch.rand(5, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1).double() * x
    matrix = (torch.rand(3, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1).double() * w
    smoothed = (vectors * s) @ (matrix / s).T
    assert torch.allclose(smoothed, vectors @ matrix.T, rtol=1e-9, atol=1e-12)


def test_dead_channels_and_outliers_have_bounded_factors() -> None:
    s = smoothing_factors(torch.tensor([0.0, 1.0, 1e-12, 1e12]), torch.tensor([1.0, 0.0, 1e3, 1e-3]), 0.5)
    assert s.tolist() == pytest.approx([1.0, 1.0, LARGEST, SMALLEST])


def text() -> Calibration:
    ids = torch.randint(128, (8, 48), generator=torch.Generator().manual_seed(1))
    return decoder_calibration(ids, 4)


def names_of(decoder: Decoder) -> list[str]:
    return [name for name, layer in decoder.named_modules() if isinstance(layer, nn.Linear) and name != "head"]


def with_outliers() -> Decoder:
    """Channels of norms fifty times as large, as trained decoders have them."""
    decoder = decoder_of((LAYER, LAYER))
    for layer in decoder.layers:
        layer.norm_in.weight[:3] *= 50
        layer.norm_mlp.weight[:3] *= 50
    return decoder


def smoothed(alpha: float = 0.5, algorithm: Algorithm = "smoothquant") -> tuple[Decoder, list[str]]:
    decoder = with_outliers()
    names = names_of(decoder)
    calibrated(decoder, names, Scheme("int8_per_token", algorithm, alpha), text(), silent)
    return decoder, names


def test_our_factors_are_those_of_modelopts_smoothquant() -> None:
    """Which takes one fixed scale for a layer's input, and no scale a token."""
    ours, names = smoothed(0.7)
    theirs = with_outliers()
    calibrated(theirs, names, Scheme("int8", "smoothquant", 0.7), text(), silent)
    for name in names:
        one, other = ours.get_submodule(name), theirs.get_submodule(name)
        found, wanted = (layer.input_quantizer.pre_quant_scale.flatten() for layer in (one, other))
        assert torch.allclose(found, wanted, rtol=1e-5)
        assert torch.allclose(one.weight, other.weight, rtol=1e-5)
        assert torch.allclose(one.weight_quantizer.amax, other.weight_quantizer.amax, rtol=1e-5)


class Scaled(nn.Module):
    """A smoothed layer in float."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.weight, self.factors = layer.weight.detach(), layer.input_quantizer.pre_quant_scale.detach()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x * self.factors, self.weight)


@torch.no_grad()
def test_before_anything_is_rounded_the_decoder_says_the_same() -> None:
    decoder, names = smoothed()
    for name in names:
        replace_layer(decoder, name, Scaled(decoder.get_submodule(name)))
    batch = text().batches[0]
    wanted = with_outliers()(*batch)[0]
    made = decoder(*batch)[0]
    assert float((made - wanted).abs().max()) < 1e-4 * float(wanted.abs().max())


@torch.no_grad()
def test_outliers_cost_less_after_it_and_least_with_gptq() -> None:
    """Mean squared error of logits on the calibration text, with every linear rounded as the engine rounds it."""
    batch = text().batches[0]
    wanted = with_outliers()(*batch)[0]
    errors = {}
    for algorithm in ("max", "smoothquant", "smoothquant_gptq"):
        decoder = with_outliers()
        scheme = Scheme("int8_per_token", algorithm, None if algorithm == "max" else 0.5)  # type: ignore[arg-type]
        names = names_of(decoder)
        calibrated(decoder, names, scheme, text(), silent)
        grids = refined(decoder, names, scheme, text(), silent)
        for name in names:
            replace_layer(decoder, name, layer_of(decoder.get_submodule(name), scheme, grids.get(name)))
        errors[algorithm] = float((decoder(*batch)[0] - wanted).square().mean())
    assert errors["smoothquant"] < 0.5 * errors["max"]
    assert errors["smoothquant_gptq"] < 0.9 * errors["smoothquant"]


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["smoothquant", "smoothquant_gptq"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_factors_that_stay_and_those_that_fold_run_on_onnxruntime(family: str, algorithm: str, tmp_path: Path) -> None:
    """llama's grouped queries leave o's factors at run time; gpt2's move into the values, but not behind its GELU."""
    ids = torch.randint(3, 256, (16, 64), generator=torch.Generator().manual_seed(1))
    alone = Alone(tmp_path, family)
    done = alone(Quantize.model_validate({"format": "int8_per_token", "algorithm": algorithm}), alone.model, decoder_calibration(ids, 8))  # fmt: skip
    facts = read_facts(done.artifact)
    stay = {name.rsplit(".", 1)[1] for name, quant in facts.quant.items() if quant.pre_scale}
    assert stay == ({"o"} if family == "llama" else {"down"})
    assert "layers.0.qkv" in done.details["folded"]
    portable = export_graph(done.artifact, tmp_path / "graph", dtype="float32")
    lowered = to_onnxruntime.lower(portable, tmp_path / "lowered")
    sample = ids[:1, :24].numpy()
    with open_session(done.artifact) as model, open_session(portable) as one, open_session(lowered) as other:
        wanted = model.logits(sample)  # type: ignore[union-attr]
        for session in (one, other):
            found = session.logits(sample)  # type: ignore[union-attr]
            typical = np.median(np.abs(found - wanted).max(-1))
            assert typical < 2 / 127 * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"algorithm": "smoothquant_gptq", "alpha": 0.8, "damping": 0.02}, []),
        ({"algorithm": "smoothquant", "sweeps": 1}, [("sweeps has no effect with smoothquant", "sweeps", "leave it out")]),
        ({"algorithm": "gptq", "alpha": 0.5}, [("alpha has no effect with gptq", "alpha", "leave it out")]),
    ],
)  # fmt: skip
def test_options(options: dict[str, Any], wanted: list[tuple[str, str, str]]) -> None:
    found = Quantize.model_validate({"format": "int8_per_token", **options}).option_complaints("decoder")
    assert [(one.what, one.option, one.fix) for one in found] == wanted


def test_it_needs_data_and_enough_of_it() -> None:
    quantize = Quantize(format="int8_per_token", algorithm="smoothquant_gptq")

    def said(calibration: Source | None) -> list[str]:
        view = View(DECODER, CPU, "onnxruntime", calibration, ())
        return [found.what for found in quantize.check(view)]

    assert said(None) == ["int8_per_token with smoothquant_gptq needs calibration data"]
    few = Source.model_construct(split="calibration", samples=8, length=64, seed=0)
    assert said(few) == ["smoothquant needs at least 1024 calibration tokens, samples × length is 512"]
    other = Quantize(format="int8", algorithm="smoothquant_gptq").option_complaints("decoder")
    assert [one.what for one in other] == ["smoothquant_gptq is no algorithm for int8"]
