"""What a user can get wrong, each by the command line a user types: the whole message, the exit code, and nothing left behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from openclaw_opt.cli import main
from openclaw_opt.interrupts import SIGNALS
from openclaw_opt.publish import locked

Write = Callable[..., Path]
Say = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def say(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cache: Path, tmp_path: Path
) -> Iterator[Say]:
    """Run a verb as the console script does: its exit code, and what it says on standard error with the test's folder as TMP."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}

    def run(verb: str, file: Path, output: Path | None = None) -> tuple[int, str]:
        folders = ["--cache", str(cache), "-o", str(output or tmp_path / "out")] if verb == "build" else []
        monkeypatch.setattr(sys, "argv", ["openclaw-opt", verb, "--recipe", str(file), *folders])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), capsys.readouterr().err.replace(str(tmp_path), "TMP")

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


# --- the recipe: found by check, and by build before it does anything

RECIPES = {
    "unknown key": (
        ("target: host", "tagret: l4\ntarget: host"),
        "error: TMP/tiny.yaml:3: unknown key 'tagret'\n  fix: did you mean 'target'?\n",
    ),
    "wrong type": (
        ("samples: 16", "samples: many"),
        "error: TMP/tiny.yaml:5: samples: input should be a valid integer, got 'many'\n",
    ),
    "a word for a list": (
        ("metrics: [perplexity, size]", "metrics: perplexity"),
        "error: TMP/tiny.yaml:12: metrics: input should be a list; got 'perplexity'\n",
    ),
    "wrong order": (
        ("  - export\n  - fuse\n", "  - fuse\n  - export\n"),
        "error: TMP/tiny.yaml:9: pass `fuse` takes a Graph, but `quantize` before it gives a Model\n"
        "  fix: put `fuse` after a pass that gives a Graph\n"
        "TMP/tiny.yaml:10: pass `export` takes a Model, but `fuse` before it gives a Graph\n"
        "  fix: put `export` after a pass that gives a Model\n",
    ),
    "unknown target": (
        ("target: host", "target: rtx4900"),
        "error: TMP/tiny.yaml:3: unknown target 'rtx4900'\n  fix: did you mean 'rtx4090'?\n",
    ),
    "unknown format": (
        ("format: int8", "format: int88"),
        "error: TMP/tiny.yaml:8: format: 'int88' is not legal\n  fix: did you mean 'int8'?\n",
    ),
    "unknown pass": (
        ("  - fuse\n", "  - fues\n"),
        "error: TMP/tiny.yaml:10: unknown pass 'fues'\n  fix: did you mean 'fuse'?\n",
    ),
    "calibration longer than the context": (
        ("samples: 16, length: 64", "samples: 16, length: 65"),
        "error: TMP/tiny.yaml:5: calibration sequences of 65 tokens are longer than the model's context of 64\n  fix: length: 64\n",
    ),
    "evaluation longer than the engine's cache": (
        ("  - fuse\n", "  - fuse: {context: 40}\n"),
        "error: TMP/tiny.yaml:6: evaluation sequences of 48 tokens are longer than the context that `fuse` gives the engine of 40\n"
        "  fix: length: 40\n",
    ),
    "a cache too short to verify": (
        ("  - fuse\n  - build\nmetrics: [perplexity, size]\nbudgets:\n  perplexity.recovery: \">= 0.5\"\n",
         "  - fuse: {context: 7}\n  - build\nmetrics: [size]\n"),
        "error: TMP/tiny.yaml:10: fuse: context 7 is less than the 8 tokens that verification steps through\n  fix: context: 8\n"
        "TMP/tiny.yaml:6: evaluation sequences of 48 tokens are longer than the context that `fuse` gives the engine of 7\n"
        "  fix: length: 7\n",
    ),
    "missing checkpoint": (
        None,
        "error: TMP/tiny.yaml:2: model TMP/nowhere: no folder 'TMP/nowhere'\n"
        "  fix: a folder that holds config.json and model.safetensors, or a hub id `org/name`\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("verb", ["check", "build"])
def test_recipes(name: str, verb: str, write_recipe: Write, say: Say, tiny_llama: Path, tmp_path: Path) -> None:
    change, told = RECIPES[name]
    file = write_recipe(change or (str(tiny_llama), str(tmp_path / "nowhere")))
    assert say(verb, file) == (2, told)
    assert not (tmp_path / "out").exists()


# --- the checkpoint


def put_nan(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def other_architecture(folder: Path) -> None:
    config = folder / "config.json"
    config.write_text(config.read_text().replace("LlamaForCausalLM", "LlamaForCausalLN"))


CHECKPOINT = "error: TMP/tiny.yaml:2: model TMP/checkpoint: "
CHECKPOINTS = {
    "truncated safetensors": (
        lambda folder: os.truncate(folder / "model.safetensors", 100_000),
        f"{CHECKPOINT}TMP/checkpoint/model.safetensors: tensor 'model.embed_tokens.weight' ends at byte 133216, the file has "
        "100000\n  fix: copy or download the file again\n",
    ),
    "missing tokenizer": (
        lambda folder: (folder / "tokenizer.json").unlink(),
        f"{CHECKPOINT}no tokenizer.json\n  fix: save the checkpoint with a fast tokenizer beside it\n",
    ),
    "unsupported architecture": (
        other_architecture,
        f"{CHECKPOINT}config.json: architecture 'LlamaForCausalLN' is not supported\n"
        "  fix: did you mean 'LlamaForCausalLM'? supported: BertForMaskedLM, BertModel, GPT2LMHeadModel, Gemma2ForCausalLM, "
        "Gemma3ForCausalLM, LlamaForCausalLM, MistralForCausalLM, Phi3ForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, "
        "ResNetForImageClassification, ViTForImageClassification\n",
    ),
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        f"{CHECKPOINT}no model.safetensors and no model.safetensors.index.json; the folder holds config.json, "
        "generation_config.json, tokenizer.json, tokenizer_config.json\n",
    ),
    "a pickle": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        f"{CHECKPOINT}weights are pickles (pytorch_model.bin), which can run code when they are read\n"
        "  fix: convert them to safetensors, or `load: {weights_only: true}`\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("verb", ["check", "build"])
def test_checkpoints(name: str, verb: str, write_recipe: Write, say: Say, tmp_path: Path) -> None:
    spoil, told = CHECKPOINTS[name]
    file = write_recipe(copy=True)
    spoil(tmp_path / "checkpoint")
    assert say(verb, file) == (2, told)
    assert not (tmp_path / "out").exists()


def test_nan_weights(write_recipe: Write, say: Say, tmp_path: Path) -> None:
    file = write_recipe(copy=True)
    put_nan(tmp_path / "checkpoint")
    told = (
        "error: TMP/checkpoint/model.safetensors: tensor 'model.layers.1.mlp.up_proj.weight' holds 1 NaN and 0 infinite values "
        "of 6144\n  fix: copy or download the file again\n"
    )
    assert say("check", file)[0] == 0, "check reads no weights"
    assert say("build", file) == (2, told)
    assert not (tmp_path / "out").exists()


# --- data: said before a pass has run

EMPTY = "source 'text' (split all) is empty\n  fix: choose another split or other files\n"
DATA = {
    "empty": ("\n", 5, EMPTY),
    "too short": (
        "<3> <4> <5>\n", 5,
        "source 'text' (split all) holds 0 sequences of 64 tokens (3 tokens in all), the recipe asks for 16\n"
        "  fix: use more text, or a smaller `length`\n",
    ),
    "a little too short": (
        " ".join(f"<{3 + i % 250}>" for i in range(700)), 5,
        "source 'text' (split all) holds 10 sequences of 64 tokens (700 tokens in all), the recipe asks for 16\n"
        "  fix: samples: 10\n",
    ),
    "empty evaluation": ("\n", 6, EMPTY),
}  # fmt: skip


@pytest.mark.parametrize("name", DATA)
def test_data(name: str, write_recipe: Write, say: Say, tmp_path: Path, corpora: dict[str, Path]) -> None:
    text, line, told = DATA[name]
    (tmp_path / "text.txt").write_text(text)
    role = "calibration" if line == 5 else "evaluation"
    file = write_recipe((str(corpora[role]), str(tmp_path / "text.txt")), ("algorithm: max", "algorithm: smoothquant"))
    assert say("build", file) == (2, f"error: TMP/tiny.yaml:{line}: {told}"), "no pass has run"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["check", "build"])
def test_overlapping_data(verb: str, write_recipe: Write, say: Say, tmp_path: Path, corpora: dict[str, Path]) -> None:
    shutil.copyfile(corpora["evaluation"], tmp_path / "copy.txt")
    code, told = say(verb, write_recipe((str(corpora["calibration"]), str(tmp_path / "copy.txt"))))
    first, _, fix = told.partition("\n")
    assert code == 2
    assert first.startswith(
        "error: TMP/tiny.yaml:6: calibration and evaluation data overlap: text (split all) and text (split all) share 1 document: "
        "sha256:"
    )
    assert fix == "  fix: evaluate on data that no pass has seen\n"


# --- the output folder


def test_a_foreign_file(write_recipe: Write, say: Say, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    told = (
        "error: TMP/out: the output folder holds files that no build of ours wrote: notes.txt\n"
        "  fix: move them away, or give another --output\n"
    )
    assert say("build", write_recipe()) == (2, told)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]


def test_an_output_that_is_a_file(write_recipe: Write, say: Say, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    assert say("build", write_recipe()) == (2, "error: TMP/out: the output folder is a file\n  fix: --output FOLDER\n")
    assert (tmp_path / "out").read_text() == "mine"


@pytest.fixture
def locked_folder(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder nobody may write to, root included, and what the system says about it."""
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    if os.geteuid() != 0:
        yield folder, "Permission denied"
        return
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("root may write anywhere, and mounting a read-only file system is not permitted here")
    yield folder, "Read-only file system"
    subprocess.run(["umount", "-l", str(folder)], check=False)


def test_an_output_that_cannot_be_written(write_recipe: Write, say: Say, locked_folder: tuple[Path, str]) -> None:
    folder, why = locked_folder
    told = f"error: TMP/locked/out: the output folder cannot be written: {why}\n  fix: --output FOLDER\n"
    assert say("build", write_recipe(), folder / "out") == (3, told)


def test_two_builds_into_one_folder(write_recipe: Write, say: Say, tmp_path: Path) -> None:
    told = (
        "error: TMP/out: another build is writing this folder\n  fix: wait for it, or give this one another --output\n"
    )
    with locked((tmp_path / "out").absolute()):
        assert say("build", write_recipe()) == (3, told)
