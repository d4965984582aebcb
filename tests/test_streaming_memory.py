"""Peak memory of loading a checkpoint of many layers, and of calibrating a cache: a multiple of one layer, whatever the model weighs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import write_checkpoint

ROOT = Path(__file__).parent.parent
LAYERS = 10
SIZES = {
    "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": LAYERS, "num_attention_heads": 8,
    "num_key_value_heads": 8, "head_dim": 64,
}  # fmt: skip
LAYER = 4 * (4 * 512**2 + 3 * 512 * 2048)
"""Bytes of a decoder layer in float32."""
ALONE = """
import sys
from pathlib import Path

import torch

from openclaw_opt.memory import peak_memory
from openclaw_opt.models.caching import CacheJob, quantize_cache
from openclaw_opt.models.calibrate import decoder_calibration
from openclaw_opt.models.load import load_model
from tests.passes_alone import Alone, silent
from tests.tiny import open_tiny

folder = Path(sys.argv[1])
small = Alone(folder / "small", "llama")  # libraries are imported, kernels and thread pools are there
batches = decoder_calibration(torch.arange(4 * 32).view(4, 32), 2)
quantize_cache(small.model, batches, folder / "small-cached", CacheJob("int8"), silent)
checkpoint = open_tiny(folder / "large")
with peak_memory() as peak:
    before = peak.bytes
    model, *_ = load_model(checkpoint, folder / "model")
print(peak.bytes - before)
with peak_memory() as peak:
    before = peak.bytes
    quantize_cache(model, batches, folder / "cached", CacheJob("int8"), silent)
print(peak.bytes - before)
"""


@pytest.mark.slow
def test_loading_and_calibrating_a_cache_take_the_memory_of_few_layers(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "large", "llama", shard="32MB", **SIZES)
    assert len(list((tmp_path / "large").glob("*.safetensors"))) > 4
    command = [sys.executable, "-c", ALONE, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    loading, caching = (int(line) for line in done.stdout.split()[-2:])
    assert loading < 6 * LAYER
    assert caching < 4 * LAYER
