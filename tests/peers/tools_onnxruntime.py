"""ONNX Runtime's own quantizers on PyTorch's export of the checkpoint, run by ONNX Runtime; the head stays float by its node's name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from accuracy_worker import Arrays, Made, Run, Task
from tools_torch import head, load

INPUTS = {
    "decoder": ("input_ids", "attention_mask"),
    "encoder": ("input_ids", "attention_mask", "token_type_ids"),
    "vision": ("pixel_values",),
}


def exported(task: Task) -> Path:
    """The float graph, through ONNX Runtime's own preparation for its quantizers; made once a task."""
    import torch
    from onnxruntime.quantization.shape_inference import quant_pre_process

    raw, part, ready = task.work / "raw.onnx", task.work / "float.onnx", task.folder / "float.onnx"
    if ready.is_file():
        return ready
    model, names = load(task), INPUTS[task.kind]

    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *inputs: Any) -> Any:
            more = {"use_cache": False} if task.kind == "decoder" else {}
            given = self.model(**dict(zip(names, inputs, strict=True)), **more)
            return given.last_hidden_state if task.kind == "encoder" else given.logits

    sample = task.samples("evaluation")[0]
    axes = (
        {0: torch.export.Dim.DYNAMIC}
        if task.kind == "vision"
        else {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    )
    two = tuple(torch.from_numpy(np.concatenate([sample[name]] * 2)) for name in names)
    torch.onnx.export(
        Wrapped().eval(), two, str(raw), input_names=list(names), output_names=["output"], dynamo=True, external_data=False,
        opset_version=21, dynamic_shapes=(tuple(axes for _ in names),), optimize=True,
    )  # fmt: skip
    quant_pre_process(str(raw), str(part), skip_symbolic_shape=True)
    part.rename(ready)
    return ready


def constants(model: Any) -> dict[str, tuple[int, ...]]:
    return {one.name: tuple(one.dims) for one in model.graph.initializer}


def targets(file: Path, task: Task) -> tuple[list[str], list[str], int]:
    """Nodes that multiply with a weight, those that stay float (the head is the last), and the numbers in the first."""
    import onnx

    model = onnx.load(str(file))
    known = constants(model)
    nodes = [n for n in model.graph.node if n.op_type in ("MatMul", "Gemm", "Conv") and n.input[1] in known]
    nodes = [n for n in nodes if len(known[n.input[1]]) > 1]
    kept = [nodes.pop()] if head(task) != ("pooler",) else []
    nodes = [n for n in nodes if "pooler" not in n.name]
    weights = sum(int(np.prod(known[n.input[1]])) for n in nodes)
    return [n.name for n in nodes], [n.name for n in kept], weights


def parameters(file: Path) -> int:
    import onnx

    return sum(int(np.prod(shape)) for shape in constants(onnx.load(str(file))).values() if shape)


def runner(file: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.x64quantprecision", "1")  # no saturating int16 on CPUs without VNNI
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    wanted = {one.name for one in session.get_inputs()}
    return lambda sample: session.run(None, {name: value for name, value in sample.items() if name in wanted})[0]


class Reader:
    """Calibration samples as ONNX Runtime's quantizers ask for them."""

    def __init__(self, samples: list[Arrays], wanted: set[str]) -> None:
        self.rows = [{name: value for name, value in one.items() if name in wanted} for one in samples]
        self.place = 0

    def get_next(self) -> Arrays | None:
        self.place += 1
        return self.rows[self.place - 1] if self.place <= len(self.rows) else None

    def rewind(self) -> None:
        self.place = 0

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Any:
        return iter(self.rows)


def reader(file: Path, task: Task, *, padded: bool = False) -> Reader:
    import onnx

    return Reader(task.samples("calibration", padded=padded), {one.name for one in onnx.load(str(file)).graph.input})


def finished(float_file: Path, file: Path, task: Task, **extra: Any) -> Made:
    names, _, weights = targets(float_file, task)
    return Made(runner(file), parameters(float_file), len(names), weights, extra)


def nbits(block: int, symmetric: bool, algorithm: str = "default") -> Callable[[Task], Made]:
    """MatMulNBitsQuantizer; kernels that keep activations in float32."""

    def make(task: Task) -> Made:
        import onnx
        from onnxruntime.quantization import matmul_nbits_quantizer as tool

        ready = exported(task)
        _, kept, _ = targets(ready, task)
        config = {
            "default": lambda: None,
            "hqq": lambda: tool.HQQWeightOnlyQuantConfig(block_size=block, bits=4),
            "k_quant": lambda: tool.KQuantWeightOnlyQuantConfig(),
            "gptq": lambda: tool.GPTQWeightOnlyQuantConfig(reader(ready, task), block_size=128),
            "gptq-actorder-mse": lambda: tool.GPTQWeightOnlyQuantConfig(
                reader(ready, task), block_size=128, actorder=True, mse=True
            ),
        }[algorithm]()
        quantizer = tool.MatMulNBitsQuantizer(
            onnx.load(str(ready)), block_size=block, is_symmetric=symmetric, accuracy_level=1, nodes_to_exclude=kept, algo_config=config
        )  # fmt: skip
        if algorithm.startswith("gptq"):  # its nodes are told to stay float by their configuration alone
            given = quantizer._generate_q4_node_config
            quantizer._generate_q4_node_config = lambda: given() | dict.fromkeys(kept, "fp32")
        quantizer.process()
        out = task.work / "low.onnx"
        quantizer.model.save_model_to_file(str(out), use_external_data_format=False)
        return finished(ready, out, task)

    return make


def static(method: str, **more: Any) -> Callable[[Task], Made]:
    """quantize_static, QDQ, a scale a channel of weights; activations with a zero point, which is its default."""

    def make(task: Task) -> Made:
        from onnxruntime import quantization as tool

        ready, out = exported(task), task.work / "low.onnx"
        names, _, _ = targets(ready, task)
        tool.quantize_static(
            str(ready), str(out), reader(ready, task, padded=method != "MinMax"), quant_format=tool.QuantFormat.QDQ, per_channel=True, nodes_to_quantize=names,
            calibrate_method=getattr(tool.CalibrationMethod, method), activation_type=tool.QuantType.QUInt8, weight_type=tool.QuantType.QInt8,
            extra_options={"ActivationSymmetric": False, "WeightSymmetric": True, **more},
        )  # fmt: skip
        return finished(ready, out, task)

    return make


def dynamic(everything: bool = False) -> Callable[[Task], Made]:
    """quantize_dynamic, a scale a channel of weights; `everything` is its own choice of nodes, an embedding with them."""

    def make(task: Task) -> Made:
        from onnxruntime import quantization as tool

        ready, out = exported(task), task.work / "low.onnx"
        names, _, _ = targets(ready, task)
        chosen = {} if everything else {"nodes_to_quantize": names}
        per_channel = not everything
        tool.quantize_dynamic(str(ready), str(out), per_channel=per_channel, weight_type=tool.QuantType.QInt8, **chosen)
        return finished(ready, out, task)

    return make


def untouched(task: Task) -> Made:
    ready = exported(task)
    return Made(runner(ready), parameters(ready), 0, 0)


def fused(low: bool) -> Callable[[Task], Made]:
    """An encoder through ONNX Runtime's transformer optimizer, which knows the old exporter's attention; `low`: then quantize_dynamic."""

    def make(task: Task) -> Made:
        import torch
        from onnxruntime.quantization import QuantType, quantize_dynamic
        from onnxruntime.transformers import optimizer
        from tools_torch import linears, parameters

        model, names = load(task), INPUTS["encoder"]
        model.set_attn_implementation("eager")

        class Wrapped(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def forward(self, *inputs: Any) -> Any:
                return self.model(**dict(zip(names, inputs, strict=True))).last_hidden_state

        sample, raw, ready, out = (
            task.samples("evaluation")[0],
            *(task.work / f"{word}.onnx" for word in ("raw", "fused", "low")),
        )
        two = tuple(torch.from_numpy(np.concatenate([sample[name]] * 2)) for name in names)
        torch.onnx.export(
            Wrapped().eval(), two, str(raw), input_names=list(names), output_names=["output"], dynamo=False, opset_version=17,
            dynamic_axes={name: {0: "batch", 1: "length"} for name in (*names, "output")},
        )  # fmt: skip
        heads, width = model.config.num_attention_heads, model.config.hidden_size
        made = optimizer.optimize_model(str(raw), model_type="bert", num_heads=heads, hidden_size=width, opt_level=0)
        if not made.get_fused_operator_statistics()["Attention"]:
            raise RuntimeError("ONNX Runtime's optimizer fused no attention")
        made.save_model_to_file(str(ready))
        layers = linears(model, task)
        weights = sum(one.weight.numel() for one in layers.values())
        if not low:
            return Made(runner(ready), parameters(model), 0, 0)
        more = {"extra_options": {"DefaultTensorType": 1}}
        quantize_dynamic(str(ready), str(out), per_channel=True, weight_type=QuantType.QInt8, **more)
        return Made(runner(out), parameters(model), len(layers), weights)

    return make


ROWS = {
    "fused": fused(low=False),
    "fused-dynamic": fused(low=True),
    "float32": untouched,
    "rtn-32": nbits(32, True),
    "rtn-128": nbits(128, True),
    "rtn-asym-32": nbits(32, False),
    "rtn-asym-128": nbits(128, False),
    "hqq-32": nbits(32, False, "hqq"),
    "hqq-128": nbits(128, False, "hqq"),
    "k-quant-32": nbits(32, False, "k_quant"),
    "gptq-32": nbits(32, True, "gptq"),
    "gptq-asym-32": nbits(32, False, "gptq"),
    "gptq-order-mse-32": nbits(32, True, "gptq-actorder-mse"),
    "gptq-128": nbits(128, True, "gptq"),
    "static-minmax": static("MinMax"),
    "static-entropy": static("Entropy"),
    "static-percentile": static("Percentile"),
    "dynamic": dynamic(),
    "dynamic-defaults": dynamic(True),
}
