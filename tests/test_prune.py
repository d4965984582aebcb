"""Prune: what is planted as unimportant goes, masked equals shrunk, and what cannot be cut is refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from openclaw_opt.artifacts import Model
from openclaw_opt.data import Source
from openclaw_opt.errors import RecipeError, VerificationError
from openclaw_opt.models import pruning
from openclaw_opt.models.calibrate import Calibration, decoder_calibration
from openclaw_opt.models.decoder import Decoder
from openclaw_opt.models.families import spec_from_config
from openclaw_opt.models.load import load_model
from openclaw_opt.models.spec import DecoderSpec, LayerSpec, ModelFacts, read_facts, write_facts
from openclaw_opt.models.store import open_model
from openclaw_opt.passes import Done, View, Work
from openclaw_opt.passes._widths import remaining
from openclaw_opt.passes.prune import Prune
from openclaw_opt.passes.quantize import Quantize
from openclaw_opt.targets import TARGETS, Target, target_named
from tests.tiny import DECODERS, open_tiny, write_checkpoint

CPU = replace(TARGETS["l4"], name="host", title="a CPU", compute=(0, 0), backend="onnxruntime")
TEXT = Source.model_construct(split="calibration", samples=8, length=64, seed=0)


def decoder_of(layers: tuple[LayerSpec, ...], **changes: Any) -> Decoder:
    """A random decoder of these sizes; head_dim 16, hidden 64."""
    spec = DecoderSpec(
        family="llama", vocab=128, hidden=64, head_dim=16, layers=layers, context=64, norm_eps=1e-6, activation="silu",
        attention_scale=0.25, ropes={"default": {"dim": 16}}, **changes,
    )  # fmt: skip
    torch.manual_seed(0)
    decoder = Decoder(spec).eval().requires_grad_(False)
    for value in decoder.parameters():
        value.add_(torch.randn_like(value) * 0.2)
    return decoder


def data(vocab: int = 128, samples: int = 4, length: int = 32) -> Calibration:
    ids = torch.randint(vocab, (samples, length), generator=torch.Generator().manual_seed(1))
    return decoder_calibration(ids, 2)


def logits(decoder: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return decoder(*data().batches[0])[0]


def silent(part: float, text: str) -> None:
    assert 0 <= part <= 1
    assert text


LAYER = LayerSpec(q_heads=8, kv_heads=2, ffn=96, rope="default")
RANK: dict[bool, Any] = {True: "activation", False: "magnitude"}
GATED = {True: "gate_up", False: "up"}


def kill_heads(decoder: Decoder, heads: list[int]) -> None:
    """Make query heads of every layer add nothing."""
    for layer in decoder.layers:
        for head in heads:
            layer.o.weight[:, head * 16 : (head + 1) * 16] = 0


@pytest.mark.parametrize("by_activation", [True, False])
@pytest.mark.parametrize("gated", [True, False])
def test_planted_channels_go_and_the_output_stays(by_activation: bool, gated: bool) -> None:
    decoder = decoder_of((LAYER, LAYER), gated=gated, mlp_bias=not gated)
    kept = [j for j in range(96) if j % 3 == 1]
    dead = [j for j in range(96) if j % 3 != 1]
    for layer in decoder.layers:
        wide = layer.get_submodule(GATED[gated])
        for start in range(0, len(wide.weight), 96):
            wide.weight[[start + j for j in dead]] = 0
            if wide.bias is not None:
                wide.bias[[start + j for j in dead]] = 0
        layer.down.weight[:, dead] *= 1e-3
    before = logits(decoder)
    plan = pruning.Plan(0, lambda sizes: sizes.model_copy(update={"ffn": 32}), RANK[by_activation], True)
    made = pruning.prune_model(decoder, plan, data(), silent)
    assert [cut.ffn.tolist() for cut in made.cuts.values()] == [kept, kept]
    assert torch.allclose(logits(made.model), before, atol=1e-5 * float(before.abs().max()))
    assert made.model.layers[0].down.weight.shape == (64, 32)


@pytest.mark.parametrize("by_activation", [True, False])
def test_grouped_heads_go_in_whole_groups(by_activation: bool) -> None:
    decoder = decoder_of((LAYER, LAYER), qkv_bias=True, qk_norm=True)
    kill_heads(decoder, [0, 1, 2, 3])
    if not by_activation:
        for layer in decoder.layers:
            layer.qkv.weight[:64] *= 1e-2
    before = logits(decoder)
    plan = pruning.Plan(
        0, lambda sizes: sizes.model_copy(update={"q_heads": 4, "kv_heads": 1}), RANK[by_activation], True
    )
    made = pruning.prune_model(decoder, plan, data(), silent)
    assert [(cut.q.tolist(), cut.kv.tolist()) for cut in made.cuts.values()] == [([4, 5, 6, 7], [1])] * 2
    assert torch.allclose(logits(made.model), before, atol=1e-5 * float(before.abs().max()))
    assert made.model.layers[0].qkv.weight.shape == ((4 + 2) * 16, 64)


def test_query_heads_go_evenly_from_each_group() -> None:
    decoder = decoder_of((LAYER,))
    kill_heads(decoder, [1, 2, 5, 7])
    before = logits(decoder)
    plan = pruning.Plan(0, lambda sizes: sizes.model_copy(update={"q_heads": 4}), "activation", True)
    made = pruning.prune_model(decoder, plan, data(), silent)
    assert made.cuts[0].q.tolist() == [0, 3, 4, 6]
    assert made.cuts[0].kv.tolist() == [0, 1]
    assert torch.allclose(logits(made.model), before, atol=1e-5 * float(before.abs().max()))


def test_the_layer_that_does_nothing_goes() -> None:
    decoder = decoder_of((LAYER, LAYER, LAYER))
    decoder.layers[1].o.weight.zero_()
    decoder.layers[1].down.weight.zero_()
    before = logits(decoder)
    made = pruning.prune_model(decoder, pruning.Plan(1, lambda sizes: sizes, "activation", False), data(), silent)
    assert list(made.cuts) == [0, 2]
    assert made.block_importance[1] == pytest.approx(0, abs=1e-6)
    assert torch.allclose(logits(made.model), before, atol=1e-5 * float(before.abs().max()))


def test_activation_ranks_by_energy_where_magnitude_is_misled() -> None:
    """A channel with large weights that is never on: only data can tell."""
    decoder = decoder_of((LAYER,), gated=False, mlp_bias=True)
    layer = decoder.layers[0]
    off = list(range(0, 96, 3))
    layer.up.weight[off] *= 10
    layer.up.bias[off] = -1e4  # silu(-1e4) is 0
    layer.up.weight[off] *= 1
    plan = pruning.Plan(0, lambda sizes: sizes.model_copy(update={"ffn": 64}), "activation", True)
    made = pruning.prune_model(decoder, plan, data(), silent)
    assert not set(made.cuts[0].ffn.tolist()) & set(off)
    fooled = pruning.prune_model(decoder, replace(plan, importance="magnitude"), None, silent)
    assert set(off) < set(fooled.cuts[0].ffn.tolist())
    assert made.energy_kept[0][0] == pytest.approx(1.0)


def test_layers_of_different_sizes_are_cut_each_by_its_own() -> None:
    other = LayerSpec(q_heads=4, kv_heads=4, ffn=160, rope="default", window=8)
    decoder = decoder_of((LAYER, other))
    prune = Prune(ffn=0.4, heads=0.5)
    plan = pruning.Plan(0, lambda sizes: prune.kept(sizes, 32), "activation", True)
    made = pruning.prune_model(decoder, plan, data(), silent)
    sizes = [(layer.q_heads, layer.kv_heads, layer.ffn, layer.window) for layer in made.model.spec.layers]
    assert sizes == [(4, 1, 64, None), (2, 2, 96, 8)]
    assert pruning.prove(decoder, made.model, made.cuts, data()) < 1e-5


def _wrong_channel(cut: pruning.Cut) -> pruning.Cut:
    dead = next(j for j in range(96) if j not in cut.ffn.tolist())
    return replace(cut, ffn=torch.cat((cut.ffn[:-1], torch.tensor([dead]))))


def _wrong_head(cut: pruning.Cut) -> pruning.Cut:
    return replace(cut, q=cut.q[[1, 0, *range(2, len(cut.q))]])


@pytest.mark.parametrize("sabotage", [_wrong_channel, _wrong_head])
def test_the_proof_catches_a_wrong_slice(sabotage: Any) -> None:
    decoder = decoder_of((LAYER, LAYER))
    plan = pruning.Plan(0, lambda sizes: sizes.model_copy(update={"ffn": 64, "q_heads": 4}), "activation", True)
    made = pruning.prune_model(decoder, plan, data(), silent)
    wrong = {0: made.cuts[0], 1: sabotage(made.cuts[1])}
    shrunk = pruning.shrink(decoder_of((LAYER, LAYER)), wrong)
    if sabotage is _wrong_head:  # a permutation of q alone is caught where o is not permuted with it
        shrunk.layers[1].o.weight.copy_(made.model.layers[1].o.weight)
    with pytest.raises(VerificationError, match="shrunk model differs from the masked one") as caught:
        pruning.prove(decoder, shrunk, made.cuts, data())
    assert caught.value.where == "layers.1"


# The whole pass on real checkpoints of every family.


def run(
    prune: Prune, folder: Path, family: str, monkeypatch: pytest.MonkeyPatch, **changes: Any
) -> tuple[Model, Done[Model]]:
    from openclaw_opt.models import calibrate

    checkpoint = open_tiny(write_checkpoint(folder / "checkpoint", family, **changes))
    model, _, _ = load_model(checkpoint, folder / "model")
    monkeypatch.setattr(calibrate, "load_calibration", lambda *_: data(256))
    work = Work(folder / "out", checkpoint, CPU, "onnxruntime", TEXT, folder / "cache", progress=silent)
    return model, prune.run(model, work)


@pytest.mark.parametrize("family", DECODERS)
def test_every_family_is_cut_and_opens_again(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prune = Prune(ffn=0.4, heads=0.5, layers=1)
    model, done = run(prune, tmp_path, family, monkeypatch)
    before, after = read_facts(model).decoder, read_facts(done.artifact).decoder
    assert before is not None
    assert after is not None
    assert len(after.layers) == len(before.layers) - 1
    assert {layer.ffn for layer in after.layers} == {remaining(before.layers[0].ffn, 0.4, 32)}
    assert {(layer.q_heads, layer.kv_heads) for layer in after.layers} == {
        (before.layers[0].q_heads // 2, before.layers[0].kv_heads // 2)
    }
    pruned = open_model(done.artifact)
    assert isinstance(pruned, Decoder)
    assert torch.isfinite(pruned(*data(256).batches[0])[0]).all()
    assert done.details["parameters"] == pruning.parameters_of(pruned)
    assert done.count == done.details["parameters_before"] - done.details["parameters"] > 0
    assert done.details["proof"]["largest_difference"] < 1e-5
    assert done.changed in read_facts(done.artifact).notes
    assert len(done.details["removed_layers"]) == 1
    assert 0 < done.details["widths"][0]["ffn_importance_kept"] < 1


def test_the_sentence_names_every_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, done = run(Prune(ffn=0.4, heads=0.5, layers=1), tmp_path, "llama", monkeypatch)
    assert done.changed.startswith("layers 2 → 1, FFN channels 96 → 64, query heads 4 → 2, key/value heads 2 → 1; ")
    assert "parameters (-" in done.changed


def test_the_source_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = run(Prune(ffn=0.4), tmp_path / "a", "llama", monkeypatch)
    untouched, _, _ = load_model(open_tiny(write_checkpoint(tmp_path / "b", "llama")), tmp_path / "again")
    weights = [(each.folder / "model.safetensors").read_bytes() for each in (model, untouched)]
    assert weights[0] == weights[1]


def test_a_quantized_model_is_refused_by_run_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = run(Prune(ffn=0.4), tmp_path, "llama", monkeypatch)
    facts = read_facts(model)
    quant = {"layers.0.qkv": {"format": "int8", "kind": "int8"}}
    write_facts(model, ModelFacts.model_validate({**facts.model_dump(), "quant": quant}))
    work = Work(tmp_path / "again", open_tiny(tmp_path / "checkpoint"), CPU, "onnxruntime", TEXT, tmp_path / "cache")
    with pytest.raises(RecipeError, match=r"layers\.0\.qkv: quantized weights cannot be pruned"):
        Prune(ffn=0.4).run(model, work)


# What cannot be done, from facts alone.


def spec_of(family: str, tmp_path: Path) -> Any:
    return spec_from_config(open_tiny(write_checkpoint(tmp_path, family)).config)


def complaints(prune: Prune, spec: Any, target: Target = CPU, **changes: Any) -> list[tuple[str, str, str]]:
    view = View(
        **{"spec": spec, "target": target, "backend": "onnxruntime", "calibration": TEXT, "earlier": (), **changes}
    )
    return [(found.what, found.option, found.fix) for found in prune.check(view)]


SPEC = decoder_of((LAYER, LAYER)).spec
IMAGES = type("Pictures", (Source,), {"kind": "images"}).model_construct(split="a", samples=1, length=1)


@pytest.mark.parametrize(
    ("options", "changes", "wanted"),
    [
        ({"ffn": 0.4}, {}, []),
        ({"ffn": 0.4, "importance": "magnitude"}, {"calibration": None}, []),
        ({}, {}, [("prune removes nothing", "", "give ffn, heads, query_heads, layers, hidden, vocabulary or to")]),
        ({"ffn": 0.1}, {}, [("ffn: 0.1 of 96 channels removes nothing at multiples of 32", "ffn", "ffn: 0.34")]),
        ({"ffn": 0.1}, {"target": TARGETS["l4"]}, [("ffn: 0.1 of 96 channels removes nothing at multiples of 64", "ffn", "ffn: 0.34")]),
        ({"heads": 0.2}, {}, [("heads: 0.2 of 2 key/value groups removes none", "heads", "heads: 0.5")]),
        ({"query_heads": 0.1}, {}, [("query_heads: 0.1 of 4 query heads a group removes none", "query_heads", "query_heads: 0.25")]),
        ({"layers": 2}, {}, [("2 layers cannot be removed from 2", "layers", "layers: 1")]),
        ({"ffn": 0.4}, {"calibration": None}, [("ranking needs calibration data", "importance", "add `calibration` to `data`, or importance: magnitude")]),
        ({"layers": 1}, {"calibration": None}, [("ranking needs calibration data", "layers", "add `calibration` to `data`")]),
        ({"ffn": 0.4}, {"calibration": IMAGES}, [("calibration data is images, the model takes text", "", "change data.calibration")]),
        ({"layers": 1, "importance": "magnitude"}, {}, [("importance has no effect on layers alone", "importance", "leave it out")]),
        ({"heads": 0.5, "round_to": 64}, {}, [("round_to has no effect without ffn, hidden or to", "round_to", "leave it out")]),
        ({"ffn": 0.4}, {"earlier": (Quantize(format="int8"),)}, [("quantized weights cannot be pruned", "", "put prune before quantize")]),
    ],
)  # fmt: skip
def test_each_complaint(options: dict[str, Any], changes: dict[str, Any], wanted: list[tuple[str, str, str]]) -> None:
    assert complaints(Prune(**options), SPEC, **changes) == wanted


def test_the_fix_of_each_size_complaint_is_accepted() -> None:
    for options in ({"ffn": 0.34}, {"heads": 0.5}, {"query_heads": 0.25}):
        assert complaints(Prune(**options), SPEC) == []


@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_other_tasks_are_refused_by_name(family: str, tmp_path: Path) -> None:
    spec = spec_of(family, tmp_path)
    (found,) = complaints(Prune(ffn=0.4), spec)
    assert found[0] == f"prune takes decoders and BERT-family encoders, {spec.architecture} is a model for {spec.task}"


def test_check_imports_no_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys; import openclaw_opt.passes.prune, openclaw_opt.passes.quantize; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("count", "fraction", "multiple", "stays"),
    [
        (96, 0.4, 32, 64),
        (96, 0.3, 32, 96),
        (10, 0.3, 1, 7),
        (96, None, 32, 96),
        (100, 0.5, 64, 64),
        (40, 0.9, 32, 32),
        (20, 0.5, 32, 20),
        (2, 0.99, 1, 1),
    ],
)
def test_remaining(count: int, fraction: float | None, multiple: int, stays: int) -> None:
    assert remaining(count, fraction, multiple) == stays


def test_default_multiples() -> None:
    assert Prune(ffn=0.5).multiple(CPU) == 32
    assert Prune(ffn=0.5).multiple(target_named("h100-sxm")) == 64
    assert Prune(ffn=0.5, round_to=16).multiple(CPU) == 16
