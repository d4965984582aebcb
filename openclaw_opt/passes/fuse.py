"""fuse: the portable graph in the form one runtime is fastest with. An exact rewrite, verified as such."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from openclaw_opt.artifacts import SECOND, Graph
from openclaw_opt.backends.engines import packaged
from openclaw_opt.models.spec import DecoderSpec
from openclaw_opt.passes import PROOF, Complaint, Done, Kind, Pass, View, Work
from openclaw_opt.targets import FASTEST

LEAST_CONTEXT = 8


class Fuse(Pass):
    """Lower the portable graph for the backend that will build it: fused attention with an in-place cache, fused norms."""

    kind: ClassVar[Kind] = "exact"
    summary: ClassVar[str] = (
        "lower the portable graph for the runtime that is to run it, verified step by step against itself"
    )
    tools: ClassVar[tuple[str, ...]] = ("onnx", "onnx-ir", "onnxruntime-gpu")
    reads: ClassVar[tuple[str, ...]] = ("target",)

    context: int | None = Field(None, gt=0)
    """Decoders: longest sequence, past and new tokens, the engine's cache holds. Default: the checkpoint's own limit."""
    accuracy_level: int | None = Field(None, ge=0, le=4)
    """ONNX Runtime, weight-only formats: 4 lets the kernel quantize activations to int8 inside a block (fastest; the default),
    0 computes in float32. The deviation of level 4 is measured by the build."""

    def check(self, view: View) -> list[Complaint]:
        from openclaw_opt.passes.quantize import Quantize

        found = []
        if self.context is not None and not isinstance(view.spec, DecoderSpec):
            found.append(Complaint(f"`context` has no effect on a {view.spec.task}: it has no cache", option="context"))
        if isinstance(view.spec, DecoderSpec) and self.context is not None and self.context > view.spec.context:
            found.append(
                Complaint(
                    f"context {self.context} is more than the {view.spec.context} tokens the checkpoint was made for",
                    option="context",
                    fix=f"context: {view.spec.context}",
                )
            )
        if self.context is not None and self.context < LEAST_CONTEXT:
            what = f"context {self.context} is less than the {LEAST_CONTEXT} tokens that verification steps through"
            found.append(Complaint(what, option="context", fix=f"context: {LEAST_CONTEXT}"))
        asked = [part for p in view.earlier if isinstance(p, Quantize) for part in p.parts(view.spec.task)]
        weight_only = view.backend == "onnxruntime" and any(part.row.weight_only for part in asked)
        if self.accuracy_level is not None and not weight_only:
            found.append(
                Complaint(
                    "`accuracy_level` only changes weight-only formats on ONNX Runtime",
                    option="accuracy_level",
                    fix="take it out",
                )
            )
        return found

    def ingredients(self, view: View) -> dict[str, Any]:
        """With `fastest`, whether OpenVINO is here decides whether the portable graph goes along for it."""
        return {"openvino": packaged("openvino").missing()} if view.backend == FASTEST else {}

    def run(self, source: Graph, work: Work) -> Done[Graph]:
        work.progress(0.2, f"lowering for {work.backend}")
        graph = self._lower(source, work)
        proof = self._proof(graph, work)
        fusions = graph.facts.fusions
        told = ", ".join(f"{count} {name}" for name, count in sorted(fusions.items()) if count)
        return Done(
            graph,
            changed=told or f"kept as it is: {_whose(work.backend)}",
            count=max(1, sum(fusions.values())),
            proof=proof,
            details={"fusions": fusions},
        )

    def _lower(self, source: Graph, work: Work) -> Graph:
        if work.backend == "tensorrt":
            from openclaw_opt.graph import to_tensorrt

            return to_tensorrt.lower(source, work.folder, self.context)
        from openclaw_opt.graph import ir_tools, to_onnxruntime

        if work.backend == "openvino":
            return ir_tools.copied(source, work.folder, self.context)
        if work.backend == FASTEST and not packaged("openvino").missing():
            ir_tools.copied(source, work.folder / SECOND, self.context)

        # GGUF is written from this graph and proven against it, so it must be exact; `fastest` chooses the level when it builds.
        level = self.accuracy_level
        if level is None:
            level = to_onnxruntime.FAST if work.backend == "onnxruntime" else to_onnxruntime.EXACT
        return to_onnxruntime.lower(source, work.folder, context=self.context, accuracy_level=level)

    def _proof(self, graph: Graph, work: Work) -> Graph | None:
        """Weight-only kernels at `accuracy_level` 4 round activations to int8; at 0 the same graph is exact."""
        if work.backend != "onnxruntime" or not graph.facts.fusions.get("MatMulNBits") or self.accuracy_level == 0:
            return None
        from openclaw_opt.graph import to_onnxruntime

        return to_onnxruntime.with_accuracy_level(graph, work.folder / PROOF, to_onnxruntime.EXACT)


def _whose(backend: str) -> str:
    """Who fuses a graph that goes through unchanged."""
    if backend == "openvino":
        return "OpenVINO takes the portable graph and fuses it when it compiles"
    return "encoders are fused by the runtime itself"
