"""Accuracy against the untouched checkpoint: the reference is run once, kept by content, and every artifact is compared with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openclaw_opt.artifacts import Artifact, Engine, EngineFacts, Graph, GraphFacts, Measurement, Model, weight_files
from openclaw_opt.backends import Session
from openclaw_opt.backends.engines import cannot_run, open_session
from openclaw_opt.metrics.subject import Opener, Subject
from openclaw_opt.models.spec import DecoderSpec, HfSpec
from openclaw_opt.plan import Plan, source_facts
from openclaw_opt.store import Store, digest

if TYPE_CHECKING:
    from openclaw_opt.data import Source
    from openclaw_opt.data.load import ImageSet, SentenceSet, TokenSet
    from openclaw_opt.metrics.reference import ArrayReference, TokenReference

GRAPH_ON_CPU = "engine graph on ONNX Runtime CPU"
MODEL_IN_TORCH = "model in PyTorch"


def accuracy_of(plan: Plan, artifact: Artifact, store: Store) -> tuple[Measurement, ...]:
    """The recipe's accuracy metrics on an artifact in the middle of the pipeline, without their items: those of the
    final one are compared with other builds."""
    metrics = [metric for metric in plan.recipe.metrics if metric.needs_data]
    if not metrics:
        return ()
    subject = subject_of(plan, artifact, None, store)
    rows = (row for metric in metrics for row in metric.measure(subject) if row.subject != "reference")
    return tuple(row.model_copy(update={"items": (), "weights": ()}) for row in rows)


def subject_of(plan: Plan, artifact: Artifact, graph: Graph | None, store: Store) -> Subject:
    """The artifact as metrics see it.

    Args:
        graph: the lowered graph an engine was built from; what accuracy is measured on when the engine cannot run here.
    """
    data = evaluation_data(plan, store)
    facts = artifact.facts if isinstance(artifact, Engine) else None
    return Subject(
        facts=facts_of(plan.spec, artifact),
        target=plan.recipe.target,
        accuracy=_accuracy(artifact, graph, facts),
        speed=_speed(artifact, facts),
        eager=_eager(plan),
        data=data,
        reference=None if data is None else reference_of(plan, data, store),
        files=tuple(_files(artifact)),
        original_files=tuple(plan.listing.weights),
        graph=_graph_folder(artifact, graph),
        tokenizer=_tokenizer(plan, artifact),
        **_other_tokens(plan, artifact, data),
        **_memory(artifact, facts),
    )


def _accuracy(artifact: Artifact, graph: Graph | None, facts: EngineFacts | None) -> Opener:
    if isinstance(artifact, Model):
        return Opener(lambda: open_session(artifact), MODEL_IN_TORCH)
    if facts is None:
        assert isinstance(artifact, Graph)
        return Opener(lambda: open_session(artifact), "graph on ONNX Runtime CPU", note=_emulated(artifact.facts))
    why = cannot_run(facts)
    if not why:
        return Opener(lambda: open_session(artifact), "engine")
    if graph is None:
        return Opener(None, "engine", why)
    notes = (f"engine not run: {why}", _emulated(graph.facts))
    return Opener(lambda: open_session(graph), GRAPH_ON_CPU, note="; ".join(note for note in notes if note))


def _emulated(facts: GraphFacts) -> str:
    """What a reader must know where ONNX Runtime runs the graph's twin."""
    from openclaw_opt.graph.emulate_fp4 import NOTE, has_fp4

    return NOTE if has_fp4(facts) else ""


def _speed(artifact: Artifact, facts: EngineFacts | None) -> Opener:
    if facts is None:
        return Opener(None, "engine", "the recipe ended before an engine was built")
    why = cannot_run(facts)
    return Opener(None, "engine", why) if why else Opener(lambda: open_session(artifact), "engine")


def _eager(plan: Plan) -> Opener:
    def opened() -> Session:
        if not isinstance(plan.spec, DecoderSpec):
            return open_session(plan.checkpoint)
        from openclaw_opt.backends.torch_eager import open_eager

        return open_eager(plan.checkpoint)

    return Opener(opened, "reference", note="PyTorch eager, float32")


def _memory(artifact: Artifact, facts: EngineFacts | None) -> dict[str, Any]:
    why = "the recipe ended before an engine was built" if facts is None else cannot_run(facts)
    if why:
        return {"memory_why": why}
    from openclaw_opt.metrics.anatomy import load_command
    from openclaw_opt.metrics.memory import memory_command

    return {"memory_command": memory_command(artifact.folder), "load_command": load_command(artifact.folder)}


def _tokenizer(plan: Plan, artifact: Artifact) -> Path | None:
    """The artifact's own, else the checkpoint's."""
    files = (folder / "tokenizer.json" for folder in (artifact.assets, plan.checkpoint.folder))
    return next((file for file in files if file.is_file()), None)


def _other_tokens(plan: Plan, artifact: Artifact, data: TokenSet | SentenceSet | ImageSet | None) -> dict[str, Any]:
    """The checkpoint's tokenizer and the evaluation text in the artifact's tokens, where a pass has changed the tokenizer."""
    from openclaw_opt.data.load import TokenSet, in_own_tokens

    theirs, ours = plan.checkpoint.folder / "tokenizer.json", _tokenizer(plan, artifact)
    if ours is None or not theirs.is_file() or ours.read_bytes() == theirs.read_bytes():
        return {}
    own = in_own_tokens(data, theirs, ours) if isinstance(data, TokenSet) else None
    return {"original_tokenizer": theirs, "own": own}


def facts_of(spec: DecoderSpec | HfSpec, artifact: Artifact) -> GraphFacts:
    """What a graph of the artifact states."""
    if isinstance(artifact, Engine):
        return artifact.facts.graph
    if isinstance(artifact, Graph):
        return artifact.facts
    from openclaw_opt.models.export import graph_facts
    from openclaw_opt.models.spec import read_facts

    assert isinstance(artifact, Model)
    return graph_facts(read_facts(artifact), "float32", None)


def _graph_folder(artifact: Artifact, graph: Graph | None) -> Path | None:
    return artifact.folder if isinstance(artifact, Graph) else graph.folder if graph is not None else None


def _files(artifact: Artifact) -> Sequence[Path]:
    if isinstance(artifact, Engine) and artifact.facts.finished:
        return [artifact.folder / name for name in artifact.facts.files]
    return weight_files(artifact.folder)


def evaluation_data(plan: Plan, store: Store) -> TokenSet | SentenceSet | ImageSet | None:
    """The evaluation set in the form the task wants, tokenized once."""
    return None if plan.recipe.evaluation is None else load_data(plan, plan.recipe.evaluation, store)


def load_data(plan: Plan, source: Source, store: Store) -> TokenSet | SentenceSet | ImageSet:
    """A source in the form the task wants. Raises RecipeError where it is empty, too short or cannot be read."""
    from openclaw_opt.data.load import load_images, load_sentences, load_tokens

    tokenizer = plan.checkpoint.folder / "tokenizer.json"
    if plan.spec.task == "vision":
        return load_images(source)
    if plan.spec.task == "encoder":
        return load_sentences(source, tokenizer, store.root / "data")
    return load_tokens(source, tokenizer, store.root / "data")


def reference_of(plan: Plan, data: TokenSet | SentenceSet | ImageSet, store: Store) -> TokenReference | ArrayReference:
    """Outputs of the untouched checkpoint on the evaluation data; run at most once for this content."""
    from openclaw_opt.metrics.reference import ArrayReference, TokenReference

    key = reference_key(plan)
    kind = TokenReference if isinstance(plan.spec, DecoderSpec) else ArrayReference
    with store.claimed(key):
        if store.find(key) is None:
            with store.making() as folder:
                _run_reference(plan, data, folder)
                store.keep(folder, key, {"kind": "reference"})
    return kind(store.folder(key))


def reference_key(plan: Plan) -> str:
    facts = plan.steps[0].ingredients
    return digest(
        {"reference": facts["checkpoint"], "tools": facts["tools"], "data": source_facts(plan.recipe.evaluation)}
    )


def _run_reference(plan: Plan, data: TokenSet | SentenceSet | ImageSet, folder: Path) -> None:
    from openclaw_opt.backends import DecoderSession
    from openclaw_opt.data.load import TokenSet
    from openclaw_opt.metrics.reference import store_arrays, store_tokens
    from openclaw_opt.metrics.scores import array_outputs

    with open_session(plan.checkpoint) as session:
        if isinstance(session, DecoderSession):
            assert isinstance(data, TokenSet)
            assert isinstance(plan.spec, DecoderSpec)
            store_tokens(session.logits, data.sequences, plan.spec.vocab, folder)
            return
    facts = _hf_facts(plan.spec)
    store_arrays(array_outputs(Opener(lambda: open_session(plan.checkpoint), "reference"), data, facts), folder)


def _hf_facts(spec: DecoderSpec | HfSpec) -> GraphFacts:
    from openclaw_opt.models.export import input_shapes

    assert isinstance(spec, HfSpec)
    return GraphFacts(
        task=spec.task,
        dialect="portable",
        dtype="float32",
        family=spec.family,
        opset=23,
        batch_first_shapes=input_shapes(spec),
    )
