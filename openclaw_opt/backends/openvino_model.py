"""A portable graph as OpenVINO's own model: caches inside as state, attention without a guard that never acts.

    past_key_values.i.* → present.i.*     become a variable, [batch, kv_heads, 0, head_dim] after `reset_state`, whose rows
                                          `beam_idx` [batch] int32 picks, as OpenVINO's and Optimum's generation expect
    select(isnan(y), 0, y)                y, attention's output: the reader writes it for rows that see nothing, and every row
                                          of our masks sees its own token
    tile(unsqueeze(k))                    broadcast(unsqueeze(k)): OpenVINO knows shared keys by it, drops it, and runs attention
                                          with its cache as one operator

Inputs are then input_ids, attention_mask, position_ids and beam_idx, the output is logits: what optimum-intel exports has the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from openclaw_opt.artifacts import Graph
from openclaw_opt.errors import MachineError, VerificationError

ATTENTION = "ScaledDotProductAttention"
BATCH, TOKENS = 0, 2
"""Axes of a cache."""
SEQUENCE = 1
"""Axis of hidden states."""
ROWS = "rows"
BY_ELEMENT = ("Convert", "Multiply", "Divide", "Tanh")
"""What may stand between the head's product and the logits."""


def read(file: Path) -> Any:
    """An `openvino.Model` of ONNX or of OpenVINO's own files. Raises MachineError with OpenVINO's words."""
    import openvino as ov

    try:
        return ov.Core().read_model(file)
    except RuntimeError as error:
        raise MachineError(
            f"OpenVINO {ov.__version__} cannot read the model: {said(error)}", where=str(file)
        ) from error


def said(error: RuntimeError) -> str:
    """OpenVINO's last line, which says what is wrong; those above it name its source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "it says nothing"


def converted(graph: Graph) -> Any:
    """The model of a graph: of a decoder with its caches as state.

    Raises:
        VerificationError: attention or a cache is not of the form that our graphs have.
        MachineError: OpenVINO cannot read the graph.
    """
    model = read(graph.onnx)
    if graph.facts.task == "decoder":
        for attention in [node for node in model.get_ops() if node.get_type_name() == ATTENTION]:
            _drop_guard(attention)
            for repeated in (attention.input_value(1).get_node(), attention.input_value(2).get_node()):
                _share(repeated)
        _hold_caches(model, len(graph.facts.kv))
        _drop_last_convert(model)
    return model


def last_rows(model: Any) -> None:
    """Give the model an input `rows` [n] int64: positions whose logits are wanted, so that the head multiplies those alone."""
    import openvino as ov
    from openvino.opset13 import constant, gather, parameter

    node = model.output("logits").get_node().input_value(0).get_node()
    while node.get_type_name() in BY_ELEMENT:
        node = node.input_value(0).get_node()
    if node.get_type_name() != "MatMul":
        raise VerificationError(f"logits come from a {node.get_type_name()}, not from a MatMul")
    rows = parameter([-1], ov.Type.i64, name=ROWS)
    rows.output(0).get_tensor().add_names({ROWS})
    picked = gather(node.input_value(0), rows, constant(np.int64(SEQUENCE)))
    node.input(0).replace_source_output(picked.output(0))
    model.add_parameters([rows])
    model.validate_nodes_and_infer_types()


def _drop_guard(attention: Any) -> None:
    users = {port.get_node().get_type_name(): port.get_node() for port in attention.output(0).get_target_inputs()}
    if "IsNaN" in users and "Select" in users:
        for port in users["Select"].output(0).get_target_inputs():
            port.replace_source_output(attention.output(0))


def _share(repeated: Any) -> None:
    """Keys or values that every query head of a group reads: Reshape(Tile(x))."""
    from openvino.opset13 import broadcast, constant

    tile = repeated.input_value(0).get_node() if repeated.get_type_name() == "Reshape" else repeated
    if tile.get_type_name() != "Tile":
        return
    times = tile.input_value(1).get_node().get_data().astype(np.int64)
    wide = broadcast(tile.input_value(0), constant(times), broadcast_spec="BIDIRECTIONAL")
    for port in tile.output(0).get_target_inputs():
        port.replace_source_output(wide.output(0))


def _drop_last_convert(model: Any) -> None:
    """One from float32 to float32: OpenVINO drops it too, but gives the head's product its name."""
    logits = model.output("logits")
    convert = logits.get_node().input_value(0).get_node()
    if convert.get_type_name() == "Convert" and convert.get_input_element_type(0) == logits.get_element_type():
        product = convert.input_value(0)
        product.get_tensor().add_names({"logits"})
        logits.get_node().input(0).replace_source_output(product)
        model.validate_nodes_and_infer_types()


def _hold_caches(model: Any, layers: int) -> None:
    import openvino as ov
    from openvino._offline_transformations import apply_make_stateful_transformation
    from openvino.opset13 import constant, gather, parameter

    names = {f"past_key_values.{i}.{part}": f"present.{i}.{part}" for i in range(layers) for part in ("key", "value")}
    beam = parameter([-1], ov.Type.i32, name="beam_idx")
    beam.output(0).get_tensor().add_names({"beam_idx"})
    model.add_parameters([beam])
    axis = constant(np.int64(BATCH))
    for name in names:
        past = model.input(name)
        users = past.get_target_inputs()
        picked = gather(past.get_node(), beam, axis)
        for port in users:
            port.replace_source_output(picked.output(0))
    apply_make_stateful_transformation(model, names)
    _start_empty(model)
    model.validate_nodes_and_infer_types()
    left = [value for value in model.inputs if value.get_names() & names.keys()]
    if left:
        raise VerificationError(f"{len(left)} caches did not become state in OpenVINO's model")


def _start_empty(model: Any) -> None:
    """A variable that was never written holds no token of any sequence of the batch."""
    from openvino.opset13 import broadcast, concat, constant, gather, shape_of

    ids = model.input("input_ids").get_node()
    batch = gather(shape_of(ids, output_type="i64"), constant(np.array([BATCH])), constant(np.int64(0)))
    for node in model.get_ops():
        if node.get_type_name() != "ReadValue":
            continue
        sizes: list[Any] = [
            0 if axis == TOKENS else size.get_length() if size.is_static else None
            for axis, size in enumerate(node.get_output_partial_shape(0))
        ]
        parts = [batch if size is None else constant(np.array([size], np.int64)) for size in sizes]
        zero = constant(np.array(0, node.get_output_element_type(0).to_dtype()))
        node.set_arguments([broadcast(zero, concat(parts, axis=0)).output(0)])
