"""The build log's layer table → kernels and receipt, on logs of real builds that were kept."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from openclaw_opt.artifacts import LayerFormat
from openclaw_opt.backends import trt_errors, trt_kernels, trt_log
from openclaw_opt.errors import MachineError, OptError, RecipeError, VerificationError

GOLDEN = Path(__file__).parent / "golden"
TOOL = "tensorrt_rtx 1.7.1.116"
PROFILES = ("prefill", "decode")
FP8_ON_AMPERE = (
    "Myelin ([pass.cpp:1500: run_passes] Cannot compile for target(s) sm86, because the model contains HW-specific "
    "datatypes: fp8_e4m3. In compileGraph at codeGenerator.cpp:2012)"
)
LINEARS = ("qkv", "o", "gate_up", "down")


def golden(name: str) -> trt_log.BuildLog:
    return trt_log.parse((GOLDEN / f"trt-log-{name}.txt").read_text().splitlines(), TOOL)


OLDER = [
    ("fp8", "1.6.1.120", (22, 14), (8253952, 8195584), "FP8 GEMM"),
    ("fp8", "1.5.0.114", (22, 14), (8253696, 8195584), "FP8 GEMM"),
    ("fp16", "1.4.0.76", (20, 12), (8258048, 8196096), "unknown"),
]


def older(kind: str, version: str) -> trt_log.BuildLog:
    """The log of the same graph (one layer, sm89), built by an older version."""
    text = gzip.decompress((GOLDEN / f"trt-log-{kind}-sm89.rtx-{version}.txt.gz").read_bytes()).decode()
    return trt_log.parse(text.splitlines(), f"tensorrt_rtx {version}")


def asked(kind: str) -> list[LayerFormat]:
    return [LayerFormat(name=f"layers.0.{name}", format=kind) for name in LINEARS]


def test_kernels_of_a_real_log() -> None:
    log = golden("fp8-sm89")
    prefill, decode = map(trt_kernels.kernel_row, trt_kernels.profile_layers(log, PROFILES, "e.plan"))
    assert (prefill.kernels, decode.kernels) == (22, 13)
    assert decode.by_type == {"gemm": 5, "kgen": 8}
    assert (prefill.activation_bytes, decode.activation_bytes) == (8253952, 8195584)
    assert decode.weight_bytes == 67216
    assert log.notes == ()
    gemm = next(one for one in log.kernels if one.nodes[:1] == ("layers.0.o.matmul",) and one.type == "gemm")
    assert ([one.dtype for one in gemm.inputs], [one.dtype for one in gemm.outputs]) == (["FP8"], ["Half"])
    assert gemm.weight(("FP8",)) == trt_log.Tensor("FP8", 64 * 64)


@pytest.mark.parametrize(("kind", "version", "kernels", "activation", "realised"), OLDER)
def test_logs_of_older_versions(
    kind: str, version: str, kernels: tuple[int, int], activation: tuple[int, int], realised: str
) -> None:
    log = older(kind, version)
    rows = [trt_kernels.kernel_row(one) for one in trt_kernels.profile_layers(log, PROFILES, "e.plan")]
    assert tuple(row.kernels for row in rows) == kernels
    assert tuple(row.activation_bytes for row in rows) == activation
    receipt = trt_log.receipt(log, asked("fp8"), PROFILES)
    assert {(row.realised, row.ok) for row in receipt} == {(realised, realised != "unknown")}
    assert not any("not been tried" in note for note in log.notes)


def test_a_table_without_weights_is_no_evidence() -> None:
    """TensorRT-RTX 1.4 lists no constants: a receipt from it would be a guess."""
    log = older("fp16", "1.4.0.76")
    assert log.notes == (
        "the layer table of tensorrt_rtx 1.4.0.76 shows no weights, so what a quantized layer runs in is not known",
    )
    assert trt_log.receipt(log, asked("fp8"), PROFILES)[0].why == "the build log of this version shows no weights"


@pytest.mark.parametrize(
    ("name", "kind", "realised"), [("fp8-sm89", "fp8", "FP8 GEMM"), ("int4-sm86", "int4", "Int4 weights")]
)
def test_receipt_of_a_real_log(name: str, kind: str, realised: str) -> None:
    rows = trt_log.receipt(golden(name), asked(kind), PROFILES)
    assert [(row.profile, row.layer) for row in rows] == [(p, f"layers.0.{n}") for p in PROFILES for n in LINEARS]
    assert {(row.ok, row.realised) for row in rows} == {(True, realised)}
    assert "holds" in rows[0].why


@pytest.mark.parametrize(
    ("name", "kind", "says"),
    [
        ("nvfp4-weight-only", "nvfp4", "expands the weights at every call"),
        ("mxfp8", "fp8", "reads ['Half'] with FP8 weights"),
        ("fp8-weight-only", "fp8", "reads ['Half'] with FP8 weights"),
    ],
)
def test_known_traps_are_not_realised(name: str, kind: str, says: str) -> None:
    (row,) = trt_log.receipt(golden(name), [LayerFormat(name="lin", format=kind)], ["main"])
    assert (row.ok, row.realised) == (False, "Half GEMM")
    assert says in row.why


def test_fp8_around_attention_is_not_realised() -> None:
    (row,) = trt_log.receipt(golden("fp8-attention"), [LayerFormat(name="attention", format="fp8")], ["main"])
    assert (row.ok, row.realised) == (False, "Half attention")
    assert row.why.endswith("reads ['Half', 'Half', 'Half']; 3 kernels around it quantize and dequantize for nothing")


def test_a_nameless_kernel_counts_for_the_layer_it_runs_in() -> None:
    def line(at: int, node: str) -> str:
        more = f"Metadata: [ONNX Layer: {node}]" if node else "Metadata: "
        return f"Name: k_myl0_{at}, LayerType: kgen, Inputs: [], Constants: [], Outputs: [], TacticName: t, StreamId: 0, {more}"

    nodes = [
        "mask",
        "layers.0.a/Add",
        "",
        "layers.0.b/Add",
        "",
        "layers.1.a/Add",
        "",
        "layers.1.b/Add",
        "",
        "head/MatMul",
    ]
    log = trt_log.parse([line(at, node) for at, node in enumerate(nodes)], TOOL)
    (table,) = trt_kernels.profile_layers(log, ["main"], "e.plan")
    named = [kernel.layer for kernel in table.kernels]
    assert named == ["", *["layers.0"] * 3, "", *["layers.1"] * 3, "", ""]
    assert trt_kernels.kernel_row(table).per_layer == 3


def test_a_layer_in_half_precision_and_a_layer_that_is_not_there_are_not_realised() -> None:
    layers = [LayerFormat(name="head", format="fp8"), LayerFormat(name="layers.0.q", format="fp8")]
    head, ghost = trt_log.receipt(golden("fp8-sm89"), layers, ["prefill"])
    assert (head.ok, head.realised, head.why.split(";")[0]) == (
        False,
        "Half GEMM",
        "gemm head.matmul_myl0_21 computes in Half",
    )
    assert (ghost.ok, ghost.realised) == (False, "unknown")


def test_an_int8_convolution_is_called_one() -> None:
    int8 = "Dimensions: [{}], Strides: [1], StrideOrder: [0], Datatype: Int8, Format: (Linear)"
    line = (
        f"Name: conv/Conv_myl0_2, LayerType: correlation, Inputs: [ {{ Name: q, {int8.format('-1,16,16,16')} }}], Constants: "
        f"[ {{ Name: w, {int8.format('32,16,3,3')} }}], Outputs: [], TacticName: t, StreamId: 0, Metadata: [ONNX Layer: conv/Conv]"
    )
    (row,) = trt_log.receipt(trt_log.parse([line], TOOL), [LayerFormat(name="conv", format="int8")], ["main"])
    assert (row.ok, row.realised) == (True, "Int8 convolution")


def test_an_unknown_version_and_a_strange_table_are_said() -> None:
    lines = ["Name: a, LayerType: gemm, something else", "[VERBOSE] Layers:"]
    log = trt_log.parse(lines, "tensorrt 12.0.1")
    assert len(log.notes) == 3
    assert "tensorrt 12.0.1 has not been tried" in log.notes[0]
    assert "no layer table" in log.notes[1]
    assert trt_log.receipt(log, asked("int8")[:1], ["main"])[0].ok is False


def test_profiles_are_told_apart_by_graph_number_when_a_kernel_does_not_name_its_own() -> None:
    row = "Name: {name}, LayerType: kgen, Inputs: [], Constants: [], Outputs: [{out}], TacticName: t, StreamId: 0, Metadata: [ONNX Layer: layers.0.a/Add]"
    lines = [
        row.format(name="k_myl0_0", out=""),
        row.format(name="k_myl1_0", out=""),
        row.format(name="k_myl1_1", out="{ Name: y [profile 1], Dimensions: [1], Datatype: Half }"),
    ]
    assert [kernel.profile for kernel in trt_log.parse(lines, TOOL).kernels] == [0, 1, 1]


@pytest.mark.parametrize(
    ("line", "kind", "says"),
    [
        (f"[ERROR] {FP8_ON_AMPERE}", RecipeError, "sm86 has no kernels for fp8_e4m3"),
        ("[ERROR] CHECK() failed. Attention operation was not supported by a dedicated kernel. (See", VerificationError, "no fused kernel"),
        ("[ERROR] Unable to load library: libnvinfer_lean.so.1", MachineError, "lean runtime"),
        ("[ERROR] Target SM 80 is not found in the accelerator list", MachineError, "does not compile for the target"),
        ("[ERROR] createInferBuilder: Error Code 6: CUDA initialization failure with error: 35", MachineError, "needs an NVIDIA GPU"),
        ("terminate called after throwing an instance of 'std::bad_alloc'", MachineError, "ran out of memory"),
        ("[ERROR] Could not find any implementation for node lin + relu.", VerificationError, "no kernel for lin"),
        ("[ERROR] Error Code 1: Cuda Runtime (In generateForCurrent at cudaDeviceProfile.cpp:187)", MachineError, "needs an NVIDIA GPU"),
        ("[ERROR] something new", VerificationError, "something new"),
    ],
)  # fmt: skip
def test_what_the_builder_says_becomes_what_to_do(line: str, kind: type[OptError], says: str) -> None:
    lines = ["[INFO] fine", line]
    error = trt_errors.refused(trt_log.problems(lines), Path("build.log"), trt_log.shortages(lines))
    assert type(error) is kind
    assert says in str(error)


@pytest.mark.parametrize(
    "warning",
    [
        "[WARNING] Tactic Device request: 8192MB Available: 7000MB. Device memory is insufficient to use tactic.",
        "[WARNING] Skipping tactic 3 due to insufficient memory on requested size of 8589934592 detected for tactic 0x3.",
        "[ERROR] [defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime (out of memory)",
        "[WARNING] Requested amount of GPU memory (8589934592 bytes) could not be allocated.",
    ],
)
def test_no_implementation_for_want_of_memory_is_called_out_of_memory(warning: str) -> None:
    """TensorRT says `could not find any implementation` when every tactic was skipped for its scratch memory."""
    lines = [warning, "[ERROR] Could not find any implementation for node lin + relu."]
    error = trt_errors.refused(trt_log.problems(lines), Path("build.log"), trt_log.shortages(lines))
    assert type(error) is MachineError
    assert str(error).startswith(f"build.log: the builder ran out of memory: {warning}")


def test_memory_is_no_excuse_for_what_has_another_cause() -> None:
    lines = ["[WARNING] Skipping tactic 3 due to insufficient memory", f"[ERROR] {FP8_ON_AMPERE}"]
    error = trt_errors.refused(trt_log.problems(lines), Path("build.log"), trt_log.shortages(lines))
    assert type(error) is RecipeError
