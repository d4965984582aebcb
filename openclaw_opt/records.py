"""What a build says about itself: the records that the report, the manifest and CI read. JSON in, JSON out, nothing computed."""

from __future__ import annotations

from typing import Any, Literal

from openclaw_opt.artifacts import Facts, KernelRow, Measurement, ReceiptRow

SCHEMA_VERSION = 3
"""Version 2 added items, conditions, evidence of budgets, the baseline and cost; version 3 latency and cost of every pass, and
earlier builds. A report of an earlier version reads as one without them."""
BudgetResult = Literal["met", "missed", "undecided"]
Against = Literal["nothing", "checkpoint", "baseline"]
Verdict = Literal["within budget", "budget missed", "undecided", "no budgets", "not finished"]


class BudgetRecord(Facts):
    """One budget: what was wanted, what was got, and which pass spent it."""

    metric: str
    rule: str
    """As in the recipe, e.g. `>= 0.98`."""
    got: float | None
    unit: str = ""
    result: BudgetResult
    why: str = ""
    """Why it is undecided, or how sure the result is."""
    spent_by: str = ""
    """The pass with the largest share of the loss, where that is known."""
    spent_by_layers: tuple[str, ...] = ()
    """The layers of that pass with the largest error, worst first, where that is known."""
    against: Against = "nothing"
    """What the rule compares with: nothing (an absolute bound), the checkpoint, or a stored baseline."""
    bound: float | None = None
    """The number that `got` was held to, once a tolerance or a baseline's value is worked in."""
    low: float | None = None
    high: float | None = None
    """Interval of `got` at `confidence`."""
    confidence: float | None = None
    evidence: str = ""
    """The test that decided it and its figures, e.g. `paired bootstrap over 64 sequences` or `McNemar exact, p = 0.003`."""
    if_undecided: Literal["", "fail", "pass"] = ""
    """What `undecided` counts as; empty in reports that do not say it by the budget."""


class BaselineRecord(Facts):
    """The stored report that budgets and pictures compare with."""

    name: str
    path: str
    started: str
    """UTC, ISO 8601."""
    machine: str
    target: str
    measurements: tuple[Measurement, ...] = ()
    checkpoint_files: dict[str, str] = {}
    """Weight file to sha256; what was compared is of the same checkpoint."""
    evaluation: dict[str, Any] = {}
    """Its evaluation data, as in `Report.data`."""
    metrics: dict[str, dict[str, Any]] = {}
    """Its metrics with their options: under what its numbers were taken."""


class BuildLine(Facts):
    """Which build it was, in a line."""

    name: str
    """The recipe's name."""
    label: str = ""
    """What CI calls the build, e.g. a commit."""
    started: str
    """UTC, ISO 8601."""
    verdict: str
    target: str
    machine: str


class EarlierBuild(BuildLine):
    """A build of a history, with the numbers of it that may be compared with this build's."""

    measurements: tuple[Measurement, ...] = ()


class LeftOut(Facts):
    """How many builds of a history are not compared, and why."""

    why: str
    builds: int


class HistoryRecord(Facts):
    """What `--history` named, as far as it can be compared."""

    path: str
    builds: tuple[EarlierBuild, ...] = ()
    """Oldest first."""
    left_out: tuple[LeftOut, ...] = ()
    """Builds that are not shown."""
    untimed: tuple[LeftOut, ...] = ()
    """Builds that are shown without numbers that depend on the target or the machine."""


class CostRecord(Facts):
    """What a million tokens (or samples) cost on one target, and the price used."""

    target: str
    title: str
    hourly_usd: float | None
    price_source: str = ""
    """Where the price is from: the recipe, or the target's row."""
    per_million_usd: float | None
    unit: str = "output tokens"
    basis: str = ""
    """`measured on the engine`, or `bound from the target's figures`."""
    not_measured: str = ""
    """Why there is no figure."""


class Verification(Facts):
    """What was compared after a pass."""

    kind: Literal["exact", "lossy"]
    what: str
    """E.g. `logits on 4 × 64 probe tokens, PyTorch before and after`."""
    value: float | None
    """Exact: largest difference relative to the largest output. Lossy: None, see `accuracy` of the pass."""
    tolerance: float | None
    ok: bool


class LayerRecord(Facts):
    """One layer that a lossy pass changed."""

    name: str
    format: str
    parameters: int
    weight_sqnr_db: float | None = None
    """Signal to quantization noise of the weight in dB, 10·log10(Σw²/Σ(w−ŵ)²); higher is better."""
    output_sqnr_db: float | None = None
    """The same for the layer's output on calibration data."""
    plain_weight_sqnr_db: float | None = None
    """The weight's with ranges from largest values and rounding to nearest (max, rtn), or with zeros by magnitude: what the
    algorithm is to beat."""
    plain_output_sqnr_db: float | None = None
    """The output's with the same; both None where that is what was done."""
    note: str = ""


class PassRecord(Facts):
    """One pass as it went."""

    index: int
    word: str
    options: dict[str, Any]
    kind: Literal["exact", "lossy"]
    changed: str
    """One sentence: what it changed."""
    seconds: float
    """Of the run that made the result; a cached pass took none of it this time."""
    peak_bytes: int
    """Largest resident memory of the process during the pass."""
    cached: bool
    redone_why: str = ""
    """Why it was not taken from the cache, e.g. `options.format: int8 → int4`."""
    size_bytes: int
    """Weights and graph of the result on disk."""
    parameters: int | None = None
    verification: Verification | None = None
    accuracy: tuple[Measurement, ...] = ()
    """Measured after the pass: the waterfall's steps. Empty after an exact pass: it is the value before."""
    latency: tuple[Measurement, ...] = ()
    """Of `timed`: measured, `not measured`, or a bound (subject `bound`), in turns with the other passes' engines."""
    timed: str = ""
    """What `latency` is of: what the pass gave, by the passes that turn it into an engine; empty where nothing was asked."""
    speedups: tuple[Measurement, ...] = ()
    """`speedup.pass` (a token or batch) and `speedup.pass.prefill`: time of `speedup_over` / time of this one, paired by rounds."""
    speedup_over: str = ""
    """The pass whose engine this one is compared with; empty where there is none like it."""
    cost: CostRecord | None = None
    """A million tokens at that throughput, on the recipe's target."""
    layers: tuple[LayerRecord, ...] = ()
    details: dict[str, Any] = {}


class MachineRecord(Facts):
    """Where the build ran."""

    title: str
    cores: int
    memory_bytes: int
    gpu: str
    """Name, or `none`."""
    system: str
    python: str


class MeasuredRecord(Facts):
    """The artifact's measurements on one machine, taken after the build by `openclaw-opt measure`."""

    started: str
    """UTC, ISO 8601."""
    machine: MachineRecord
    versions: dict[str, str] = {}
    measurements: tuple[Measurement, ...]


class Report(Facts):
    """The whole report. `report.json` is this, and every other form is made from it."""

    schema_version: int = SCHEMA_VERSION
    name: str
    description: str = ""
    verdict: Verdict
    exit_code: int
    started: str
    """UTC, ISO 8601."""
    seconds: float
    """This run, cached passes included."""
    model: str
    family: str
    task: Literal["decoder", "encoder", "vision"]
    parameters: int
    checkpoint_bytes: int
    checkpoint_dtype: str
    target: str
    """Row of the target table; of several, the first."""
    target_title: str
    """Of every target."""
    targets: tuple[str, ...] = ()
    """Every target of the job, where there are several."""
    target_facts: dict[str, Any] = {}
    """The target's row: memory, bandwidth, peak, price."""
    backend: str
    engine_tool: str = ""
    engine_files: tuple[str, ...] = ()
    engine_bytes: int | None = None
    finished: bool = True
    finish_command: str = ""
    unfinished_why: str = ""
    next_step: str = ""
    """The one thing to do next, as a sentence or a command."""
    budgets: tuple[BudgetRecord, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    """Of the engine against the reference; rows without a value say why in `not_measured`."""
    remeasured: tuple[MeasuredRecord, ...] = ()
    """What `openclaw-opt measure` found later, oldest first; budgets look at `measurements` alone."""
    baseline: BaselineRecord | None = None
    """What `--baseline` named."""
    history: HistoryRecord | None = None
    """What `--history` named."""
    costs: tuple[CostRecord, ...] = ()
    passes: tuple[PassRecord, ...] = ()
    receipt: tuple[ReceiptRow, ...] = ()
    kernels: tuple[KernelRow, ...] = ()
    notes: tuple[str, ...] = ()
    peak_bytes: int = 0
    """Largest resident memory of the whole build, children included."""
    machine: MachineRecord
    versions: dict[str, str] = {}
    data: dict[str, Any] = {}
    """Calibration and evaluation: source, documents, fingerprint, tokens."""
    checkpoint_files: dict[str, str] = {}
    """Weight file to sha256."""
    recipe: str = ""
    """The resolved recipe as YAML."""
