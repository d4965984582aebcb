"""Outputs of a decoder with one layer in memory are those of the whole model, and are computed once for two passes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from openclaw_opt import verify
from openclaw_opt.backends.engines import open_session
from openclaw_opt.models.reference import open_reference
from openclaw_opt.models.spec import read_facts
from openclaw_opt.passes.quantize import Quantize
from openclaw_opt.verify import Outputs, difference, make_probe, outputs, session_outputs
from tests.passes_alone import Alone
from tests.test_families import DECODERS
from tests.test_kv_cache import texts
from tests.test_streaming_memory import LAYER, LAYERS, ROOT, SIZES
from tests.tiny import open_tiny, write_checkpoint

OPTIONS = (
    {"format": "int8", "algorithm": "max"},
    {"format": "int4"},
    {"format": "fp8"},
    {"format": "nvfp4"},
    {"kv_cache": "int8"},
)
ROUNDING = 1e-5
PEAK = """
import sys
from pathlib import Path

from openclaw_opt.memory import peak_memory
from openclaw_opt.models.load import load_model
from openclaw_opt.verify import make_probe, outputs
from openclaw_opt.models.spec import read_facts
from tests.passes_alone import Alone
from tests.tiny import open_tiny

folder = Path(sys.argv[1])
small = Alone(folder / "small", "llama")
for one in (small.checkpoint, small.model):  # libraries are imported, kernels and thread pools are there
    outputs(one, make_probe(read_facts(small.model).spec, 0))
checkpoint = open_tiny(folder / "large")
model, *_ = load_model(checkpoint, folder / "model")
probe = make_probe(read_facts(model).spec, 0)
for one in (checkpoint, model):
    with peak_memory() as peak:
        before = peak.bytes
        outputs(one, probe)
    print(peak.bytes - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("family", DECODERS)
def test_streamed_reference_is_the_whole_one(family: str, tmp_path: Path) -> None:
    checkpoint = open_tiny(write_checkpoint(tmp_path, family))
    ids = torch.randint(3, 200, (2, 20), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(20) < torch.tensor([[20], [13]])).long()
    streamed = open_reference(checkpoint, streaming=True)
    for _ in range(2):  # what a call read, it gave back
        assert torch.equal(streamed(ids, mask), open_reference(checkpoint)(ids, mask))


@pytest.mark.parametrize("family", DECODERS)
def test_outputs_without_a_session_are_those_of_the_session(family: str, tmp_path: Path) -> None:
    alone = Alone(tmp_path, family)
    probe = make_probe(read_facts(alone.model).spec, 0)
    for artifact in (alone.checkpoint, alone.model):
        with open_session(artifact) as session:
            whole = session_outputs(session, probe)
        assert outputs(artifact, probe).keys() == whole.keys()
        assert difference(whole, outputs(artifact, probe)) < ROUNDING


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_quantized_models_too(options: dict[str, str], tmp_path: Path) -> None:
    alone = Alone(tmp_path, "llama")
    model = alone(Quantize(**options), None, texts()).artifact  # type: ignore[arg-type]
    probe = make_probe(read_facts(model).spec, 0)
    with open_session(model) as session:
        assert difference(session_outputs(session, probe), outputs(model, probe)) < ROUNDING


def test_what_came_after_a_pass_is_not_computed_again_before_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, asked = Alone(tmp_path, "llama"), list[Path]()
    probe = make_probe(read_facts(alone.model).spec, 0)

    def counted(artifact: object, probe: object) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
        asked.append(artifact.folder)  # type: ignore[attr-defined]
        return {"logits": np.zeros((1, 1), np.float32)}

    monkeypatch.setattr(verify, "outputs", counted)
    known = Outputs()
    known(alone.checkpoint, probe)
    known(alone.model, probe)
    known.moved(alone.model.folder, tmp_path / "kept")
    known(type(alone.model)(tmp_path / "kept"), probe)
    assert asked == [alone.checkpoint.folder, alone.model.folder]
    known(type(alone.model)(tmp_path / "kept"), make_probe(read_facts(alone.model).spec, 1))
    assert asked[-1] == tmp_path / "kept"


@pytest.mark.slow
def test_comparing_takes_the_memory_of_few_layers(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "large", "llama", shard="32MB", **SIZES)
    command = [sys.executable, "-c", PEAK, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    of_checkpoint, of_model = (int(line) for line in done.stdout.split()[-2:])
    assert LAYERS >= 10
    assert of_checkpoint < 5 * LAYER
    assert of_model < 5 * LAYER
