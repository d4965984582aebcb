"""Versions of the installed distributions that a build rests on. Reads metadata; imports nothing."""

from __future__ import annotations

from functools import cache

DISTRIBUTIONS = (
    "openclaw-opt", "torch", "transformers", "nvidia-modelopt", "onnx", "onnx-ir", "onnxscript",
    "onnxruntime-gpu", "onnxruntime-genai-cuda", "tensorrt-rtx", "tensorrt", "numpy", "safetensors",
)  # fmt: skip


@cache
def version_of(distribution: str) -> str:
    """Installed version, or `not installed`."""
    import importlib.metadata  # takes longer than all of `check` may

    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def versions() -> dict[str, str]:
    """Distribution to version, for the report and the manifest."""
    return {name: version_of(name) for name in DISTRIBUTIONS}
