"""GPUs to build for: a row each, and `host`, which is whatever this machine is.

Memory and bandwidth are the vendor's figures in bytes and bytes per second. `peak` is the dense (not sparse) tensor-core
rate in operations per second, by element width; FP16 with FP32 accumulation where the vendor states it. They bound, they
do not predict. `hourly_usd` is an on-demand cloud price of one card; it is a default to be overridden in the recipe
(`target: {name: l4, hourly_usd: 0.55}`) and the report says which was used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from openclaw_opt.errors import RecipeError, nearest
from openclaw_opt.formats import FORMATS, Format

Runtime = Literal["rtx", "datacenter", "none"]
GB = 10**9
TERA = 10**12


@dataclass(frozen=True)
class Target:
    """One row.

    Attributes:
        compute: compute capability (major, minor); (0, 0) for a CPU.
        memory: bytes.
        bandwidth: bytes per second; None where it is not known before it is measured.
        peak: operations per second by element type (`fp16`, `int8`, `fp8`, `fp4`), dense.
        interconnect: name and bytes per second, one direction.
        runtime: which TensorRT builds for it. `rtx` engines compile on a CPU; `datacenter` ones need that GPU.
        backend: what `build` uses when the recipe does not say.
        hourly_usd: on-demand price of one card; None if there is no public one.
    """

    name: str
    title: str
    compute: tuple[int, int]
    memory: int
    bandwidth: float | None
    peak: dict[str, float] = field(hash=False)
    interconnect: tuple[str, float]
    runtime: Runtime
    source: str
    hourly_usd: float | None = None
    backend: str = "tensorrt"

    @property
    def is_gpu(self) -> bool:
        return self.compute != (0, 0)

    @property
    def sm(self) -> str:
        """`sm89` for 8.9."""
        return f"sm{self.compute[0]}{self.compute[1]}"

    @property
    def module(self) -> str:
        """The Python module that builds for it; empty for a CPU."""
        return {"rtx": "tensorrt_rtx", "datacenter": "tensorrt", "none": ""}[self.runtime]

    def realises(self, fmt: Format, backend: str) -> bool:
        if backend == FASTEST:
            return any(self.realises(fmt, one) for one in CANDIDATES)
        return backend in fmt.backends and (backend != "tensorrt" or self.compute >= fmt.compute)


ADA = "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf"
AMPERE = "https://www.nvidia.com/content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.pdf"
BLACKWELL = "https://images.nvidia.com/aem-dam/Solutions/geforce/blackwell/nvidia-rtx-blackwell-gpu-architecture.pdf"
L4 = "https://www.nvidia.com/en-us/data-center/l4/"
L40S = "https://www.nvidia.com/en-us/data-center/l40s/"
A100 = "https://www.nvidia.com/en-us/data-center/a100/"
H100 = "https://www.nvidia.com/en-us/data-center/h100/"
H200 = "https://www.nvidia.com/en-us/data-center/h200/"
B200 = "https://www.nvidia.com/en-us/data-center/hgx/"
PCIE4 = ("PCIe 4.0 x16", 32e9)
PCIE5 = ("PCIe 5.0 x16", 64e9)


def _peak(fp16: float, int8: float, fp8: float | None = None, fp4: float | None = None) -> dict[str, float]:
    """Rates in tera-operations per second; a rate the card does not have is left out."""
    rates = {"fp16": fp16, "int8": int8, "fp8": fp8, "fp4": fp4}
    return {name: rate * TERA for name, rate in rates.items() if rate is not None}


_ROWS = (
    Target("rtx3060", "GeForce RTX 3060 12 GB", (8, 6), 12 * GB, 360e9, _peak(25.5, 102), PCIE4, "rtx", AMPERE, None),
    Target("rtx4090", "GeForce RTX 4090", (8, 9), 24 * GB, 1008e9, _peak(165.2, 660.6, 660.6), PCIE4, "rtx", ADA, 0.69),
    Target("rtx5090", "GeForce RTX 5090", (12, 0), 32 * GB, 1792e9, _peak(209.5, 838, 838, 1676), PCIE5, "rtx", BLACKWELL, 0.94),
    Target("l4", "NVIDIA L4", (8, 9), 24 * GB, 300e9, _peak(121, 242.5, 242.5), PCIE4, "rtx", L4, 0.80),
    Target("l40s", "NVIDIA L40S", (8, 9), 48 * GB, 864e9, _peak(362, 733, 733), PCIE4, "rtx", L40S, 1.86),
    Target("a100-40", "NVIDIA A100 40 GB", (8, 0), 40 * GB, 1555e9, _peak(312, 624), ("NVLink 3", 300e9), "datacenter", A100, 3.67),
    Target("a100-80", "NVIDIA A100 80 GB SXM", (8, 0), 80 * GB, 2039e9, _peak(312, 624), ("NVLink 3", 300e9), "datacenter", A100, 5.07),
    Target("h100-sxm", "NVIDIA H100 SXM", (9, 0), 80 * GB, 3350e9, _peak(989.5, 1979, 1979), ("NVLink 4", 450e9), "datacenter", H100, 2.99),
    Target("h100-pcie", "NVIDIA H100 PCIe", (9, 0), 80 * GB, 2000e9, _peak(756, 1513, 1513), PCIE5, "datacenter", H100, 2.49),
    Target("h200", "NVIDIA H200 SXM", (9, 0), 141 * GB, 4800e9, _peak(989.5, 1979, 1979), ("NVLink 4", 450e9), "datacenter", H200, 3.99),
    Target("b200", "NVIDIA B200", (10, 0), 180 * GB, 7700e9, _peak(2250, 4500, 4500, 9000), ("NVLink 5", 900e9), "datacenter", B200, 5.98),
)  # fmt: skip

TARGETS: dict[str, Target] = {row.name: row for row in _ROWS}
HOST = "host"
RAY_TYPES = {
    "rtx3060": "GeForce-RTX-3060", "rtx4090": "GeForce-RTX-4090", "rtx5090": "GeForce-RTX-5090", "l4": "L4",
    "l40s": "L40S", "a100-40": "A100-40G", "a100-80": "A100-80G", "h100-sxm": "H100", "h100-pcie": "H100",
    "h200": "H200", "b200": "B200",
}  # fmt: skip
"""What Ray calls a node's card (`accelerator_type:L4`); it has one name for both H100s."""
FASTEST = "fastest"
"""`build: {backend: fastest}`: every one of CANDIDATES is built and timed on this machine."""
CANDIDATES = ("onnxruntime", "gguf", "openvino")
RUNTIMES = {"onnxruntime": "ONNX Runtime", "gguf": "llama.cpp", "openvino": "OpenVINO"}
"""What each of them is called in sentences."""


def target_names() -> list[str]:
    return [*TARGETS, HOST]


def target_named(name: str, hourly_usd: float | None = None) -> Target:
    """The row of that name, `host` detected. Raises RecipeError with the nearest word."""
    if name != HOST and name not in TARGETS:
        raise RecipeError(f"unknown target {name!r}", fix=nearest(name, target_names()))
    row = host() if name == HOST else TARGETS[name]
    return row if hourly_usd is None else replace(row, hourly_usd=hourly_usd)


def ray_resources(target: str) -> tuple[str, ...]:
    """Resources by which a Ray node shows that it has this card, the surest first; none for `host`, which is any node.

    The target's own name is a custom resource that an administrator gives to a node: `ray start --resources='{"rtx4090": 1}'`.
    """
    known = RAY_TYPES.get(target)
    return () if target == HOST else (target, f"accelerator_type:{known}") if known else (target,)


def not_one_job(targets: Sequence[Target]) -> Iterator[tuple[int, str, str]]:
    """Which of several targets cannot share a job with the first: its place, why, and what to do.

    One builder must make all the engines on one machine.
    """
    builders = [target.module or target.backend for target in targets]
    for index, target in enumerate(targets):
        apart = "give it a recipe of its own, with `extends`"
        if target.name in [one.name for one in targets[:index]]:
            yield index, f"target {target.name!r} is named twice", "take one out"
        elif builders[index] != builders[0]:
            first = f"{targets[0].name} is built by {builders[0]}"
            yield index, f"one job has one builder: {first}, {target.name} by {builders[index]}", apart
        elif index and target.runtime != "rtx":
            what = f"{builders[index]} builds for one target a job, not for {targets[0].name} and {target.name}"
            yield index, what, apart


def host() -> Target:
    """This machine: the first NVIDIA GPU that NVML shows, else the CPU."""
    return _gpu_host() or _cpu_host()


def _gpu_host() -> Target | None:
    from openclaw_opt.nvml import first_card

    with first_card() as card:
        if card is None:
            return None
        title, compute, memory = card.title, card.compute, card.memory
    known = _row_of(title)
    if known is not None:
        return replace(known, name=HOST, title=title, memory=memory)
    runtime: Runtime = "datacenter" if compute in ((8, 0), (9, 0), (10, 0), (10, 3)) else "rtx"
    return Target(HOST, title, compute, memory, None, {}, ("unknown", 0.0), runtime, "NVML")


def _row_of(title: str) -> Target | None:
    """The row whose marketing words all stand in the name NVML gives, e.g. `NVIDIA L40S`."""
    words = title.replace("-", " ").lower().split()
    fits = [
        row
        for row in _ROWS
        if all(word in words for word in row.title.lower().split() if not word.isdigit() or len(word) > 2)
    ]
    return max(fits, key=lambda row: len(row.title), default=None)


def _cpu_host() -> Target:
    import psutil

    return Target(
        HOST, cpu_title(), (0, 0), int(psutil.virtual_memory().total), None, {}, ("memory bus", 0.0), "none", "/proc/cpuinfo",
        backend="onnxruntime",
    )  # fmt: skip


def cpu_title() -> str:
    """Model name and number of cores this process may use."""
    import os
    import platform

    name = _cpuinfo("model name")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name or platform.processor() or platform.machine()}, {cores} cores"


def _cpuinfo(word: str) -> str:
    """What /proc/cpuinfo says of the first core; empty where it says nothing."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(word)), "")


VECTORS = (("avx512_vnni", "AVX-512 VNNI"), ("avx_vnni", "AVX-VNNI"), ("avx512f", "AVX-512"), ("avx2", "AVX2"))
"""Flags of /proc/cpuinfo that decide which kernels a runtime has here, the widest first."""


def cpu_vectors() -> str:
    """This CPU's widest vector instructions that kernels of low-bit products use; empty where they are not known."""
    flags = _cpuinfo("flags").split()
    return next((name for flag, name in VECTORS if flag in flags), "")


def formats_of(target: Target, backend: str) -> list[str]:
    """The formats this backend realises on this target."""
    return [name for name, row in FORMATS.items() if target.realises(row, backend)]
