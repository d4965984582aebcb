"""The user's checkpoint: config.json and safetensors, read only, checked before anything is loaded.

`list_checkpoint` finds the files and checks every safetensors header, in milliseconds: a file that is cut off is found
here, not after minutes of work. `open_checkpoint` also records each file's sha256. `Checkpoint.read_tensor` maps one
tensor into memory at a time.

A pickle (.bin, .pt, .pth, .ckpt) can run code when it is read, so it is refused; with `weights_only` it is read by torch's
restricted unpickler, which builds tensors and nothing else.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openclaw_opt import artifacts
from openclaw_opt.checkpoint_files import INDEX, PICKLES, find_folder, find_weights, json_object, sha256, weight_map
from openclaw_opt.errors import RecipeError, nearest
from openclaw_opt.safetensors_header import AGAIN, TensorInfo, header

if TYPE_CHECKING:
    import torch

TORCH_WORDS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64", "F8_E4M3": "float8_e4m3fn"}
ASSETS = re.compile(
    r"config\.json|generation_config\.json|preprocessor_config\.json|.*token.*|vocab.*|merges\.txt|.*\.model|chat_template.*"
)

PIECE = 1 << 20  # elements


@dataclass(frozen=True)
class Listing:
    """A checkpoint's files, found and checked; nothing loaded, nothing hashed."""

    folder: Path
    config: dict[str, Any]
    weights: tuple[Path, ...]
    tensors: Mapping[str, TensorInfo]
    """Empty for a pickle: what it holds is known only by reading it."""

    @property
    def dtype(self) -> str:
        """The type that most bytes of the checkpoint are in, e.g. `bfloat16`."""
        taken: Counter[str] = Counter()
        for info in self.tensors.values():
            taken[info.dtype] += info.nbytes
        if not taken:
            return str(self.config.get("dtype") or self.config.get("torch_dtype") or "unknown")
        word = taken.most_common(1)[0][0]
        return TORCH_WORDS.get(word, word.lower())

    def assets_digest(self) -> str:
        """sha256 (hex) of the names and bytes of config and tokenizer files."""
        known = hashlib.sha256()
        for file in sorted(self.folder.iterdir()):
            if file.is_file() and ASSETS.fullmatch(file.name):
                known.update(f"{file.name}\0{sha256(file)}\0".encode())
        return known.hexdigest()


@dataclass(frozen=True)
class Checkpoint(artifacts.Checkpoint):
    """A checkpoint whose tensors can be read by name."""

    @property
    def architectures(self) -> tuple[str, ...]:
        """Class names that config.json gives, e.g. ("LlamaForCausalLM",)."""
        return tuple(self.config.get("architectures") or ())

    @property
    def model_type(self) -> str:
        """config.json's word for the family, e.g. `llama`; empty if it gives none."""
        return str(self.config.get("model_type") or "")

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor's header entry by name."""
        paths = [self.folder / file for file in self.files]
        if self._pickled:
            return {name: _described(tensor, paths[0]) for name, tensor in self._pickled.items()}
        return _tensors(self.folder, paths)

    def read_tensor(self, name: str) -> torch.Tensor:
        """The tensor as stored, its memory mapped from the file.

        Raises:
            RecipeError: there is no tensor of that name.
        """
        if name not in self.tensors:
            raise _missing(self, name)
        if self._pickled:
            return self._pickled[name]
        from safetensors import safe_open

        with safe_open(self.tensors[name].file, framework="pt", device="cpu") as opened:
            tensor: torch.Tensor = opened.get_tensor(name)
            return tensor

    @cached_property
    def _pickled(self) -> dict[str, torch.Tensor]:
        paths = [self.folder / file for file in self.files if file.endswith(PICKLES)]
        return {name: tensor for path in paths for name, tensor in _unpickle(path).items()}


def list_checkpoint(path_or_hub_id: str, *, weights_only: bool = False) -> Listing:
    """Find and check a checkpoint's files.

    Args:
        path_or_hub_id: a local folder, or `org/name` on the Hugging Face hub (downloaded once, then found on disk).
        weights_only: accept a pickle where there are no safetensors.

    Raises:
        RecipeError: nothing is there; a file is missing, cut off or not what it says; a pickle without permission.
        MachineError: the hub has to be asked and cannot be reached.
    """
    folder = find_folder(path_or_hub_id, weights_only)
    config = json_object(folder / "config.json")
    weights = find_weights(folder, weights_only)
    pickled = weights[0].suffix in PICKLES
    return Listing(folder, config, weights, {} if pickled else _tensors(folder, list(weights)))


def open_checkpoint(path_or_hub_id: str, *, weights_only: bool = False) -> Checkpoint:
    """`list_checkpoint`, with the sha256 of every weight file. Reads each file once."""
    found = list_checkpoint(path_or_hub_id, weights_only=weights_only)
    return Checkpoint(found.folder, found.config, {file.name: sha256(file) for file in found.weights})


def readable(checkpoint: artifacts.Checkpoint) -> Checkpoint:
    """The same checkpoint, with its tensors."""
    if isinstance(checkpoint, Checkpoint):
        return checkpoint
    return Checkpoint(checkpoint.folder, checkpoint.config, checkpoint.files)


def expect(checkpoint: artifacts.Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> frozenset[str]:
    """Check that the checkpoint holds these tensors; gives the names of those it holds beyond them.

    Raises:
        RecipeError: tensors are missing or have another shape; `mistakes` holds one for each.
    """
    opened = readable(checkpoint)
    mistakes = []
    for name, wanted in shapes.items():
        info = opened.tensors.get(name)
        if info is None:
            mistakes.append(_missing(opened, name))
        elif info.shape != tuple(wanted):
            what = f"tensor {name!r} has shape {list(info.shape)}, wanted {list(wanted)}"
            fix = "config.json and the weights must be of one model"
            mistakes.append(RecipeError(what, where=str(info.file), fix=fix))
    _raise_all(mistakes)
    return frozenset(opened.tensors) - frozenset(shapes)


def check_finite(checkpoint: artifacts.Checkpoint) -> None:
    """Look for NaN and infinities, one tensor in memory at a time.

    Raises:
        RecipeError: tensors hold some; `mistakes` holds one for each.
    """
    opened = readable(checkpoint)
    mistakes = []
    for name, info in opened.tensors.items():
        nan, infinite = _not_finite(opened.read_tensor(name))
        if nan or infinite:
            what = f"tensor {name!r} holds {nan} NaN and {infinite} infinite values of {math.prod(info.shape)}"
            mistakes.append(RecipeError(what, where=str(info.file), fix=AGAIN))
    _raise_all(mistakes)


def _tensors(folder: Path, files: list[Path]) -> dict[str, TensorInfo]:
    """Headers of all files; with an index, exactly the tensors that it names, from the shard that it names."""
    headers = {file.name: header(file) for file in files}
    if not (folder / INDEX).is_file():
        return {name: info for found in headers.values() for name, info in found.items()}
    for name, shard in weight_map(folder / INDEX).items():
        if name not in headers.get(shard, {}):
            raise RecipeError(f"tensor {name!r} is not in shard {shard!r}", where=str(folder / INDEX), fix=AGAIN)
    return {name: headers[shard][name] for name, shard in weight_map(folder / INDEX).items()}


def _unpickle(path: Path) -> dict[str, torch.Tensor]:
    import pickle

    import torch

    try:
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).strip().partition("\n")[0]
        fix = "convert it to safetensors where you trust it"
        raise RecipeError(f"cannot be read as plain weights: {reason}", where=str(path), fix=fix) from error
    state = held.get("state_dict", held) if isinstance(held, dict) else held
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise RecipeError("must hold a mapping from name to tensor", where=str(path))
    return state


def _described(tensor: torch.Tensor, file: Path) -> TensorInfo:
    word = str(tensor.dtype).removeprefix("torch.")
    dtype = next((ours for ours, theirs in TORCH_WORDS.items() if theirs == word), word.upper())
    return TensorInfo(dtype, tuple(tensor.shape), file, tensor.nbytes)


def _not_finite(tensor: torch.Tensor) -> tuple[int, int]:
    """How many NaN and how many infinities, looked at in pieces so that no large mask is made."""
    if not tensor.is_floating_point():
        return 0, 0
    from openclaw_opt.numerics.finite import is_finite

    nan = infinite = 0
    flat = tensor.reshape(-1)
    for begin in range(0, flat.numel(), PIECE):
        part = flat[begin : begin + PIECE]
        values = part.float() if part.element_size() == 1 else part  # float8 has no order
        if not is_finite(values):
            nan, infinite = nan + int(values.isnan().sum()), infinite + int(values.isinf().sum())
    return nan, infinite


def _missing(checkpoint: Checkpoint, name: str) -> RecipeError:
    return RecipeError(
        f"tensor {name!r} is missing", where=str(checkpoint.folder), fix=nearest(name, checkpoint.tensors)
    )


def _raise_all(mistakes: list[RecipeError]) -> None:
    if mistakes:
        first = mistakes[0]
        raise RecipeError(first.what, where=first.where, fix=first.fix, mistakes=mistakes)
