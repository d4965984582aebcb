"""Prune on encoders: planted channels and heads go, shrunk equals masked, other widths save, reopen, export and run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from openclaw_opt.backends.ort_sessions import OrtGeneric
from openclaw_opt.errors import VerificationError
from openclaw_opt.graph import to_onnxruntime
from openclaw_opt.models import pruning
from openclaw_opt.models.blocks import blocks_of
from openclaw_opt.models.calibrate import Batch, Calibration
from openclaw_opt.models.export import export_graph
from openclaw_opt.models.hf import Encoder
from openclaw_opt.models.importance import activation_scores, block_importance
from openclaw_opt.models.spec import LayerSpec, read_facts
from openclaw_opt.models.store import open_model
from openclaw_opt.passes.prune import Prune
from openclaw_opt.passes.quantize import Quantize
from openclaw_opt.verify import make_probe, outputs
from tests.passes_alone import Alone, silent
from tests.test_prune import complaints, spec_of

LAYER = LayerSpec(q_heads=4, kv_heads=4, ffn=96)
CLOSE = 1e-4


def batch(padding: int = 0) -> Batch:
    """Sentences of 20 and 7 tokens, with `padding` for the ids of what is no token."""
    ids = torch.randint(3, 256, (2, 20), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(20) < torch.tensor([[20], [7]])).long()
    return torch.where(mask.bool(), ids, padding), mask, torch.zeros_like(ids)


def data(padding: int = 0) -> Calibration:
    return Calibration((batch(padding),), 2, 27)


def encoder(folder: Path) -> Encoder:
    module = open_model(Alone(folder, "bert").model)
    assert isinstance(module, Encoder)
    return module


def embedding(module: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return module(*batch())[1]  # type: ignore[no-any-return]


def zero_columns(linear: torch.nn.Module, columns: list[int]) -> None:
    weight = linear.weight.clone()  # type: ignore[operator]
    weight[:, columns] = 0
    linear.weight = torch.nn.Parameter(weight, requires_grad=False)


def plan(drop: int = 0, importance: Any = "activation", **sizes: int) -> pruning.Plan:
    return pruning.Plan(drop, lambda before: before.model_copy(update=sizes), importance, bool(sizes))


@pytest.mark.parametrize("importance", ["activation", "wanda"])
def test_planted_channels_and_heads_go_and_the_output_stays(importance: str, tmp_path: Path) -> None:
    module = encoder(tmp_path)
    for layer in module.layers:
        zero_columns(layer.get_submodule("output.dense"), [j for j in range(96) if j % 3])
        zero_columns(layer.get_submodule("attention.output.dense"), list(range(16, 48)))
    made = pruning.prune_model(module, plan(0, importance, ffn=32, q_heads=2, kv_heads=2), data(), silent)
    assert made.cuts[0].ffn.tolist() == [j for j in range(96) if j % 3 == 0]
    assert made.cuts[1].q.tolist() == made.cuts[1].kv.tolist() == [0, 3]
    assert torch.allclose(embedding(made.module), embedding(module), atol=1e-6)
    assert [block.sizes for block in blocks_of(made.module)] == [LayerSpec(q_heads=2, kv_heads=2, ffn=32)] * 2


def test_a_layer_that_changes_nothing_goes(tmp_path: Path) -> None:
    module = encoder(tmp_path)
    for part in ("attention.output.dense", "output.dense"):
        linear = module.layers[1].get_submodule(part)
        zero_columns(linear, list(range(linear.in_features)))  # type: ignore[arg-type]
        linear.bias = torch.nn.Parameter(torch.zeros_like(linear.bias), requires_grad=False)  # type: ignore[arg-type]
    importance = block_importance(module, data(), silent)
    assert importance[1] < importance[0]
    made = pruning.prune_model(module, plan(1), data(), silent)
    assert list(made.cuts) == [0]
    assert len(blocks_of(made.module)) == 1


def test_what_stands_in_padding_does_not_count(tmp_path: Path) -> None:
    module = encoder(tmp_path)
    one, other = (activation_scores(module, data(padding), silent) for padding in (0, 200))
    for a, b in zip(one, other, strict=True):
        assert torch.allclose(a.ffn, b.ffn)
        assert torch.allclose(a.heads, b.heads)


@pytest.mark.parametrize(
    "options",
    [
        {"ffn": 0.5},
        {"heads": 0.25, "importance": "magnitude"},
        {"layers": 1},
        {"ffn": 0.4, "heads": 0.5, "layers": 1, "importance": "wanda"},
        {"ffn": 0.4, "allocation": "sensitivity", "round_to": 8},
    ],
    ids=str,
)
def test_pruned_saves_reopens_quantizes_exports_and_runs(options: dict[str, Any], tmp_path: Path) -> None:
    alone = Alone(tmp_path, "bert")
    done = alone(Prune(**options), None, data())
    model, facts = done.artifact, read_facts(done.artifact)
    assert facts.hf is not None
    assert tuple(block.sizes for block in blocks_of(open_model(model))) == facts.hf.layers != (LAYER, LAYER)
    assert done.details["proof"]["largest_difference"] < CLOSE
    quantized = alone(Quantize(format="int8_weight_only"), model, data()).artifact
    probe = make_probe(facts.spec, 0)
    for one in (model, quantized):
        graph = export_graph(one, tmp_path / f"graph-{one.folder.name}", dtype="float32")
        lowered = to_onnxruntime.lower(graph, tmp_path / f"lowered-{one.folder.name}")
        wanted = outputs(one, probe)["embedding"]
        with OrtGeneric(lowered) as session:
            assert abs(session.infer(probe.feed)["embedding"] - wanted).max() < (CLOSE if one is model else 2e-2)


def test_a_wrong_cut_is_caught(tmp_path: Path) -> None:
    module = encoder(tmp_path)
    made = pruning.prune_model(module, plan(ffn=64), data(), silent)
    wrong = {i: pruning.Cut(torch.arange(64), cut.q, cut.kv) for i, cut in made.cuts.items()}
    with pytest.raises(VerificationError, match="shrunk model differs from the masked one"):
        pruning.prove(module, made.module, wrong, data())


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"query_heads": 0.5}, "each head of bert has keys and values of its own: `heads` takes out both"),
        ({"hidden": 0.5}, "bert has layer norms, whose mean over all channels no smaller norm gives back"),
        ({"ffn": 0.4, "vocabulary": 0.5}, "the vocabulary of an encoder stays as it is"),
        ({"to": {"parameters": 0.5}}, "sizes are counted for decoders alone: say ffn, heads or layers"),
        (
            {"ffn": 0.4, "importance": "taylor"},
            "taylor ranks by the loss of the next token, which an encoder does not have",
        ),
        ({"layers": 2}, "2 layers cannot be removed from 2"),
        ({"heads": 0.1}, "heads: 0.1 of 4 heads removes none"),
    ],
    ids=str,
)
def test_what_an_encoder_does_not_take(options: dict[str, Any], what: str, tmp_path: Path) -> None:
    ((found, _, fix),) = complaints(Prune.model_validate(options), spec_of("bert", tmp_path))
    assert found == what
    assert fix
