"""Which files a checkpoint is: a local folder or a hub id, one file or shards with an index, safetensors or a pickle."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from openclaw_opt.errors import MachineError, RecipeError
from openclaw_opt.safetensors_header import AGAIN

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
PICKLE_INDEX = "pytorch_model.bin.index.json"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
CHUNK = 1 << 24


def find_folder(path_or_hub_id: str, weights_only: bool) -> Path:
    """The local folder, downloaded if it is a hub id. Errors: `checkpoint.list_checkpoint`."""
    folder = Path(path_or_hub_id).expanduser()
    if folder.is_dir():
        return folder.absolute()
    if folder.exists():
        raise RecipeError(f"{path_or_hub_id!r} is a file; a checkpoint is a folder", fix=f"use {str(folder.parent)!r}")
    if not HUB_ID.fullmatch(path_or_hub_id):
        raise RecipeError(
            f"no folder {path_or_hub_id!r}",
            fix="a folder that holds config.json and model.safetensors, or a hub id `org/name`",
        )
    return _from_hub(path_or_hub_id, weights_only)


def _from_hub(name: str, weights_only: bool) -> Path:
    """Download what a checkpoint is made of; what is on disk already is not fetched again."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    wanted = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"] + [f"*{end}" for end in PICKLES if weights_only]
    asked = f"no folder {name!r} here, and as a hub id"
    try:
        return Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=["*/*"]))
    except GatedRepoError as error:
        raise RecipeError(
            f"{asked} it asks for a licence first", fix=f"accept it at https://huggingface.co/{name}, `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise RecipeError(
            f"{asked} it does not exist, or is private", fix="check the name, or `hf auth login`"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise MachineError(
            f"{asked} it is not on this disk and the hub cannot be reached ({type(error).__name__})",
            fix=f"`hf download {name}` where there is a network, or name a local folder",
        ) from error


def sha256(path: Path) -> str:
    """sha256 (hex) of a file, read in pieces."""
    known = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            known.update(chunk)
    return known.hexdigest()


def json_object(file: Path) -> dict[str, Any]:
    """The file's JSON object; RecipeError if there is none."""
    if not file.is_file():
        raise RecipeError(
            f"no {file.name}", where=str(file.parent), fix="name the folder that holds the checkpoint's files"
        )
    try:
        value = json.loads(file.read_bytes())
    except ValueError as error:
        raise RecipeError(f"not JSON: {error}", where=str(file), fix=AGAIN) from error
    if not isinstance(value, dict):
        raise RecipeError(f"must hold a JSON object, got {type(value).__name__}", where=str(file))
    return value


def find_weights(folder: Path, weights_only: bool) -> tuple[Path, ...]:
    """The weight files, by the names that transformers gives them."""
    if (folder / INDEX).is_file():
        return _shards(folder / INDEX)
    if (folder / SINGLE).is_file():
        return (folder / SINGLE,)
    pickles = sorted(file for file in folder.iterdir() if file.suffix in PICKLES and file.name != "training_args.bin")
    if pickles and not any(folder.glob("*.safetensors")):
        return _pickles(folder, pickles, weights_only)
    there = sorted(file.name for file in folder.iterdir()) or ["nothing"]
    more = f" and {len(there) - 8} more" if len(there) > 8 else ""
    raise RecipeError(f"no {SINGLE} and no {INDEX}; the folder holds {', '.join(there[:8])}{more}", where=str(folder))


def _pickles(folder: Path, pickles: list[Path], weights_only: bool) -> tuple[Path, ...]:
    names = ", ".join(file.name for file in pickles)
    if not weights_only:
        raise RecipeError(
            f"weights are pickles ({names}), which can run code when they are read",
            where=str(folder),
            fix="convert them to safetensors, or `load: {weights_only: true}`",
        )
    if (folder / PICKLE_INDEX).is_file():
        return _shards(folder / PICKLE_INDEX)
    whole = [file for file in pickles if file.name == "pytorch_model.bin"] or pickles
    if len(whole) > 1:
        raise RecipeError(f"several pickles ({names}) and no {PICKLE_INDEX}", where=str(folder), fix="keep one")
    return tuple(whole)


def weight_map(index: Path) -> dict[str, str]:
    """Tensor name to shard name."""
    table = json_object(index).get("weight_map")
    if not isinstance(table, dict) or not table or not all(isinstance(name, str) for name in table.values()):
        raise RecipeError("no `weight_map` from tensor to file", where=str(index), fix=AGAIN)
    return table


def _shards(index: Path) -> tuple[Path, ...]:
    held = Counter(weight_map(index).values())
    for name, count in sorted(held.items()):
        if Path(name).name != name:
            raise RecipeError(f"shard {name!r} must be a name in the same folder", where=str(index))
        if not (index.parent / name).is_file():
            raise RecipeError(
                f"shard {name!r} is missing; {count} tensors are in it", where=str(index), fix="download it too"
            )
    return tuple(index.parent / name for name in sorted(held))
