"""A safetensors file written one tensor at a time: the bytes that the library writes when it has all of them in memory.

Layout (https://huggingface.co/docs/safetensors): the header's length as a little-endian uint64, the header in JSON, padded with
spaces to a multiple of 8, the numbers. Tensors are ordered by type, the widest first, so that each is aligned, then by name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

WORDS = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
}
"""The library's own words and order, the last type first in a file."""
RANKS = {dtype: rank for rank, dtype in enumerate(WORDS)}


Read = Callable[[str], Iterable[Tensor]]
"""A tensor's numbers by its name, whole or in pieces along the first axis."""


def write_tensors(file: Path, entries: Mapping[str, Tensor], read: Read) -> None:
    """Write `file`.

    Args:
        entries: a tensor of the right type and shape for each name; its numbers are not looked at, it may be on the meta device.
        read: called once for each name, in the order of the file.

    Raises:
        ValueError: what `read` gives is not what `entries` says.
    """
    names = sorted(entries, key=lambda name: (-RANKS[entries[name].dtype], name))
    with file.open("wb") as opened:
        opened.write(_header(entries, names))
        for name in names:
            left = entries[name].numel()
            for piece in read(name):
                if piece.dtype != entries[name].dtype:
                    raise ValueError(f"{name} is {piece.dtype}, not {entries[name].dtype}")
                opened.write(raw(piece).numpy().data)
                left -= piece.numel()
            if left:
                raise ValueError(f"{name} is not of shape {[*entries[name].shape]}")


def raw(tensor: Tensor) -> Tensor:
    """A tensor's bytes, uint8 [bytes]."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _header(entries: Mapping[str, Tensor], names: list[str]) -> bytes:
    table, start = {}, 0
    for name in names:
        entry = entries[name]
        end = start + entry.numel() * entry.element_size()
        table[name] = {"dtype": WORDS[entry.dtype], "shape": list(entry.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
