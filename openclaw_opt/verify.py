"""Compares an artifact with the one before it: same outputs on the probe batch, or the pass is not exact.

The probe is seeded random input of unequal lengths, so it reads no data set. A decoder is compared on every position of a
prefill and then step by step through its cache, each step against the same positions of one whole prefill.

    largest difference = max|a − b| / max|a|             over all compared outputs, a before the pass, b after it
    typical difference = median over rows of the same    a row is one token, sentence or image

An exact pass keeps the largest within its tolerance. Where activations are quantized, a difference in the last bit can turn
one rounding over, which moves that token, and those that attend to it, by about a quantization step; with some ten thousand
roundings a token this happens in most of them. There the typical difference must be within FLIPPED, two steps of int8, and
the largest within MOST: a wrong scale or a wrong layer moves outputs by far more. Where an int8 cache is all that is rounded, the
typical difference must be within the tolerance itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openclaw_opt.artifacts import Artifact, Checkpoint, Engine, Graph, GraphFacts, Model
from openclaw_opt.backends import DecoderSession, GenericSession, Session
from openclaw_opt.errors import VerificationError
from openclaw_opt.formats import CACHES, FORMATS
from openclaw_opt.models.spec import DecoderSpec, HfSpec
from openclaw_opt.passes import Pass
from openclaw_opt.records import Verification
from openclaw_opt.targets import RUNTIMES

BATCH, PROMPT, STEPS = 2, 24, 4
FLIPPED = 2 / 127
MOST = 0.25
"""What known rounding may move an output by, of the largest output: more is no rounding. What it costs is measured as accuracy."""
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Probe:
    """Inputs of the comparison. `ids` [batch, length] int64 for text; `feed` for encoders and vision models."""

    ids: NDArray[np.int64]
    lengths: NDArray[np.int64]
    feed: dict[str, NDArray[Any]]


def make_probe(spec: DecoderSpec | HfSpec, seed: int, context: int | None = None) -> Probe:
    """Seeded random tokens (or pixels) that fit the model and, where it is shorter, the engine's `context`."""
    rng = np.random.default_rng(seed)
    if isinstance(spec, DecoderSpec):
        length = min(PROMPT + STEPS, context or spec.context)
        ids = rng.integers(0, spec.vocab, (BATCH, length), dtype=np.int64)
        return Probe(ids, np.array([length, max(STEPS + 1, length * 2 // 3)], np.int64), {})
    if spec.task == "vision":
        assert spec.image is not None
        return Probe(
            np.zeros((0, 0), np.int64),
            np.zeros(0, np.int64),
            {"pixel_values": rng.standard_normal((BATCH, *spec.image)).astype(np.float32)},
        )
    ids = rng.integers(0, spec.vocab or 2, (BATCH, PROMPT), dtype=np.int64)
    mask = (np.arange(PROMPT) < np.array([[PROMPT], [PROMPT * 2 // 3]])).astype(np.int64)
    feed = {"input_ids": ids, "attention_mask": mask}
    return Probe(ids, mask.sum(1), feed | ({"token_type_ids": np.zeros_like(ids)} if spec.token_types else {}))


def compare(
    part: Pass,
    before: Artifact | Checkpoint,
    after: Artifact,
    probe: Probe,
    proof: Artifact | None = None,
    known: Outputs | None = None,
) -> Verification:
    """The verification of an exact pass. Raises VerificationError when the outputs differ by more than its tolerance.

    Args:
        proof: what must agree with `before` in place of `after`, which then may deviate from it by MOST: in its largest
            row, or in its typical one where activations have 4 bits.
        known: remembers what `after` computes, for the pass that comes next.
    """
    outputs_of = known or Outputs()
    a, b = outputs_of(before, probe), outputs_of(proof or after, probe)
    verification = _exact(part, before, proof or after, a, b)
    if proof is None:
        return verification
    a, b = b, outputs_of(after, probe)
    coarse = _coarse(after)
    deviation = typical_difference(a, b) if coarse else difference(a, b)
    if not deviation <= MOST:
        raise VerificationError(
            f"pass `{part.word}` is exact, but its result deviates from its proof by {deviation:.3g} (at most {MOST})"
        )
    moved = "the typical row" if coarse else "outputs"
    return verification.model_copy(
        update={"what": f"{verification.what}; rounding then moves {moved} by {deviation:.2g}"}
    )


def _exact(
    part: Pass, before: Artifact | Checkpoint, after: Artifact, a: dict[str, Array], b: dict[str, Array]
) -> Verification:
    """`a` and `b` are what `before` and `after` compute."""
    tolerance, largest = part.tolerance_of(after), difference(a, b)
    what = f"{' and '.join(a)} on {BATCH} probe inputs, {_runtime(before)} against {_runtime(after)}"
    value = largest
    if _flips(after) and tolerance < largest <= MOST:
        rounded = "the cache" if _only_the_cache(after) else "activations"
        value, tolerance = typical_difference(a, b), tolerance if rounded == "the cache" else max(tolerance, FLIPPED)
        what = f"typical row of {what}; largest {largest:.2g}, where a rounding of {rounded} turned over"
    if not value <= tolerance:  # also catches NaN
        raise VerificationError(
            f"pass `{part.word}` is exact, but outputs differ by {value:.3g} of the largest output (tolerance {tolerance:g}) "
            f"in {_worst(a, b)}",
            fix="this is a fault of openclaw-opt or of a runtime, not of the recipe: report it with the recipe and the model",
        )
    return Verification(kind="exact", what=what, value=value, tolerance=tolerance, ok=True)


def difference(a: dict[str, Array], b: dict[str, Array]) -> float:
    """Largest absolute difference over the largest absolute value of `a`; NaN anywhere gives NaN."""
    top = max(float(np.abs(x).max()) for x in a.values())
    gap = [float(np.abs(x - b[name]).max()) for name, x in a.items()]
    return float("nan") if any(np.isnan(gap)) else max(gap) / max(top, 1e-30)


def typical_difference(a: dict[str, Array], b: dict[str, Array]) -> float:
    """Median over rows (all axes but the last) of each row's largest difference, over the largest value of `a`."""
    top = max(float(np.abs(x).max()) for x in a.values())
    rows = np.concatenate([np.abs(x - b[name]).max(-1).ravel() for name, x in a.items()])
    return float(np.median(rows)) / max(top, 1e-30)


def _graph_facts(artifact: Artifact) -> GraphFacts | None:
    """Of a graph, or of the one an engine was built from."""
    if isinstance(artifact, Engine):
        return artifact.facts.graph
    return artifact.facts if isinstance(artifact, Graph) else None


def _flips(artifact: Artifact) -> bool:
    facts = _graph_facts(artifact)
    return facts is not None and (facts.quantized_activations or any(kv.cache is not None for kv in facts.kv))


def _only_the_cache(artifact: Artifact) -> bool:
    """Nothing but an int8 cache rounds: one code that turns over moves one channel of one token, and no typical row."""
    facts = _graph_facts(artifact)
    return facts is not None and not facts.quantized_activations and not _coarse(artifact)


def _coarse(artifact: Artifact) -> bool:
    """Activations or a cache in 4 bits: one rounding that turns over is a third of its value, and no bound on the largest row means much."""
    facts = _graph_facts(artifact)
    if facts is None:
        return False
    if any(kv.cache is not None and CACHES[kv.cache].bits == 4 for kv in facts.kv):
        return True
    rows = [FORMATS.get(layer.format) for layer in facts.quantized]
    return any(row is not None and row.activation.startswith("FLOAT4") for row in rows)


def _worst(a: dict[str, Array], b: dict[str, Array]) -> str:
    return max(a, key=lambda name: np.nan_to_num(float(np.abs(a[name] - b[name]).max()), nan=np.inf))


def _runtime(artifact: Artifact | Checkpoint) -> str:
    if isinstance(artifact, Checkpoint):
        return "transformers"
    if isinstance(artifact, Engine) and artifact.facts.backend in RUNTIMES:
        return RUNTIMES[artifact.facts.backend]
    return "PyTorch" if isinstance(artifact, Model) else "ONNX Runtime"


def outputs(artifact: Artifact | Checkpoint, probe: Probe) -> dict[str, Array]:
    """What the artifact computes on the probe, by output name."""
    if isinstance(artifact, (Checkpoint, Model)) and not probe.feed:
        return _whole_outputs(artifact, probe)
    from openclaw_opt.backends.engines import open_session

    with open_session(artifact) as session:
        return session_outputs(session, probe)


class Outputs:
    """`outputs`, which remembers the last artifact's: after one pass, they are those before the next."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._probe: Probe | None = None
        self._found: dict[str, Array] = {}

    def __call__(self, artifact: Artifact | Checkpoint, probe: Probe) -> dict[str, Array]:
        if self._folder != artifact.folder or self._probe is None or not _same(probe, self._probe):
            self._found, self._folder, self._probe = outputs(artifact, probe), artifact.folder, probe
        return self._found

    def moved(self, source: Path, target: Path) -> None:
        """The artifact in `source` now lies in `target`."""
        if self._folder == source:
            self._folder = target


def _same(a: Probe, b: Probe) -> bool:
    return (
        np.array_equal(a.ids, b.ids)
        and np.array_equal(a.lengths, b.lengths)
        and a.feed.keys() == b.feed.keys()
        and all(np.array_equal(value, b.feed[name]) for name, value in a.feed.items())
    )


def _whole_outputs(artifact: Checkpoint | Model, probe: Probe) -> dict[str, Array]:
    """Of a decoder without a cache, the same by name: the logits at each prompt's positions, then at those of the next steps."""
    import torch

    from openclaw_opt.models.whole import logits_of_prefixes

    rows = [torch.from_numpy(ids[:length]) for ids, length in zip(probe.ids, probe.lengths, strict=True)]
    found = logits_of_prefixes(artifact, rows, [[len(row) - STEPS + step for step in range(STEPS + 1)] for row in rows])
    steps = [np.stack([row[step][-1].numpy() for row in found]) for step in range(1, STEPS + 1)]
    return {
        "prefill logits": np.concatenate([row[0].numpy() for row in found]),
        **{f"decode step {step} logits": logits for step, logits in enumerate(steps, 1)},
    }


def session_outputs(session: Session, probe: Probe) -> dict[str, Array]:
    """Prefill of unequal lengths in one batch, then decode steps through the session's cache; only real positions.

    Raises VerificationError when a sequence in the batch is not what it is alone.
    """
    if isinstance(session, GenericSession):
        return _real(session.infer(probe.feed), probe)
    assert isinstance(session, DecoderSession)
    prompts = probe.lengths - STEPS
    whole = [session.logits(probe.ids[i : i + 1, :n])[0] for i, n in enumerate(prompts)]
    ids = probe.ids[:, : prompts.max()]
    last = session.prefill(ids, prompts)
    for row, got in zip(whole, last, strict=True):
        if not np.allclose(row[-1], got, rtol=1e-2, atol=1e-2 * float(np.abs(row).max())):
            raise VerificationError("prefill of unequal lengths in one batch differs from each sequence alone")
    found = {"prefill logits": np.concatenate(whole)}
    for step in range(STEPS):
        found[f"decode step {step + 1} logits"] = session.decode(probe.ids[np.arange(len(prompts)), prompts + step])
    return found


def _real(found: dict[str, Array], probe: Probe) -> dict[str, Array]:
    """Drop padded positions of per-token outputs: what stands there is nobody's promise."""
    if not len(probe.lengths):
        return found
    mask = np.arange(probe.ids.shape[1]) < probe.lengths[:, None]
    return {name: x[mask] if x.ndim == 3 and x.shape[:2] == mask.shape else x for name, x in found.items()}
