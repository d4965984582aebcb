"""What may be asked of quantized layers: a number format's settings for nvidia-modelopt, a scheme, which names one with an
algorithm, and a job, which is what a quantize pass asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from openclaw_opt.models.spec import WeightKind

INT8 = {"num_bits": 8}
FP8 = {"num_bits": (4, 3)}


Ranges = Literal["max", "percentile", "mse", "entropy", "signed"]


@dataclass(frozen=True)
class Row:
    """How modelopt's quantizers are set for one format. `block` is filled in where it is asked for."""

    kind: WeightKind
    weight: Mapping[str, Any]
    input: Mapping[str, Any] | None = None
    dynamic: bool = False
    """Ranges of activations are found for each token when it runs."""


ROWS: dict[str, Row] = {
    "int8": Row("int8", {**INT8, "axis": 0}, INT8),
    "int8_per_token": Row(
        "int8", {**INT8, "axis": 0}, {**INT8, "type": "dynamic", "block_sizes": {-1: None}}, dynamic=True
    ),
    "int8_weight_only": Row("int8", {**INT8, "axis": 0}),
    "int4": Row("int4", {"num_bits": 4, "block_sizes": {-1: None, "type": "static"}}),
    "uint4": Row("uint4", {"num_bits": 4, "block_sizes": {-1: None, "type": "static"}}),
    "fp8": Row("fp8", FP8, FP8),
    "nvfp4": Row(
        "nvfp4",
        {"num_bits": (2, 1), "block_sizes": {-1: None, "type": "dynamic", "scale_bits": (4, 3)}},
        {"num_bits": (2, 1), "block_sizes": {-1: None, "type": "dynamic", "scale_bits": (4, 3)}},
    ),
}
BLOCKED = ("int4", "uint4", "nvfp4")
Algorithm = Literal["max", "rtn", "smoothquant", "smoothquant_gptq", "awq", "awq_full", "gptq", "awq_gptq"]
PLAIN: tuple[Algorithm, ...] = ("max", "rtn")
SCALES_INPUTS: tuple[Algorithm, ...] = ("awq", "awq_full", "awq_gptq")
"""Algorithms that begin with AWQ's search for input factors."""
SMOOTHS: tuple[Algorithm, ...] = ("smoothquant", "smoothquant_gptq")
SWEEPS: dict[Algorithm, int] = {
    "max": 1, "rtn": 1, "smoothquant": 1, "smoothquant_gptq": 1, "awq": 2, "awq_full": 2, "gptq": 1, "awq_gptq": 2
}  # fmt: skip
"""How often each algorithm runs the calibration data."""


@dataclass(frozen=True)
class Scheme:
    """What is asked of the layers: a row of formats.py, the algorithm, its parameters."""

    format: str
    algorithm: Algorithm
    alpha: float | None = None
    block: int | None = None
    ranges: Ranges = "max"
    damping: float = 0.01
    act_order: bool = True
    sweeps: int = 2
    per_channel: bool = False
    """fp8: a scale for each output channel of a weight in place of one for the whole."""

    @property
    def row(self) -> Row:
        return ROWS[self.format]

    @property
    def needs_data(self) -> bool:
        """Does modelopt's own part of it run the model?"""
        return self.has_ranges or self.may_scale_inputs

    @property
    def uses_modelopt(self) -> bool:
        """Does modelopt find anything of it, ranges of inputs or their factors? What rounds weights alone, we do."""
        return self.row.input is not None or self.algorithm in SCALES_INPUTS

    @property
    def has_ranges(self) -> bool:
        """Are ranges of activations fixed by calibration?"""
        return self.row.input is not None and not self.row.dynamic

    @property
    def compensates(self) -> bool:
        return self.algorithm in ("gptq", "awq_gptq", "smoothquant_gptq")

    @property
    def may_scale_inputs(self) -> bool:
        """May layers multiply their inputs with factors?"""
        return self.algorithm in (*SMOOTHS, *SCALES_INPUTS)

    @property
    def smooths_tokens(self) -> bool:
        """Are input factors our own SmoothQuant's? modelopt's refuses scales a token."""
        return self.algorithm in SMOOTHS and self.row.dynamic

    @property
    def uses_inputs(self) -> bool:
        """Are weights rounded with what their inputs are?"""
        return self.compensates or self.algorithm == "awq_full"

    @property
    def searches_ranges(self) -> bool:
        """Are the ranges of activations found from histograms?"""
        return self.ranges != "max" and self.has_ranges

    @property
    def signs_scales(self) -> bool:
        """Is the largest weight of a block the code −8, whatever its sign?"""
        return self.ranges == "signed"

    @property
    def clips_weights(self) -> bool:
        """Are weight ranges searched for the least squared error of the weight?"""
        return self.ranges == "mse" and self.row.input is None


@dataclass(frozen=True)
class Job:
    """The options of a quantize pass with every default filled in."""

    format: str
    algorithm: Algorithm
    alpha: float | None
    block: int | None
    least_rows: int = 0
    """Vectors every layer must see in calibration."""
    ranges: Ranges = "max"
    percentile: float | None = None
    damping: float = 0.01
    act_order: bool = True
    sweeps: int = 2
    per_channel: bool = False

    @property
    def scheme(self) -> Scheme:
        return Scheme(
            self.format,
            self.algorithm,
            self.alpha,
            self.block,
            self.ranges,
            self.damping,
            self.act_order,
            self.sweeps,
            self.per_channel,
        )

    @property
    def is_plain(self) -> bool:
        """Is it what every algorithm is compared with: largest values, rounding to nearest?"""
        return self.algorithm in PLAIN and self.ranges == "max"

    @property
    def title(self) -> str:
        more = ", per channel" if self.per_channel else ""
        more += f", alpha {self.alpha:g}" if self.alpha is not None else ""
        more += f", blocks of {self.block}" if self.block is not None else ""
        if self.ranges != "max":
            more += f", {self.ranges} ranges" if self.percentile is None else f", percentile {self.percentile:g}"
        return f"{self.format} ({self.algorithm}{more})"
