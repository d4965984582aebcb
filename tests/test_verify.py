"""What verification lets pass and what it does not: roundings that turn over, and mistakes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from openclaw_opt import verify
from openclaw_opt.artifacts import Artifact, Graph, GraphFacts, LayerFormat
from openclaw_opt.errors import VerificationError
from openclaw_opt.passes.export import Export
from openclaw_opt.verify import MOST, compare, make_probe


@dataclass(frozen=True)
class Said(Graph):
    """A graph whose outputs are known; `moved` is how far each row is from 1."""

    moved: tuple[float, ...] = (0.0,)
    format: str = ""
    dtype: str = "float32"
    folder: object = field(default=None)  # type: ignore[assignment]

    @property
    def facts(self) -> GraphFacts:
        layers = (LayerFormat(name="l", format=self.format),) if self.format else ()
        common = {"task": "decoder", "dialect": "portable", "family": "llama", "opset": 23, "dtype": self.dtype}
        return GraphFacts.model_validate({**common, "quantized": layers, "quantized_activations": bool(layers)})


@pytest.fixture(autouse=True)
def _known_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    def outputs(artifact: Artifact, probe: object) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
        assert isinstance(artifact, Said)
        return {"logits": np.ones((len(artifact.moved), 3), np.float32) + np.float32(artifact.moved)[:, None]}

    monkeypatch.setattr(verify, "outputs", outputs)


def told(after: Said, proof: Said | None = None) -> str:
    rows = len(after.moved)
    return compare(Export(), Said(moved=(0.0,) * rows), after, None, proof).what  # type: ignore[arg-type]


NOT_MOVED = Said(moved=(0.0, 0.0, 0.0))


def test_an_exact_float_pass_has_no_room() -> None:
    told(Said(moved=(0.0, 0.0, 9e-4)))
    with pytest.raises(VerificationError, match=r"outputs differ by 0\.002 of the largest output \(tolerance 0\.001\)"):
        told(Said(moved=(0.0, 0.0, 2e-3)))
    with pytest.raises(VerificationError, match="differ by nan"):
        told(Said(moved=(0.0, 0.0, float("nan"))))


def test_a_rounding_that_turned_over_is_no_mistake_and_two_rows_of_three_are() -> None:
    assert "where a rounding of activations turned over" in told(Said(moved=(0.0, 0.0, 0.2), format="int8"))
    with pytest.raises(VerificationError, match=r"differ by 0\.2 of the largest"):
        told(Said(moved=(0.0, 0.2, 0.2), format="int8"))
    with pytest.raises(VerificationError, match=r"differ by 0\.3 of the largest"):
        told(Said(moved=(0.0, 0.0, 0.3), format="int8"))


@pytest.mark.parametrize(
    ("format", "moved", "ok"),
    [
        ("int8", (0.2, 0.2, 0.2), True),
        ("int8", (0.0, 0.0, MOST + 0.05), False),
        ("fp8", (0.0, 0.0, MOST + 0.05), False),
        ("nvfp4", (0.0, 0.0, 0.9), True),
        ("nvfp4", (0.0, MOST + 0.05, MOST + 0.05), False),
        ("nvfp4", (0.0, float("nan"), float("nan")), False),
    ],
)
def test_how_far_half_precision_may_go_from_its_proof(format: str, moved: tuple[float, ...], ok: bool) -> None:
    after, proof = Said(moved=moved, format=format, dtype="float16"), Said(moved=NOT_MOVED.moved, format=format)
    if ok:
        assert "rounding then moves" in told(after, proof)
        return
    with pytest.raises(VerificationError, match=r"deviates from its proof by (0\.3|nan) \(at most 0\.25\)"):
        told(after, proof)


def test_a_wrong_proof_is_never_excused() -> None:
    with pytest.raises(VerificationError, match="outputs differ by"):
        told(Said(moved=NOT_MOVED.moved, format="nvfp4"), Said(moved=(0.3, 0.3, 0.3), format="nvfp4"))


def test_the_probe_of_a_short_context_fits() -> None:
    from openclaw_opt.models.families import spec_from_config

    config = {
        "architectures": ["GPT2LMHeadModel"],
        "n_positions": 8,
        "vocab_size": 50,
        "n_embd": 8,
        "n_head": 2,
        "n_layer": 1,
    }
    probe = make_probe(spec_from_config(config), 0)
    assert probe.ids.shape == (2, 8)
    assert probe.lengths.tolist() == [8, 5]
