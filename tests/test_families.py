"""Every family against Hugging Face's own code: eager and as ONNX, prefill, decode, padding, past windows and rope."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import transformers as hf
from torch import Tensor

from openclaw_opt.artifacts import Checkpoint, Graph, Model
from openclaw_opt.backends.ort_sessions import OrtDecoder, OrtGeneric
from openclaw_opt.graph import to_onnxruntime, to_tensorrt
from openclaw_opt.models.decoder import Decoder
from openclaw_opt.models.export import export_graph
from openclaw_opt.models.load import load_model
from openclaw_opt.models.parity import check_parity
from openclaw_opt.models.reference import open_reference
from openclaw_opt.models.store import open_model
from tests.tiny import CLASSES, DECODERS, open_tiny, write_checkpoint

CLOSE = 1e-4
RAGGED, STEPS = (14, 5, 11), 14
"""Prompt lengths of a batch, and decode steps: each sequence leaves the window (8) and the original rope length (16) by itself."""
LOWERINGS = {"onnxruntime": to_onnxruntime.lower, "tensorrt": to_tensorrt.lower}
STANDARD = {"", "ai.onnx"}


@dataclass
class Built:
    """One family, loaded and exported once for all tests of this file."""

    folder: Path
    checkpoint: Checkpoint
    model: Model

    @cached_property
    def decoder(self) -> Decoder:
        module = open_model(self.model)
        assert isinstance(module, Decoder)
        return module

    @cached_property
    def theirs(self) -> hf.PreTrainedModel:
        return hf.AutoModelForCausalLM.from_pretrained(self.checkpoint.folder, attn_implementation="eager").eval()

    @cached_property
    def each_alone(self) -> np.ndarray:  # type: ignore[type-arg]
        """Hugging Face's logits after each step of RAGGED, every sequence by itself and without a cache: [step, row, vocab]."""
        ids = tokens(len(RAGGED), 48)
        with torch.no_grad():
            rows = [
                [self.theirs(ids[row : row + 1, : length + step]).logits[0, -1] for row, length in enumerate(RAGGED)]
                for step in range(STEPS + 1)
            ]
        return np.array([[row.numpy() for row in step] for step in rows])

    @cached_property
    def graph(self) -> Graph:
        return export_graph(self.model, self.folder / "graph", dtype="float32")


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Built]:
    made: dict[str, Built] = {}

    def get(family: str) -> Built:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            checkpoint = open_tiny(write_checkpoint(folder / "checkpoint", family))
            model, _, _ = load_model(checkpoint, folder / "model")
            made[family] = Built(folder, checkpoint, model)
        return made[family]

    return get


def tokens(rows: int, length: int) -> Tensor:
    return torch.randint(3, 256, (rows, length), generator=torch.Generator().manual_seed(1))


def apart(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference over the largest value; the values must be large enough to mean something."""
    size = float(theirs.abs().max())
    assert size > 0.1
    return float((ours - theirs).abs().max()) / size


def alone(decoder: Decoder, ids: Tensor) -> Tensor:
    positions = torch.arange(ids.shape[1])[None].expand(ids.shape[0], -1)
    with torch.no_grad():
        logits, _ = decoder(ids, torch.ones_like(ids), positions)
    return logits


@pytest.mark.parametrize("family", DECODERS)
def test_prefill_equals_hugging_face_past_window_and_original_context(
    family: str, build: Callable[[str], Built]
) -> None:
    built, ids = build(family), tokens(2, 48)
    with torch.no_grad():
        theirs = built.theirs(ids).logits
    assert apart(alone(built.decoder, ids), theirs) < CLOSE


@pytest.mark.parametrize("family", DECODERS)
def test_decode_steps_equal_hugging_face(family: str, build: Callable[[str], Built]) -> None:
    built, ids, past, cache = build(family), tokens(2, 24), [], None
    with torch.no_grad():
        for start, end in [(0, 5), (5, 9), *((at, at + 1) for at in range(9, 24))]:
            positions = torch.arange(start, end)[None].expand(2, -1)
            logits, past = built.decoder(ids[:, start:end], torch.ones(2, end, dtype=torch.int64), positions, past)
            theirs = built.theirs(ids[:, start:end], past_key_values=cache, use_cache=True)
            cache = theirs.past_key_values
            assert apart(logits, theirs.logits) < CLOSE, (start, end)


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("family", DECODERS)
def test_a_padded_batch_equals_each_sequence_alone(family: str, left: bool, build: Callable[[str], Built]) -> None:
    built, ids, lengths = build(family), tokens(3, 30), (30, 11, 3)
    padded, mask = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        place = slice(30 - length, 30) if left else slice(0, length)
        padded[row, place], mask[row, place] = ids[row, :length], 1
    with torch.no_grad():
        logits, _ = built.decoder(padded, mask, (mask.cumsum(1) - 1).clamp_min(0))
    for row, length in enumerate(lengths):
        with torch.no_grad():
            theirs = built.theirs(ids[row : row + 1, :length]).logits[0]
        assert apart(logits[row][mask[row].bool()], theirs) < CLOSE


@pytest.mark.parametrize("family", DECODERS)
def test_the_graph_equals_torch_and_is_standard(family: str, build: Callable[[str], Built]) -> None:
    built = build(family)
    parity = check_parity(built.model, built.graph)
    assert parity.relative < CLOSE, parity.cases
    assert {case.split()[0] for case in parity.cases} == {"prefill", "decode", "last"}
    proto = onnx.load(str(built.graph.onnx), load_external_data=False)
    assert {node.domain for node in proto.graph.node} <= STANDARD
    kinds = [node.op_type for node in proto.graph.node]
    layers = len(built.decoder.spec.layers)
    assert kinds.count("Attention") == layers
    rotated = 0 if built.decoder.spec.learned_positions else 2 * layers
    assert kinds.count("RotaryEmbedding") == rotated


@pytest.mark.slow
@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("family", DECODERS)
def test_a_lowered_batch_is_what_hugging_face_says_of_each_sequence_alone(
    family: str, lowering: str, build: Callable[[str], Built], tmp_path: Path
) -> None:
    built, ids = build(family), tokens(len(RAGGED), 48).numpy()
    lengths, rows = np.array(RAGGED), np.arange(len(RAGGED))
    with OrtDecoder(LOWERINGS[lowering](built.graph, tmp_path)) as session:
        ours = [session.prefill(ids[:, : max(RAGGED)], lengths)]
        ours += [session.decode(ids[rows, lengths + step]) for step in range(STEPS)]
        whole = session.logits(ids[:2])
    assert apart(torch.from_numpy(np.stack(ours)), torch.from_numpy(built.each_alone)) < CLOSE
    with torch.no_grad():
        assert apart(torch.from_numpy(whole), built.theirs(torch.from_numpy(ids[:2])).logits) < CLOSE


@pytest.mark.slow
@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("family", CLASSES)
def test_a_lowered_encoder_or_classifier_is_what_hugging_face_computes(
    family: str, lowering: str, build: Callable[[str], Built], tmp_path: Path
) -> None:
    built = build(family)
    theirs = CLASSES[family].from_pretrained(built.checkpoint.folder, attn_implementation="eager").eval()
    feed = (
        {"pixel_values": torch.randn(3, 3, 16, 16)}
        if family == "vit"
        else {"pixel_values": torch.randn(3, 1, 224, 224)}
    )
    if family == "bert":
        mask = (torch.arange(20) < torch.tensor([[20], [7], [1]])).long()
        feed = {"input_ids": tokens(3, 20), "attention_mask": mask, "token_type_ids": torch.zeros_like(mask)}
    with torch.no_grad(), OrtGeneric(LOWERINGS[lowering](built.graph, tmp_path)) as session:
        ours, wanted = session.infer({name: value.numpy() for name, value in feed.items()}), theirs(**feed)
    if family != "bert":
        assert apart(torch.from_numpy(ours["logits"]), wanted.logits) < CLOSE
        return
    real = mask.bool()
    assert apart(torch.from_numpy(ours["last_hidden_state"])[real], wanted.last_hidden_state[real]) < CLOSE
    for row, length in enumerate((20, 7, 1)):
        with torch.no_grad():
            alone = theirs(input_ids=feed["input_ids"][row : row + 1, :length]).last_hidden_state[0].mean(0)
        assert apart(torch.from_numpy(ours["embedding"][row]), alone / alone.norm()) < CLOSE


@pytest.mark.parametrize("family", DECODERS)
def test_the_reference_equals_the_decoder(family: str, build: Callable[[str], Built]) -> None:
    built, ids = build(family), tokens(2, 20)
    mask = torch.ones_like(ids)
    mask[1, 12:] = 0
    reference = open_reference(built.checkpoint)
    assert apart(alone(built.decoder, ids), reference(ids)) < CLOSE
    assert apart(alone(built.decoder, ids[1:, :12]), reference(ids, mask)[1:, :12]) < CLOSE


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "phi3"])
def test_half_precision_graphs(family: str, dtype: str, build: Callable[[str], Built], tmp_path: Path) -> None:
    built = build(family)
    graph = export_graph(built.model, tmp_path, dtype=dtype)  # type: ignore[arg-type]
    proto = onnx.load(str(graph.onnx), load_external_data=False)
    wide = [value.name for value in proto.graph.initializer if value.data_type == onnx.TensorProto.FLOAT]
    assert set(wide) <= {"logits.softcap"}
    assert proto.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    if dtype == "float16":
        assert check_parity(built.model, graph).relative < 2e-2
