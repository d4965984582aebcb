"""Prune of BERT-family encoders: zero parts go without a trace, the ranks have closed forms, what is cut reloads, exports and runs."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openclaw_opt.artifacts import Graph, Model
from openclaw_opt.backends.engines import open_session
from openclaw_opt.errors import VerificationError
from openclaw_opt.graph import to_onnxruntime
from openclaw_opt.metrics.roofline import Roofline, read_work
from openclaw_opt.models import pruning, sizes
from openclaw_opt.models.blocks import blocks_of
from openclaw_opt.models.calibrate import Calibration, layer_outputs, sentence_batches
from openclaw_opt.models.export import export_graph
from openclaw_opt.models.families import spec_from_config
from openclaw_opt.models.hf import Encoder, load_hf
from openclaw_opt.models.importance import Importance, activation_scores, block_importance, rank, taylor_scores
from openclaw_opt.models.load import load_model
from openclaw_opt.models.spec import HfSpec, read_facts, write_facts
from openclaw_opt.models.store import open_model
from openclaw_opt.passes import Done, Work
from openclaw_opt.passes._goal import GIB, Goal
from openclaw_opt.passes._widths import with_widths
from openclaw_opt.passes.prune import Prune
from openclaw_opt.passes.quantize import Quantize
from openclaw_opt.report import read_report
from openclaw_opt.targets import TARGETS
from tests.passes_alone import Alone
from tests.test_prune import CPU, RANK, TEXT, complaints, silent
from tests.tiny import open_tiny, write_checkpoint

L4 = TARGETS["l4"]
DIM = 16


def sentences(samples: int = 6, longest: int = 24) -> Calibration:
    """Texts of different lengths; what is padded must not matter."""
    chance = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 256, (samples, longest), generator=chance)
    mask = (torch.arange(longest) < torch.randint(4, longest, (samples, 1), generator=chance)).long()
    return Calibration(sentence_batches(ids, mask, 2), samples, int(mask.sum()))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("bert"), "bert")


@pytest.fixture
def encoder(checkpoint: Path) -> Encoder:
    return opened(checkpoint)


def opened(folder: Path) -> Encoder:
    module, _ = load_hf(open_tiny(folder))
    assert isinstance(module, Encoder)
    return module


@torch.no_grad()
def embeddings(encoder: torch.nn.Module) -> torch.Tensor:
    return torch.cat([encoder(*batch)[1] for batch in sentences().batches])


def to_sizes(**changes: int) -> Any:
    return lambda sizes: sizes.model_copy(update=changes)


# What holds nothing goes without a trace.


def kill_channels(encoder: Encoder, channels: list[int]) -> None:
    """Make FFN channels of every layer zero, on both sides."""
    for block in blocks_of(encoder):
        wide, down = block.linear(block.wide), block.linear(block.down)
        wide.weight[channels] = 0
        wide.bias[channels] = 0
        down.weight[:, channels] = 0


def kill_heads(encoder: Encoder, heads: list[int]) -> None:
    """Make heads of every layer zero, on both sides."""
    for block in blocks_of(encoder):
        rows = block.elements(torch.tensor(heads))
        block.linear(block.o).weight[:, rows] = 0
        for name in block.heads:
            linear = block.linear(name)
            linear.weight[rows] = 0
            linear.bias[rows] = 0


@pytest.mark.parametrize("importance", ["magnitude", "activation", "wanda", "taylor"])
def test_zero_channels_and_heads_go_by_every_rank_and_the_output_stays(
    importance: Importance, encoder: Encoder
) -> None:
    dead = [j for j in range(96) if j % 3 != 1]
    kill_channels(encoder, dead)
    kill_heads(encoder, [0, 3])
    before = embeddings(encoder)
    plan = pruning.Plan(0, to_sizes(ffn=32, q_heads=2, kv_heads=2), importance, True)
    made = pruning.prune_model(encoder, plan, sentences(), silent)
    kept = [j for j in range(96) if j % 3 == 1]
    assert [cut.ffn.tolist() for cut in made.cuts.values()] == [kept, kept]
    assert [cut.q.tolist() for cut in made.cuts.values()] == [[1, 2], [1, 2]]
    assert torch.allclose(embeddings(made.model), before, atol=1e-6)
    assert made.energy_kept == {0: pytest.approx((1.0, 1.0)), 1: pytest.approx((1.0, 1.0))}
    shapes = {name: tuple(value.shape) for name, value in made.model.named_parameters() if ".layer.1." in name}
    stack = "model.encoder.layer.1"
    assert shapes[f"{stack}.attention.self.query.weight"] == (2 * DIM, 64)
    assert shapes[f"{stack}.attention.output.dense.weight"] == (64, 2 * DIM)
    assert shapes[f"{stack}.output.dense.weight"] == (64, 32)
    assert all(not value.requires_grad for value in made.model.parameters())


@settings(max_examples=12, deadline=None)
@given(
    ffn=st.lists(st.integers(1, 96), min_size=2, max_size=2), heads=st.lists(st.integers(1, 4), min_size=2, max_size=2)
)
def test_any_sizes_shrunk_equal_the_masked_ones(checkpoint: Path, ffn: list[int], heads: list[int]) -> None:
    """Every layer cut to a size of its own, whatever it is."""
    whole, masked = opened(checkpoint), opened(checkpoint)
    scores = rank(whole, "magnitude", None, silent)
    wanted = [
        sizes.model_copy(update={"ffn": width, "q_heads": count, "kv_heads": count})
        for sizes, width, count in zip(whole.spec.layers, ffn, heads, strict=True)
    ]
    cuts = {i: pruning.choose(scores[i], whole.spec.layers[i], wanted[i]) for i in range(2)}
    shrunk = pruning.shrink(whole, cuts)
    assert pruning.prove(masked, shrunk, cuts, sentences()) < 1e-5
    assert shrunk.spec.layers == tuple(wanted)
    assert pruning.parameters_of(shrunk) == sizes.parameters(shrunk.spec)


@pytest.mark.parametrize("wrong", ["ffn", "q"])
def test_the_proof_catches_a_wrong_slice(wrong: str, checkpoint: Path) -> None:
    plan = pruning.Plan(0, to_sizes(ffn=64, q_heads=2, kv_heads=2), "magnitude", True)
    made = pruning.prune_model(opened(checkpoint), plan, None, silent)
    kept = getattr(made.cuts[1], wrong)
    lost = next(i for i in range(96) if i not in kept.tolist())
    cut = replace(made.cuts[1], **{wrong: torch.cat((kept[:-1], torch.tensor([lost])))})
    shrunk = pruning.shrink(opened(checkpoint), {**made.cuts, 1: cut})
    with pytest.raises(VerificationError, match="shrunk model differs from the masked one") as caught:
        pruning.prove(opened(checkpoint), shrunk, made.cuts, None)
    assert caught.value.where == "model.encoder.layer.1"


def test_the_layer_that_changes_its_input_least_goes_and_is_passed_by(tmp_path: Path) -> None:
    encoder = opened(write_checkpoint(tmp_path, "bert", num_hidden_layers=3))
    first, second, _ = blocks_of(encoder)
    for norm in (first.module.attention.output.LayerNorm, first.module.output.LayerNorm):
        norm.weight.copy_(torch.ones(64))
        norm.bias.zero_()
    for part in (second.o, second.down):
        second.linear(part).weight.mul_(1e-4)
        second.linear(part).bias.zero_()
    for norm in (second.module.attention.output.LayerNorm, second.module.output.LayerNorm):
        norm.weight.copy_(torch.ones(64))
        norm.bias.zero_()
    before = embeddings(encoder)
    plan = pruning.Plan(1, lambda sizes: sizes, "activation", False)
    made = pruning.prune_model(encoder, plan, sentences(), silent)
    assert list(made.cuts) == [0, 2]
    assert made.block_importance[1] == pytest.approx(0, abs=1e-5)
    assert torch.allclose(embeddings(made.model), before, atol=1e-3)
    assert pruning.prove(encoder, made.model, made.cuts, sentences()) < 1e-5


# The ranks against their closed forms; padding counts nowhere.


def inputs_of(encoder: Encoder, layer: int, part: str, calibration: Calibration) -> torch.Tensor:
    """Vectors of real tokens that go into a linear, float64 [tokens, channels]."""
    block = blocks_of(encoder)[layer]
    seen: list[torch.Tensor] = []
    hook = block.linear(part).register_forward_pre_hook(lambda module, x: seen.append(x[0].double()))
    for ids, mask, types in calibration.batches:
        encoder(ids, mask, types)
        seen[-1] = seen[-1][mask.bool()]
    hook.remove()
    return torch.cat(seen)


def test_activation_and_wanda_see_real_tokens_alone(encoder: Encoder) -> None:
    text = sentences()
    assert any(int(batch[1].min()) == 0 for batch in text.batches)
    block = blocks_of(encoder)[1]
    wanda, energy = (activation_scores(encoder, text, silent, wanda=one) for one in (True, False))
    x, weight = inputs_of(encoder, 1, block.down, text), block.linear(block.down).weight.double()
    assert torch.allclose(wanda[1].ffn, (weight.abs() * x.norm(dim=0)).sum(0))
    assert torch.allclose(energy[1].ffn, x.square().sum(0) * weight.square().sum(0))
    y, weight = inputs_of(encoder, 1, block.o, text), block.linear(block.o).weight.double()
    columns = y.square().sum(0) * weight.square().sum(0)
    assert torch.allclose(energy[1].heads, columns.view(4, DIM).sum(1))


def test_more_padding_changes_no_rank(encoder: Encoder) -> None:
    text = sentences()
    padded = tuple(tuple(torch.nn.functional.pad(one, (0, 7)) for one in batch) for batch in text.batches)
    longer = replace(text, batches=padded)
    for importance in RANK.values():
        for one, other in zip(
            rank(encoder, importance, text, silent), rank(encoder, importance, longer, silent), strict=True
        ):
            assert torch.allclose(one.ffn, other.ffn, rtol=1e-4)
            assert torch.allclose(one.heads, other.heads, rtol=1e-4)
    assert block_importance(encoder, text, silent) == pytest.approx(block_importance(encoder, longer, silent), rel=1e-4)


@pytest.mark.slow
def test_taylor_is_how_far_embeddings_move(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over many random directions, half the second derivative of ‖embedding − before‖² by a factor on the channel or head."""
    from openclaw_opt.models import importance

    monkeypatch.setattr(importance, "DIRECTIONS", 2000)
    text = replace(sentences(), batches=sentences().batches[:1])
    scores = taylor_scores(encoder, text, silent)
    block, step = blocks_of(encoder)[0], 1e-2
    for part, at, columns, score in (
        (block.down, 5, [5], scores[0].ffn),
        (block.o, 1, list(range(DIM, 2 * DIM)), scores[0].heads),
    ):
        moved = []
        for factor in (1 + step, 1 - step):
            weight = block.linear(part).weight
            kept = weight.clone()
            weight[:, columns] *= factor
            with torch.no_grad():
                moved.append(encoder(*text.batches[0])[1].double())
            weight.copy_(kept)
        slope = (moved[0] - moved[1]) / (2 * step)
        assert float(score[at]) == pytest.approx(float(slope.square().sum()), rel=0.15)


# Sizes and goals from the spec alone.


@pytest.mark.slow
def test_sizes_and_the_roofline_are_those_of_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, done = run(Prune(ffn=0.4, heads=0.5), tmp_path, monkeypatch, hidden_size=128, intermediate_size=512)
    module, facts = open_model(done.artifact), read_facts(done.artifact)
    assert facts.hf is not None
    assert sizes.parameters(facts.hf) == pruning.parameters_of(module) == done.details["parameters"]
    shapes = {
        name: (layer.out_features, layer.in_features)
        for name, layer in module.named_modules()
        if isinstance(layer, torch.nn.Linear)
    }
    assert sizes.linears(facts.hf) == shapes
    assert Goal(gib=1.0).measure(facts.hf, L4, "tensorrt") * GIB == 2 * sizes.parameters(facts.hf)
    graph = export_graph(done.artifact, tmp_path / "graph", dtype="float16")
    work = read_work(graph.folder)
    row = Roofline()._bound("roofline.infer_ms", work, graph.facts, L4, (Roofline().prompt, 0), "")
    assert Goal(infer_ms=1.0).measure(facts.hf, L4, "tensorrt") == pytest.approx(row.value, rel=0.1)


BERT = spec_from_config({"architectures": ["BertModel"], "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
                         "num_attention_heads": 4, "vocab_size": 256, "max_position_embeddings": 64})  # fmt: skip
LEGAL = "legal for an encoder: ffn, heads, layers, to"


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"ffn": 0.4, "heads": 0.25, "layers": 1}, []),
        ({"to": {"parameters": 0.8}}, []),
        ({"ffn": 0.1}, [("ffn: 0.1 of 96 channels removes nothing at multiples of 32", "ffn", "ffn: 0.34")]),
        ({"heads": 0.2}, [("heads: 0.2 of 4 heads removes none", "heads", "heads: 0.25")]),
        ({"layers": 2}, [("2 layers cannot be removed from 2", "layers", "layers: 1")]),
        ({"hidden": 0.5}, [("an encoder has layer norms, whose mean over all channels no smaller norm gives back", "hidden", LEGAL)]),
        ({"query_heads": 0.5}, [("each head of an encoder has a key and a value of its own, so no query head goes alone", "query_heads",
          f"heads: 0.5, or: {LEGAL}")]),
        ({"vocabulary": "used"}, [("tokens are taken out of byte-level BPE tokenizers of decoders alone", "vocabulary", LEGAL)]),
        ({"to": {"decode_ms": 1.0}}, [("an encoder decodes no tokens; its goal is the time of a text", "to",
          "to: {infer_ms: 1}, {parameters: …} or {gib: …}")]),
    ],
)  # fmt: skip
def test_each_complaint(options: dict[str, Any], wanted: list[tuple[str, str, str]]) -> None:
    assert complaints(Prune.model_validate(options), BERT) == wanted


def test_a_goal_that_no_width_reaches_is_refused_with_the_closest() -> None:
    ((what, option, _),) = complaints(Prune(to=Goal(parameters=0.1)), BERT)
    assert option == "to"
    assert "cannot be reached by FFN channels alone: the narrowest has" in what


# The whole pass on a random BERT, to an engine.


def run(prune: Prune, folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> tuple[Model, Done[Model]]:
    from openclaw_opt.models import calibrate

    checkpoint = open_tiny(write_checkpoint(folder / "checkpoint", "bert", **changes))
    model, _, _ = load_model(checkpoint, folder / "model")
    monkeypatch.setattr(calibrate, "load_calibration", lambda *_: sentences())
    work = Work(folder / "out", checkpoint, CPU, "onnxruntime", TEXT, folder / "cache", progress=silent)
    return model, prune.run(model, work)


def same(model: Model, graph: Graph, folder: Path) -> None:
    """Outputs of the graph on ONNX Runtime are those of the reopened module."""
    module = open_model(model)
    ids, mask, types = sentences().batches[0]
    feed = {"input_ids": ids.numpy(), "attention_mask": mask.numpy(), "token_type_ids": types.numpy()}
    with torch.no_grad(), open_session(graph) as session:
        np.testing.assert_allclose(session.infer(feed)["embedding"], module(ids, mask, types)[1].numpy(), atol=1e-5)


@pytest.mark.slow
def test_layers_that_differ_reload_and_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prune = Prune(ffn=0.4, heads=0.5, layers=1, allocation="sensitivity", round_to=8)
    _, done = run(prune, tmp_path, monkeypatch, num_hidden_layers=4)
    facts = read_facts(done.artifact)
    assert facts.hf is not None
    layers = facts.hf.layers
    assert len(layers) == 3
    assert len({layer.ffn for layer in layers}) > 1
    assert {layer.q_heads for layer in layers} == {2}
    assert "heads 4 → 2" in done.changed
    assert "key/value" not in done.changed
    assert done.details["proof"]["largest_difference"] < 1e-5
    assert done.details["proof"]["what"] == "hidden states and embeddings, masked against shrunk"
    assert [row["layer"].rsplit(".", 1)[0] for row in done.details["widths"]] == ["model.encoder.layer"] * 3
    assert json.loads((done.artifact.assets / "config.json").read_text())["num_hidden_layers"] == 4
    same(done.artifact, export_graph(done.artifact, tmp_path / "graph", dtype="float32"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("fmt", ["int8", "int8_per_token", "int8_weight_only"])
def test_layers_that_differ_are_quantized_and_lowered(fmt: Any, tmp_path: Path) -> None:
    alone = Alone(tmp_path, "bert", num_hidden_layers=3)
    pruned = alone(Prune(ffn=0.4, heads=0.5, allocation="sensitivity", round_to=8), alone.model, sentences())
    done = alone(Quantize(format=fmt), pruned.artifact, sentences())
    assert done.count == 18
    module = open_model(done.artifact)
    widths = [module.get_submodule(f"model.encoder.layer.{i}.output.dense").in_features for i in range(3)]
    assert len(set(widths)) > 1
    portable = export_graph(done.artifact, tmp_path / "graph", dtype="float32")
    lowered = to_onnxruntime.lower(portable, tmp_path / "lowered", accuracy_level=to_onnxruntime.EXACT)
    assert sum(lowered.facts.fusions.values()) == (0 if fmt == "int8_per_token" else 18)
    ids, mask, types = sentences().batches[0]
    feed = {"input_ids": ids.numpy(), "attention_mask": mask.numpy(), "token_type_ids": types.numpy()}
    with torch.no_grad(), open_session(lowered) as session:
        found, wanted = session.infer(feed)["embedding"], module(ids, mask, types)[1].numpy()
    assert np.abs(found - wanted).max() < (1e-5 if fmt == "int8_weight_only" else 2 / 127) * np.abs(wanted).max()


def test_a_second_prune_goes_on_from_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, first = run(Prune(ffn=0.4, heads=0.5), tmp_path, monkeypatch)
    work = Work(
        tmp_path / "again", open_tiny(tmp_path / "checkpoint"), CPU, "onnxruntime", TEXT, tmp_path / "cache", progress=silent
    )  # fmt: skip
    done = Prune(layers=1).run(first.artifact, work)
    facts = read_facts(done.artifact)
    assert facts.hf is not None
    assert [(layer.q_heads, layer.ffn) for layer in facts.hf.layers] == [(2, 64)]
    assert len(layer_outputs(open_model(done.artifact), sentences().batches[0])) == 2  # type: ignore[arg-type]


@pytest.mark.parametrize("goal", [{"parameters": 0.9}, {"gib": 0.0003}])
@pytest.mark.parametrize("allocation", ["even", "sensitivity"])
def test_goals_are_met(goal: dict[str, Any], allocation: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And with one step of channels more in the last layer they are not, or, evenly, in all."""
    prune = Prune(to=Goal.model_validate(goal), allocation=allocation, round_to=8)
    _, done = run(prune, tmp_path, monkeypatch, intermediate_size=256)
    spec = read_facts(done.artifact).spec
    assert prune.to is not None
    limit = prune.to.limit(spec_from_config(open_tiny(tmp_path / "checkpoint").config))
    assert prune.to.measure(spec, CPU, "onnxruntime") <= limit
    widths = [layer.ffn for layer in spec.layers]
    more = [width + 8 for width in widths] if allocation == "even" else [widths[0], widths[1] + 8]
    assert prune.to.measure(with_widths(spec, more), CPU, "onnxruntime") > limit


def test_a_model_folder_without_sizes_still_opens(tmp_path: Path) -> None:
    """model.json as it was written before encoders stated sizes of their layers."""
    model, _, _ = load_model(open_tiny(write_checkpoint(tmp_path / "checkpoint", "bert")), tmp_path / "model")
    before = embeddings(open_model(model))
    facts = read_facts(model)
    assert isinstance(facts.spec, HfSpec)
    write_facts(model, facts.model_copy(update={"hf": facts.spec.model_copy(update={"layers": (), "head_dim": None})}))
    assert torch.equal(embeddings(open_model(model)), before)


@pytest.mark.slow  # the real checkpoint
@pytest.mark.parametrize("more", ["", ", heads: 0.25, layers: 1, allocation: sensitivity"])
def test_minilm_is_pruned_quantized_built_and_measured(more: str, tmp_path: Path) -> None:
    """By the command line, to an engine that runs; widths that differ, too, and every quantized layer as it was asked for."""
    stated = {
        name: {"source": "python-docstrings", "split": name, "samples": 32, "length": 64}
        for name in ("calibration", "evaluation")
    }
    settings = [
        f"passes=[{{prune: {{ffn: 0.2{more}}}}}, {{quantize: {{format: int8_weight_only}}}}, export, fuse, build]"
    ]
    settings += [f"data.{name}={json.dumps(value)}" for name, value in stated.items()]
    settings += ["metrics=[embedding, size]", 'budgets={embedding.cosine.mean: ">= 0.7"}']
    command = [sys.executable, "-m", "openclaw_opt", "build", "--recipe", "recipes/minilm-int8-cpu.yaml"]
    command += [part for value in settings for part in ("--set", value)]
    done = subprocess.run(
        [*command, "--cache", str(tmp_path / "cache"), "--output", str(tmp_path / "out")],
        cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report = read_report(tmp_path / "out")
    pruned = next(record for record in report.passes if record.word == "prune")
    widths = [row["ffn"] for row in pruned.details["widths"]]
    assert len(widths) == (5 if more else 6)
    assert (len({after for _, after in widths}) > 1) == bool(more)
    assert sum(after for _, after in widths) <= 0.8125 * 1536 * len(
        widths
    )  # 1248 is the multiple of 32 above four fifths
    assert len(report.receipt) == 6 * len(widths)
    assert all(row.ok for row in report.receipt)
    cosine = next(row for row in report.measurements if row.name == "embedding.cosine.mean")
    assert cosine.value is not None
    assert (cosine.value > 0.9) != bool(more)
