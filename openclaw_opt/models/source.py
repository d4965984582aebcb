"""The tensors of a checkpoint by name, whatever file each is in; memory-mapped, read one at a time."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from openclaw_opt.artifacts import Checkpoint
from openclaw_opt.errors import RecipeError


class TensorSource:
    """Where each tensor of `checkpoint` is."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.folder = checkpoint.folder
        self._files: dict[str, Path] = {}
        for file in sorted(path for path in checkpoint.files if path.endswith(".safetensors")):
            path = checkpoint.folder / file
            try:
                with safe_open(path, "pt") as opened:
                    self._files |= dict.fromkeys(opened.keys(), path)
            except SafetensorError as error:
                raise RecipeError(
                    f"not a whole safetensors file: {error}", where=str(path), fix="copy the file again"
                ) from error

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._files)

    def read(self, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """The tensor in its stored dtype; RecipeError where it is absent or not of `shape`."""
        if name not in self._files:
            raise RecipeError(f"tensor {name!r} is missing", where=str(self.folder))
        with safe_open(self._files[name], "pt") as opened:
            tensor: Tensor = opened.get_tensor(name)
        if shape is not None and tuple(tensor.shape) != shape:
            raise RecipeError(
                f"tensor {name!r} has shape {list(tensor.shape)}, its config.json needs {list(shape)}",
                where=str(self._files[name]),
                fix="config.json and the weights must be of the same model",
            )
        return tensor
