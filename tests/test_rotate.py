"""Rotate: exact on every family with plain RMS norms, refused by name elsewhere, and worth it where channels stick out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from openclaw_opt.models.decoder import Decoder
from openclaw_opt.models.load import load_model
from openclaw_opt.models.spec import DecoderSpec, read_facts
from openclaw_opt.models.store import open_model
from openclaw_opt.numerics.hadamard import random_hadamard, sylvester
from openclaw_opt.passes import View, Work
from openclaw_opt.passes.quantize import Quantize
from openclaw_opt.passes.rotate import Rotate, why_not
from openclaw_opt.verify import compare, make_probe
from tests.passes_alone import CPU, TEXT, silent
from tests.test_quantize import Runner, logits, tokens, with_outliers
from tests.tiny import DECODERS, open_tiny, write_checkpoint


@pytest.mark.parametrize("size", [1, 2, 16, 64, 96, 80, 7])
def test_the_matrix_is_orthogonal_and_flat(size: int) -> None:
    matrix = random_hadamard(size, 3)
    assert torch.allclose(matrix @ matrix.T, torch.eye(size, dtype=torch.float64), atol=1e-12)
    assert torch.equal(matrix, random_hadamard(size, 3))
    if size & (size - 1) == 0:
        assert torch.allclose(matrix.abs(), torch.full_like(matrix, size**-0.5))
        assert size < 16 or not torch.equal(matrix, random_hadamard(size, 4))


def test_sylvester_is_scipys() -> None:
    from scipy.linalg import hadamard

    assert torch.equal(sylvester(32), torch.from_numpy(hadamard(32)).double())
    with pytest.raises(ValueError, match="12 is no power of two"):
        sylvester(12)


@pytest.mark.parametrize("family", DECODERS)
def test_every_family_is_rotated_exactly_or_refused(family: str, tmp_path: Path) -> None:
    checkpoint = open_tiny(write_checkpoint(tmp_path / "checkpoint", family))
    model, _, _ = load_model(checkpoint, tmp_path / "model")
    spec = read_facts(model).decoder
    assert isinstance(spec, DecoderSpec)
    found = Rotate().check(View(spec, CPU, "onnxruntime", None, ()))
    if why_not(spec):
        assert spec.norm == "layer" or spec.post_norms
        assert found[0].what.startswith(f"{spec.family} cannot be rotated exactly: its ")
        return
    assert found == []
    work = Work(tmp_path / "out", checkpoint, CPU, "onnxruntime", None, tmp_path / "cache", seed=5, progress=silent)
    done = Rotate().run(model, work)
    record = compare(Rotate(), model, done.artifact, make_probe(spec, 0))
    assert record.ok
    assert record.value is not None
    assert record.value < 1e-4
    before, after = open_model(model), open_model(done.artifact)
    assert isinstance(before, Decoder)
    assert isinstance(after, Decoder)
    assert not after.spec.tied
    assert done.details["untied"] == before.spec.tied
    assert ("no longer tied" in done.changed) == before.spec.tied
    assert all((layer.norm_in.weight == 1).all() for layer in after.layers)
    assert (after.layers[0].qkv.weight - before.layers[0].qkv.weight).abs().max() > 1e-3


def test_order_and_models_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    from openclaw_opt.models.families import spec_from_config

    decoder = spec_from_config(open_tiny(write_checkpoint(tmp_path / "a", "llama")).config)
    (late,) = Rotate().check(View(decoder, CPU, "onnxruntime", TEXT, (Quantize(format="int8"),)))
    assert (late.what, late.fix) == ("quantized weights cannot be rotated", "put rotate before quantize")
    encoder = spec_from_config(open_tiny(write_checkpoint(tmp_path / "b", "bert")).config)
    (other,) = Rotate().check(View(encoder, CPU, "onnxruntime", TEXT, ()))
    assert other.what == "rotate takes decoders, BertModel is a model for encoder"


@pytest.mark.parametrize(("fmt", "algorithm", "gain"), [("int8", "max", 2.0), ("int4", "rtn", 1.2)])
def test_outliers_cost_less_after_it(tmp_path: Path, fmt: str, algorithm: str, gain: float) -> None:
    runner: Runner = with_outliers(tmp_path)
    exact = logits(runner.model)
    work = Work(tmp_path / "turned", runner.checkpoint, CPU, "onnxruntime", None, tmp_path / "cache", progress=silent)
    turned = Rotate().run(runner.model, work).artifact
    errors = [
        float((logits(runner(tokens(), model, format=fmt, algorithm=algorithm).artifact) - exact).norm())
        for model in (runner.model, turned)
    ]
    assert errors[0] > gain * errors[1], errors
