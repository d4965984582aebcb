"""export: one portable ONNX graph of standard operators, everything that may vary left dynamic."""

from __future__ import annotations

from typing import ClassVar, Literal

from openclaw_opt.artifacts import FloatType, Graph, Model
from openclaw_opt.passes import PROOF, Complaint, Done, Kind, Pass, View, Work


class Export(Pass):
    """Write the model as ONNX (opset 23): dynamic batch, length and past; low-bit weights stay low-bit."""

    kind: ClassVar[Kind] = "exact"
    summary: ClassVar[str] = "write one portable ONNX graph, checked against PyTorch on prefill and on decode steps"
    tools: ClassVar[tuple[str, ...]] = ("torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime-gpu", "transformers")
    reads: ClassVar[tuple[str, ...]] = ("target",)

    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Type of what is not quantized. `auto`: float16 for a GPU, float32 for a CPU."""

    def dtype_for(self, backend: str) -> FloatType:
        """What `auto` stands for on that backend."""
        if self.dtype != "auto":
            return self.dtype
        return "float16" if backend == "tensorrt" else "float32"

    def check(self, view: View) -> list[Complaint]:
        dtype = self.dtype_for(view.backend)
        if view.backend == "onnxruntime" and not view.target.is_gpu and dtype != "float32":
            return [
                Complaint(
                    f"ONNX Runtime on a CPU computes {dtype} graphs in float32 after casting every tensor",
                    option="dtype",
                    fix="dtype: float32",
                )
            ]
        if dtype == "bfloat16":
            return [
                Complaint(
                    "a bfloat16 graph cannot be verified: ONNX Runtime has no bfloat16 kernels on a CPU",
                    option="dtype",
                    fix="dtype: float16",
                )
            ]
        return []

    def run(self, source: Model, work: Work) -> Done[Graph]:
        import onnx

        from openclaw_opt.models.export import export_graph

        dtype = self.dtype_for(work.backend)
        work.progress(0.1, f"writing ONNX in {dtype}")
        graph = export_graph(source, work.folder, dtype=dtype)
        nodes = len(onnx.load(str(graph.onnx), load_external_data=False).graph.node)
        return Done(
            graph,
            changed=f"wrote {nodes} nodes in {dtype}, opset {graph.facts.opset}",
            count=nodes,
            proof=self._proof(graph, source, work),
            details={"nodes": nodes},
        )

    @staticmethod
    def _proof(graph: Graph, source: Model, work: Work) -> Graph | None:
        """Half precision turns some roundings of quantized activations over, which no tolerance tells from a mistake."""
        from openclaw_opt.models.export import export_graph

        if graph.facts.dtype == "float32" or not graph.facts.quantized_activations:
            return None
        work.progress(0.6, "writing ONNX in float32 for the proof")
        return export_graph(source, work.folder / PROOF, dtype="float32")
