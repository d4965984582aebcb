"""load: the checkpoint in our canonical layout, every tensor accounted for."""

from __future__ import annotations

from typing import ClassVar, Literal

from openclaw_opt.artifacts import Checkpoint, Model
from openclaw_opt.passes import Done, Kind, Pass, Work


class Load(Pass):
    """Read the checkpoint, merge what is computed together (q, k and v; gate and up), and check it against the original."""

    kind: ClassVar[Kind] = "exact"
    tolerance: ClassVar[float] = 1e-4
    summary: ClassVar[str] = "read a safetensors checkpoint into the canonical layout"
    tools: ClassVar[tuple[str, ...]] = ("torch", "transformers", "safetensors")

    dtype: Literal["float32"] = "float32"
    """Type weights are held in until export; lossless for checkpoints in float32, bfloat16 and float16."""
    weights_only: bool = False
    """Accept PyTorch .bin/.pt files, read without unpickling objects (`torch.load(weights_only=True)`)."""

    def run(self, source: Checkpoint, work: Work) -> Done[Model]:
        from openclaw_opt.checkpoint import check_finite
        from openclaw_opt.models.load import load_model

        work.progress(0.1, "looking for NaN and Inf")
        check_finite(source)
        work.progress(0.4, "reading tensors")
        model, tensors, parameters = load_model(source, work.folder, self.dtype)
        return Done(
            model,
            changed=f"read {tensors} tensors, {parameters / 1e6:.2f} M parameters",
            count=tensors,
            details={"parameters": parameters},
        )
