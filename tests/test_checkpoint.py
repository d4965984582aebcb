"""Checkpoints: what is found, what is refused, and the words it is refused with."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from openclaw_opt import artifacts
from openclaw_opt.checkpoint import check_finite, expect, list_checkpoint, open_checkpoint
from openclaw_opt.checkpoint_files import sha256
from openclaw_opt.errors import MachineError, RecipeError
from openclaw_opt.safetensors_header import header

AGAIN = "\n  fix: copy or download the file again"
WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b.weight": torch.ones(4, dtype=torch.bfloat16)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}))
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    return tmp_path


def raw_file(path: Path, entries: dict[str, Any] | bytes, data: bytes = b"") -> Path:
    """A safetensors file written byte by byte, so that it can be wrong."""
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(begin: int, end: int, dtype: str = "U8", shape: list[int] | None = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


def refusal(path: Path) -> str:
    """What `header` says, without the place and the remedy."""
    with pytest.raises(RecipeError) as caught:
        header(path)
    assert caught.value.where == str(path)
    assert caught.value.exit_code == 2
    return caught.value.what


def shard(folder: Path, weight_map: dict[str, str]) -> None:
    (folder / "model.safetensors").unlink()
    for name in ("model-1.safetensors", "model-2.safetensors"):
        key = "a.weight" if name == "model-1.safetensors" else "b.weight"
        save_file({key: WEIGHTS[key]}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_a_whole_checkpoint_is_described_hashed_and_read(folder: Path) -> None:
    checkpoint = open_checkpoint(str(folder))
    assert checkpoint.architectures == ("LlamaForCausalLM",)
    assert checkpoint.model_type == "llama"
    assert checkpoint.files == {"model.safetensors": sha256(folder / "model.safetensors")}
    assert {name: (info.dtype, info.shape, info.nbytes) for name, info in checkpoint.tensors.items()} == {
        "a.weight": ("F32", (2, 3), 24),
        "b.weight": ("BF16", (4,), 8),
    }
    for name, tensor in WEIGHTS.items():
        assert torch.equal(checkpoint.read_tensor(name), tensor)
        assert checkpoint.read_tensor(name).dtype == tensor.dtype


def test_what_our_header_reader_says_is_what_safetensors_says(folder: Path) -> None:
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as opened:
        theirs = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    assert {name: info.shape for name, info in header(folder / "model.safetensors").items()} == theirs


def test_listing_needs_no_torch_and_names_the_commonest_type(folder: Path) -> None:
    assert list_checkpoint(str(folder)).dtype == "float32"  # 24 bytes against bfloat16's 8
    code = (
        "import sys; from openclaw_opt.checkpoint import list_checkpoint; list_checkpoint(sys.argv[1]);"
        "assert not {'torch', 'safetensors', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)


def test_the_assets_digest_is_of_config_and_tokenizer_alone(folder: Path) -> None:
    before = list_checkpoint(str(folder)).assets_digest()
    (folder / "notes.md").write_text("hello")
    assert list_checkpoint(str(folder)).assets_digest() == before
    (folder / "tokenizer.json").write_text("{}")
    assert list_checkpoint(str(folder)).assets_digest() != before


def test_a_truncated_file_names_the_tensor_that_is_cut_off(folder: Path) -> None:
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-3])
    size = len(whole)
    with pytest.raises(RecipeError) as caught:
        list_checkpoint(str(folder))
    assert str(caught.value) == f"{file}: tensor 'b.weight' ends at byte {size}, the file has {size - 3}{AGAIN}"


@given(cut=st.integers(min_value=0))
def test_every_proper_prefix_of_a_file_is_refused(cut: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.getbasetemp() / "prefix.safetensors"
    save_file(WEIGHTS, file)
    whole = file.read_bytes()
    file.write_bytes(whole[: cut % len(whole)])
    with pytest.raises(RecipeError):
        header(file)


@pytest.mark.parametrize(
    ("entries", "size", "message"),
    [
        ({"x": entry(0, 4), "y": entry(2, 6)}, 6, "tensors 'x' and 'y' overlap"),
        ({"x": entry(0, 4), "y": entry(6, 8)}, 8, "no tensor has the bytes {4} to {6} before 'y'"),
        ({"x": entry(0, 4)}, 9, "5 bytes after the last tensor"),
        ({"x": entry(0, 4, "F33", [1])}, 4, "tensor 'x' has unknown dtype 'F33'"),
        ({"x": entry(0, 4, "F32", [2])}, 4, "tensor 'x', F32 [2], needs 8 bytes, its offsets span 4"),
        ({"x": {"dtype": "F32", "shape": [1]}}, 4, "tensor 'x' has a broken header entry"),
        ({"x": entry(0, 4, "F32", [-1])}, 4, "tensor 'x' has a broken header entry"),
        ({"x": [1, 2]}, 4, "tensor 'x' has a broken header entry"),
        (b"[]", 0, "header must be a JSON object, got list"),
        (b'{"x": 1, "x": 2}', 0, "header is not JSON: 'x' stands twice"),
        (b"{", 0, "header is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
    ],
)
def test_a_corrupt_header_is_refused(tmp_path: Path, entries: Any, size: int, message: str) -> None:
    file = raw_file(tmp_path / "x.safetensors", entries, bytes(size))
    base = file.stat().st_size - size
    assert refusal(file) == message.replace("{4}", str(base + 4)).replace("{6}", str(base + 6))


def test_a_file_that_is_not_safetensors_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    length = int.from_bytes(b"version ", "little")
    assert refusal(file) == f"not safetensors: header of {length} bytes in a file of 42"
    file.write_bytes(b"")
    assert refusal(file) == "not safetensors: header of 0 bytes in a file of 0"


def test_shards_are_read_through_the_index(folder: Path) -> None:
    shard(folder, {"a.weight": "model-1.safetensors", "b.weight": "model-2.safetensors"})
    checkpoint = open_checkpoint(str(folder))
    assert sorted(checkpoint.files) == ["model-1.safetensors", "model-2.safetensors"]
    assert torch.equal(checkpoint.read_tensor("b.weight"), WEIGHTS["b.weight"])


def test_a_missing_shard_is_named_with_what_is_in_it(folder: Path) -> None:
    shard(folder, {"a.weight": "model-1.safetensors", "b.weight": "model-2.safetensors"})
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(RecipeError) as caught:
        open_checkpoint(str(folder))
    index = folder / "model.safetensors.index.json"
    assert str(caught.value) == (
        f"{index}: shard 'model-2.safetensors' is missing; 1 tensors are in it\n  fix: download it too"
    )


def test_an_index_that_promises_what_the_shard_lacks_is_refused(folder: Path) -> None:
    shard(folder, {"a.weight": "model-2.safetensors", "b.weight": "model-2.safetensors"})
    with pytest.raises(RecipeError) as caught:
        open_checkpoint(str(folder))
    index = folder / "model.safetensors.index.json"
    assert str(caught.value) == f"{index}: tensor 'a.weight' is not in shard 'model-2.safetensors'{AGAIN}"


def test_a_shard_outside_the_folder_is_refused(folder: Path) -> None:
    shard(folder, {"a.weight": "../model-1.safetensors"})
    with pytest.raises(RecipeError, match=r"shard '\.\./model-1.safetensors' must be a name in the same folder"):
        open_checkpoint(str(folder))


def test_missing_and_wrongly_shaped_tensors_are_all_named(folder: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        expect(open_checkpoint(str(folder)), {"a.weight": (3, 2), "b.wieght": (4,), "b.weight": (4,)})
    file = folder / "model.safetensors"
    assert [str(mistake) for mistake in caught.value.mistakes] == [
        f"{file}: tensor 'a.weight' has shape [2, 3], wanted [3, 2]"
        "\n  fix: config.json and the weights must be of one model",
        f"{folder}: tensor 'b.wieght' is missing\n  fix: did you mean 'b.weight'?",
    ]


def test_tensors_beyond_those_expected_are_given_back(folder: Path) -> None:
    assert expect(open_checkpoint(str(folder)), {"a.weight": (2, 3)}) == {"b.weight"}


def test_reading_a_tensor_that_is_not_there_names_the_nearest(folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"tensor 'a\.wait' is missing\n  fix: did you mean 'a\.weight'\?"):
        open_checkpoint(str(folder)).read_tensor("a.wait")


def test_nan_and_infinity_are_counted_by_tensor(folder: Path) -> None:
    bad = torch.tensor([1.0, float("nan"), float("inf"), float("-inf")])
    fp8 = torch.tensor([1.0, float("nan")]).to(torch.float8_e4m3fn)
    save_file({"ok": torch.ones(2), "bad": bad, "fp8": fp8, "ids": torch.arange(3)}, folder / "model.safetensors")
    file = folder / "model.safetensors"
    checkpoint = open_checkpoint(str(folder))
    plain = artifacts.Checkpoint(checkpoint.folder, checkpoint.config, checkpoint.files)
    with pytest.raises(RecipeError) as caught:
        check_finite(plain)
    assert sorted(str(mistake) for mistake in caught.value.mistakes) == [
        f"{file}: tensor 'bad' holds 1 NaN and 2 infinite values of 4{AGAIN}",
        f"{file}: tensor 'fp8' holds 1 NaN and 0 infinite values of 2{AGAIN}",
    ]


def test_finite_weights_pass(folder: Path) -> None:
    check_finite(open_checkpoint(str(folder)))


class Explosion:
    """Makes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt"])
def test_a_pickle_is_refused_unless_the_recipe_says_so(folder: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(WEIGHTS, folder / name)
    with pytest.raises(RecipeError) as caught:
        list_checkpoint(str(folder))
    assert str(caught.value) == (
        f"{folder}: weights are pickles ({name}), which can run code when they are read"
        "\n  fix: convert them to safetensors, or `load: {weights_only: true}`"
    )
    checkpoint = open_checkpoint(str(folder), weights_only=True)
    assert torch.equal(checkpoint.read_tensor("a.weight"), WEIGHTS["a.weight"])
    assert checkpoint.tensors["b.weight"].dtype == "BF16"


def test_a_malicious_pickle_runs_nothing_even_with_permission(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"a": Explosion(folder / "ran")}, folder / "pytorch_model.bin", pickle_module=pickle)
    with pytest.raises(RecipeError, match="cannot be read as plain weights: Weights only load failed"):
        check_finite(open_checkpoint(str(folder), weights_only=True))
    assert not (folder / "ran").exists()


def test_safetensors_win_over_a_pickle_beside_them(folder: Path) -> None:
    torch.save(WEIGHTS, folder / "pytorch_model.bin")
    assert list(open_checkpoint(str(folder), weights_only=True).files) == ["model.safetensors"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "{folder}: no config.json\n  fix: name the folder that holds the checkpoint's files"),
        ("{", "{folder}/config.json: not JSON: Expecting property name enclosed in double quotes"),
        ("[]", "{folder}/config.json: must hold a JSON object, got list"),
    ],
)
def test_config_json_is_missing_or_broken(folder: Path, text: str | None, message: str) -> None:
    (folder / "config.json").unlink()
    if text is not None:
        (folder / "config.json").write_text(text)
    with pytest.raises(RecipeError) as caught:
        list_checkpoint(str(folder))
    assert str(caught.value).startswith(message.format(folder=folder))


def test_a_folder_without_weights_tells_what_it_holds(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    with pytest.raises(RecipeError) as caught:
        list_checkpoint(str(folder))
    assert str(caught.value) == (
        f"{folder}: no model.safetensors and no model.safetensors.index.json; "
        "the folder holds adapter_model.safetensors, config.json"
    )


def test_what_is_neither_a_folder_nor_a_hub_id(folder: Path) -> None:
    remedy = "\n  fix: a folder that holds config.json and model.safetensors, or a hub id `org/name`"
    with pytest.raises(RecipeError) as caught:
        list_checkpoint("/not/there")
    assert str(caught.value) == f"no folder '/not/there'{remedy}"
    with pytest.raises(RecipeError) as caught:
        list_checkpoint(str(folder / "config.json"))
    assert str(caught.value) == (f"'{folder}/config.json' is a file; a checkpoint is a folder\n  fix: use '{folder}'")


def test_a_hub_id_without_a_network_is_the_machines_fault(tmp_path: Path) -> None:
    code = (
        "import sys; from openclaw_opt.checkpoint import list_checkpoint; from openclaw_opt.errors import OptError\n"
        "try: list_checkpoint('nobody/nothing')\n"
        "except OptError as error: print(error); sys.exit(error.exit_code)"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": "/usr/bin", "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == MachineError.exit_code
    assert done.stdout == (
        "no folder 'nobody/nothing' here, and as a hub id it is not on this disk and the hub cannot be reached "
        "(LocalEntryNotFoundError)\n  fix: `hf download nobody/nothing` where there is a network, or name a local folder\n"
    )
