"""The header of a safetensors file, parsed and checked without reading a tensor.

Layout of a safetensors file: 8 bytes little-endian length N; N bytes of JSON, name → {dtype, shape, data_offsets}; the
tensors' bytes without gaps, offsets counted from the end of the JSON (https://github.com/huggingface/safetensors).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openclaw_opt.errors import RecipeError, nearest

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64, "C64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64,
}  # fmt: skip
"""Bits of an element, by safetensors' word for its type."""
LONGEST_HEADER = 100_000_000
AGAIN = "copy or download the file again"


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a header: safetensors' word for its type, shape, and the bytes it takes in `file`."""

    dtype: str
    shape: tuple[int, ...]
    file: Path
    nbytes: int


def header(path: Path) -> dict[str, TensorInfo]:
    """Parse and check the header of one safetensors file; the tensors' bytes are not read.

    Raises:
        RecipeError: the file is not whole; the message names the tensor and the bytes.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(LONGEST_HEADER, size - 8):
            raise RecipeError(
                f"not safetensors: header of {length} bytes in a file of {size}", where=str(path), fix=AGAIN
            )
        raw = file.read(length)
    found = {name: _entry(name, entry, path) for name, entry in _header_json(raw, path).items()}
    _check_layout({name: span for name, (_, span) in found.items()}, path, size - 8 - length)
    return {name: info for name, (info, _) in found.items()}


def _header_json(raw: bytes, path: Path) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands twice")
        return dict(pairs)

    try:
        entries = json.loads(raw, object_pairs_hook=once)
    except ValueError as error:
        raise RecipeError(f"header is not JSON: {error}", where=str(path), fix=AGAIN) from error
    if not isinstance(entries, dict):
        raise RecipeError(f"header must be a JSON object, got {type(entries).__name__}", where=str(path), fix=AGAIN)
    entries.pop("__metadata__", None)
    return entries


def _entry(name: str, entry: Any, path: Path) -> tuple[TensorInfo, tuple[int, int]]:
    """A tensor's facts, and where it begins and ends, counted from the end of the header."""
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(begin), int(end)]} if all(
            isinstance(size, int) and size >= 0 for size in shape
        ):
            pass
        case _:
            raise RecipeError(f"tensor {name!r} has a broken header entry", where=str(path), fix=AGAIN)
    if dtype not in BITS:
        raise RecipeError(f"tensor {name!r} has unknown dtype {dtype!r}", where=str(path), fix=nearest(dtype, BITS))
    needed = math.prod(shape) * BITS[dtype] // 8
    if end - begin != needed:
        what = f"tensor {name!r}, {dtype} {shape}, needs {needed} bytes, its offsets span {end - begin}"
        raise RecipeError(what, where=str(path), fix=AGAIN)
    return TensorInfo(dtype, tuple(shape), path, needed), (begin, end)


def _check_layout(spans: Mapping[str, tuple[int, int]], path: Path, size: int) -> None:
    """The tensors must fill the `size` bytes after the header, each byte once. Numbers are told as places in the file."""
    base, reached, before = path.stat().st_size - size, 0, ""
    for name, (begin, end) in sorted(spans.items(), key=lambda item: item[1]):
        problem = ""
        if begin < reached:
            problem = f"tensors {before!r} and {name!r} overlap"
        elif begin > reached:
            problem = f"no tensor has the bytes {base + reached} to {base + begin} before {name!r}"
        elif end > size:
            problem = f"tensor {name!r} ends at byte {base + end}, the file has {base + size}"
        if problem:
            raise RecipeError(problem, where=str(path), fix=AGAIN)
        reached, before = end, name
    if reached < size:
        raise RecipeError(f"{size - reached} bytes after the last tensor", where=str(path), fix=AGAIN)
