"""Peak memory of quantizing a Llama of a billion parameters, pass by pass: docs/results/memory.md.

    python examples/results/memory.py > docs/results/memory.md

Writes a random checkpoint of the shape of Llama-3.2-1B, sharded, in bfloat16, then runs `openclaw-opt build --until model` on it
once an algorithm. Every figure is read from the report.json of such a build; times and memory of a pass that the cache held are
those of the build that made it. Random weights say nothing about accuracy, so none is measured. `--only WORD` takes the rows whose
name holds the word; `--folder` and `--cache` say where the 3 GB checkpoint and the 10 GB of results go.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from make import table

from openclaw_opt.records import PassRecord, Report
from openclaw_opt.report import read_report

ROOT = Path(__file__).parent.parent.parent
DEMO = ROOT / "examples" / "tiny-llama"
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16", "hidden_size": 2048,
    "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
    "vocab_size": 128256, "tie_word_embeddings": True, "hidden_act": "silu", "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131072, "rope_theta": 500000.0, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
    "rope_scaling": {
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}  # fmt: skip
"""Llama-3.2-1B's, but for the ids of its special tokens."""
LAYERS_A_SHARD = 4
SAMPLES, LENGTH, BATCH = 8, 256, 4
LATER_LAYERS = ["head", "layers.[2-9].*", "layers.1[0-9].*"]
"""What is kept in float to save time: one layer is in memory at a time, the last needs what the second does."""
ROWS: dict[str, list[str]] = {"rtn": ["head"], "awq": LATER_LAYERS, "gptq": LATER_LAYERS}
"""Algorithm → layers kept in float."""
ALLOWED = 2**30
LIMIT = 6 * 2**30
LIBRARIES = (
    "import torch, transformers, onnxruntime, psutil, openclaw_opt.pipeline, openclaw_opt.models.quantizing, "
    "modelopt.torch.quantization; print(psutil.Process().memory_info().rss)"
)


def write_checkpoint(folder: Path, config: dict[str, Any], layers_a_shard: int = LAYERS_A_SHARD) -> Path:
    """A random Llama in bfloat16, a shard in memory at a time; made once."""
    if (folder / "config.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    shards = list(_shards(config, layers_a_shard))
    places: dict[str, str] = {}
    total = 0
    for i, shapes in enumerate(shards):
        file = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        total += _write_shard(folder / file, shapes, seed=i)
        places |= dict.fromkeys(shapes, file)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(DEMO / name, folder / name)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    return folder


def _shards(config: dict[str, Any], layers_a_shard: int) -> Iterator[dict[str, tuple[int, ...]]]:
    """Names and shapes of the tensors of each shard."""
    hidden, ffn, size = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    layer = {
        "input_layernorm": (hidden,), "self_attn.q_proj": (q, hidden), "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden), "self_attn.o_proj": (hidden, q), "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (ffn, hidden), "mlp.up_proj": (ffn, hidden), "mlp.down_proj": (hidden, ffn),
    }  # fmt: skip
    yield {"model.embed_tokens.weight": (config["vocab_size"], hidden), "model.norm.weight": (hidden,)}
    count = config["num_hidden_layers"]
    for start in range(0, count, layers_a_shard):
        yield {
            f"model.layers.{i}.{name}.weight": shape
            for i in range(start, min(start + layers_a_shard, count))
            for name, shape in layer.items()
        }


def _write_shard(file: Path, shapes: dict[str, tuple[int, ...]], seed: int) -> int:
    import torch
    from safetensors.torch import save_file

    random = torch.Generator().manual_seed(seed)
    made = {
        name: torch.ones(shape, dtype=torch.bfloat16)
        if len(shape) == 1
        else torch.empty(shape, dtype=torch.bfloat16).normal_(0.0, 0.02, generator=random)
        for name, shape in shapes.items()
    }
    save_file(made, file, metadata={"format": "pt"})
    return sum(value.nbytes for value in made.values())


def recipe_of(checkpoint: Path, algorithm: str) -> dict[str, Any]:
    text = {"source": "python-stdlib", "length": LENGTH, "samples": SAMPLES}
    return {
        "model": str(checkpoint),
        "target": "host",
        "data": {"calibration": {**text, "split": "calibration"}},
        "passes": [
            {
                "quantize": {
                    "format": "int4",
                    "algorithm": algorithm,
                    "block": 32,
                    "batch_size": BATCH,
                    "keep": ROWS[algorithm],
                }
            },
            "export",
            "fuse",
            "build",
        ],
        "metrics": ["size"],
    }


def build(name: str, checkpoint: Path, folder: Path, cache: Path) -> Report:
    """`openclaw-opt build` as a user types it; ends this script when it fails."""
    recipe = folder / f"{name}.yaml"
    recipe.write_text(json.dumps(recipe_of(checkpoint, name)))  # JSON is YAML
    command = [sys.executable, "-m", "openclaw_opt", "build", "--recipe", str(recipe), "--until", "model"]
    command += ["--output", str(folder / name), "--cache", str(cache)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        sys.exit(f"{name} ended with exit code {done.returncode}: {' '.join(command)}")
    return read_report(folder / name)


def layer_bytes(config: dict[str, Any]) -> int:
    """A decoder layer in float32."""
    second = list(_shards(config, 1))[1]
    return 4 * sum(math.prod(shape) for shape in second.values())


def activation_bytes(config: dict[str, Any]) -> int:
    """What one batch has between the parts of a layer, in float32: hidden states, heads, scores and the MLP's two halves."""
    tokens = BATCH * LENGTH
    heads, size = config["num_attention_heads"], config["head_dim"]
    width = 4 * config["hidden_size"] + 3 * heads * size + heads * LENGTH + 3 * config["intermediate_size"]
    return 4 * tokens * width


def gib(size: float) -> str:
    return f"{size / 2**30:.2f}"


def cells(name: str, step: PassRecord, baseline: int) -> list[str]:
    return [name, gib(step.peak_bytes), gib(step.peak_bytes - baseline), f"{step.seconds:.0f}"]


def main() -> None:
    """Write the checkpoint, build every row, print the page."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--only", default="", help="rows whose name holds this")
    options.add_argument("--folder", type=Path, default=ROOT / "build" / "memory")
    options.add_argument("--cache", type=Path)
    given = options.parse_args()
    folder: Path = given.folder.absolute()
    checkpoint = write_checkpoint(folder / "llama-1b", CONFIG)
    done = subprocess.run([sys.executable, "-c", LIBRARIES], cwd=ROOT, capture_output=True, text=True, check=True)
    baseline = int(done.stdout.split()[-1])
    reports: dict[str, Report] = {}
    wanted = [name for name in ROWS if given.only in name]
    with contextlib.suppress(KeyboardInterrupt):  # what is there is printed, and what is not is said
        for name in wanted:
            reports[name] = build(name, checkpoint, folder, given.cache or folder / "cache")
            print(" | ".join(cells(name, reports[name].passes[-1], baseline)), file=sys.stderr, flush=True)
    print(page(reports, baseline))
    missing = [name for name in wanted if name not in reports]
    if missing:
        print(f"\nNot measured, the script was interrupted: {'; '.join(missing)}.")


def page(reports: dict[str, Report], baseline: int) -> str:
    first = next(iter(reports.values()))
    layer, batch = layer_bytes(CONFIG), activation_bytes(CONFIG)
    allowed = layer + batch + ALLOWED
    rows = [cells("load, and its comparison with transformers", first.passes[0], baseline)]
    rows += [
        cells(f"quantize int4, {name}{', layers 0 and 1' if len(ROWS[name]) > 1 else ''}", report.passes[-1], baseline)
        for name, report in reports.items()
    ]
    steps = {name: report.passes[-1].peak_bytes for name, report in reports.items()}
    over = [name for name, peak in steps.items() if peak > LIMIT]
    above = [name for name, peak in steps.items() if peak - baseline > allowed]
    versions = ", ".join(
        f"{name} {first.versions[name]}" for name in ("torch", "nvidia-modelopt") if name in first.versions
    )
    return f"""# Peak memory of a billion parameters

Made by `python examples/results/memory.py > docs/results/memory.md` on {datetime.datetime.now(datetime.UTC):%Y-%m-%d}, on
{first.machine.title}, shared with other work; {versions}.

A random checkpoint of the shape of Llama-3.2-1B, {first.parameters / 1e9:.2f} billion parameters in bfloat16 in
{len(list(_shards(CONFIG, LAYERS_A_SHARD)))} shards; int4 in blocks of 32, the head left in float, {SAMPLES} sequences of {LENGTH} tokens in batches of
{BATCH}. Peak resident memory of the process, memory-mapped pages counted, sampled every 50 ms. A process with the libraries and
without a model takes {gib(baseline)} GiB: *above* is without these.

{table(["pass", "peak GiB", "above, GiB", "s"], rows)}

- Within {gib(LIMIT)} GiB: {"all of quantize that is measured" if not over else "not " + ", ".join(over)}.
- Allowed above the libraries: a decoder layer in float32 ({gib(layer)} GiB), what one batch has between its parts ({gib(batch)} GiB)
  and 1 GiB, {gib(allowed)} GiB together. {"Every quantize row keeps it." if not above else "Not kept by " + ", ".join(above) + "."}
- AWQ and GPTQ quantize the first two of 16 layers here, to save time. They go layer by layer as rtn does, so what
  the second needs is what each later one does.
- The model is {gib(4 * first.parameters)} GiB in float32, the type it is held in until `export`. `load` writes it tensor by tensor, and is
  compared with transformers' own model a layer at a time; its peak is transformers' loader, which maps the whole checkpoint in bfloat16."""


if __name__ == "__main__":
    main()
