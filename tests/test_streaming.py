"""A decoder is loaded and quantized a layer at a time: the same bytes as from the whole model, in less memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from openclaw_opt.artifacts import Model
from openclaw_opt.formats import CACHES
from openclaw_opt.models import quantizing
from openclaw_opt.models.calibrate import Calibration, decoder_calibration, run_batches, watched
from openclaw_opt.models.decoder import Layer
from openclaw_opt.models.load import load_model
from openclaw_opt.models.spec import DecoderSpec, ModelFacts
from openclaw_opt.models.store import open_model, save_model
from openclaw_opt.models.tensor_file import RANKS, write_tensors
from openclaw_opt.models.weights import decoder_from_checkpoint
from openclaw_opt.numerics.cache import scales_of
from openclaw_opt.passes import Done
from openclaw_opt.passes.prune import Prune
from openclaw_opt.passes.quantize import ALGORITHMS, RANGES, Quantize
from tests.passes_alone import Alone, silent
from tests.tiny import DECODERS, open_tiny, write_checkpoint

ROOT = Path(__file__).parent.parent
PAIRS = [(fmt, algorithm) for fmt, algorithms in ALGORITHMS.items() for algorithm in algorithms]


def tokens(samples: int = 20, length: int = 64) -> Calibration:
    """Batches of 8, 8 and 4: the last is shorter."""
    ids = torch.randint(3, 256, (samples, length), generator=torch.Generator().manual_seed(1))
    return decoder_calibration(ids, 8, "of the test")


def both(alone: Alone, batches: Calibration | None, model: Model | None = None, **options: Any) -> list[Done[Model]]:
    """A pass as it is, streamed, and with the whole model open."""
    streamed = alone(Quantize(**options), model, batches)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantizing, "_quantize_decoder", quantizing._quantize_whole)
        return [streamed, alone(Quantize(**options), model, batches)]


def assert_equal(made: list[Done[Model]]) -> None:
    streamed, whole = made
    for file in ("model.safetensors", "model.json"):
        assert (streamed.artifact.folder / file).read_bytes() == (whole.artifact.folder / file).read_bytes(), file
    assert streamed.changed == whole.changed
    for done in made:
        done.details["calibration"].pop("seconds")
    assert json.dumps(streamed.details) == json.dumps(whole.details)
    assert {path.name for path in streamed.artifact.folder.iterdir()} == {"assets", "model.json", "model.safetensors"}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Alone:
    return Alone(tmp_path_factory.mktemp("llama"), "llama")


@pytest.mark.slow
@pytest.mark.parametrize(("fmt", "algorithm"), PAIRS)
def test_a_stream_writes_the_bytes_of_the_whole(llama: Alone, fmt: str, algorithm: str) -> None:
    assert_equal(both(llama, tokens(), format=fmt, algorithm=algorithm))


@pytest.mark.slow
@pytest.mark.parametrize("family", [name for name in DECODERS if name != "llama"])
def test_of_every_family(family: str, tmp_path: Path) -> None:
    alone = Alone(tmp_path, family)
    for options in ({"format": "int8"}, {"format": "int4", "algorithm": "awq_gptq"}):
        assert_equal(both(alone, tokens(), **options))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fmt", "ranges"), [(fmt, word) for fmt, words in RANGES.items() for word in words if word != "max"]
)
def test_ranges_from_histograms(llama: Alone, fmt: str, ranges: str) -> None:
    algorithm = "max" if "max" in ALGORITHMS[fmt] else "rtn"
    assert_equal(both(llama, tokens(), format=fmt, algorithm=algorithm, calibration=ranges))


@pytest.mark.slow
@pytest.mark.parametrize("keep", [("layers.0.*", "head"), ("layers.1.*", "*.down"), (), ("layers.*",)])
def test_layers_that_stay_float_pass_the_states_on(tmp_path: Path, keep: tuple[str, ...]) -> None:
    alone = Alone(tmp_path, "llama-linear")  # its head is tied
    assert_equal(both(alone, tokens(), format="int4", algorithm="awq_gptq", keep=keep))


@pytest.mark.slow
def test_a_second_pass_and_sizes_that_differ(llama: Alone) -> None:
    first = llama(Quantize(format="int4", algorithm="gptq", keep=("layers.0.*", "head")), None, tokens())
    assert_equal(both(llama, tokens(), first.artifact, format="int8", keep=()))
    narrow = llama(Prune(ffn=0.34, importance="activation", allocation="sensitivity"), None, tokens())
    assert_equal(both(llama, tokens(), narrow.artifact, format="int8_weight_only", algorithm="gptq"))


def test_without_data(llama: Alone) -> None:
    assert_equal(both(llama, None, format="uint4", algorithm="rtn"))


@pytest.mark.parametrize("family", DECODERS)
def test_loading_tensor_by_tensor_writes_the_bytes_of_the_whole(family: str, tmp_path: Path) -> None:
    checkpoint = open_tiny(write_checkpoint(tmp_path / "checkpoint", family))
    streamed, tensors, parameters = load_model(checkpoint, tmp_path / "streamed")
    decoder = decoder_from_checkpoint(checkpoint, torch.float32)
    assert (tensors, parameters) == (len(list(decoder.parameters())), sum(x.numel() for x in decoder.parameters()))
    assert isinstance(decoder.spec, DecoderSpec)
    facts = ModelFacts(task="decoder", family=decoder.spec.family, dtype="float32", decoder=decoder.spec)
    whole = save_model(decoder, facts, tmp_path / "whole", checkpoint.folder)
    for file in ("model.safetensors", "model.json", "assets/config.json"):
        assert (streamed.folder / file).read_bytes() == (whole.folder / file).read_bytes()


# The file itself.

DTYPES = st.sampled_from(list(RANKS))
TENSORS = st.dictionaries(
    st.text(st.characters(min_codepoint=32, max_codepoint=1000, exclude_characters='"\\'), min_size=1),
    st.tuples(DTYPES, st.lists(st.integers(0, 5), max_size=3)),
    max_size=8,
)


@settings(max_examples=100, deadline=None)
@given(TENSORS)
def test_a_file_is_the_librarys_own(tmp_path_factory: pytest.TempPathFactory, shapes: dict[str, Any]) -> None:
    folder = tmp_path_factory.mktemp("file")
    tensors = {name: torch.randint(0, 2, shape).to(dtype) for name, (dtype, shape) in shapes.items()}
    save_file(tensors, folder / "whole")
    meta = {name: value.to("meta") for name, value in tensors.items()}
    write_tensors(
        folder / "streamed", meta, lambda name: tensors[name].split(2) if tensors[name].ndim else [tensors[name]]
    )
    assert (folder / "streamed").read_bytes() == (folder / "whole").read_bytes()


def test_tensors_that_are_not_as_promised_are_refused(tmp_path: Path) -> None:
    for got, words in ((torch.zeros(3), "shape"), (torch.zeros(2, 2, dtype=torch.float16), "float16")):
        with pytest.raises(ValueError, match=words):
            write_tensors(tmp_path / "file", {"x": torch.zeros(2, 2)}, lambda _, got=got: [got])


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3"])
@pytest.mark.parametrize("weights", ["float", "int8_weight_only"])
def test_scales_of_a_cache_are_those_of_the_whole_model(family: str, weights: str, tmp_path: Path) -> None:
    alone, batches = Alone(tmp_path, family), tokens()
    model = alone.model if weights == "float" else alone(Quantize(format=weights), None, batches).artifact
    whole, tops = open_model(model), dict[str, torch.Tensor]()

    def seen(name: str, x: torch.Tensor, y: torch.Tensor) -> None:
        for kind, value in zip("kv", y[1:3], strict=True):
            top = value.abs().amax((0, 2)).unsqueeze(1)
            tops[f"{name}.{kind}"] = torch.maximum(top, tops.get(f"{name}.{kind}", top))

    names = [name for name, part in whole.named_modules() if isinstance(part, Layer)]
    with watched(whole, names, seen):
        run_batches(whole, batches, silent, "the whole model")
    made = alone(Quantize(format="float", kv_cache="int8"), model, batches).artifact
    found = open_model(made)
    assert len(tops) == 2 * len(names) > 0
    for name, top in tops.items():
        assert torch.equal(found.get_buffer(f"{name}_scale"), scales_of(top, CACHES["int8"]))
    kept = whole.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in found.state_dict().items() if name in kept)
