"""build: the engine, by the backend of the recipe; what this machine cannot build is left one command from finished."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from openclaw_opt.artifacts import Engine, Graph
from openclaw_opt.backends.engines import PACKAGED, packaged
from openclaw_opt.models.spec import DecoderSpec
from openclaw_opt.passes import PROOF, Complaint, Done, Kind, Pass, View, Work
from openclaw_opt.targets import FASTEST, HOST, Target

Triple = tuple[int, int, int]
ORT_FIX = "backend: onnxruntime"
TENSORRT_ONLY = ("batch", "prompt", "timeout_minutes", "engines")


class Build(Pass):
    """Turn the lowered graph into what the runtime loads, and state what every quantized layer really runs in."""

    kind: ClassVar[Kind] = "exact"
    summary: ClassVar[str] = "build the engine and its precision receipt; a format that was not realised fails"
    tools: ClassVar[tuple[str, ...]] = (
        "onnxruntime-gpu", "onnxruntime-genai-cuda", "tensorrt-rtx", "tensorrt", "llama-cpp-python", "gguf", "openvino",
    )  # fmt: skip
    reads: ClassVar[tuple[str, ...]] = ("target",)

    backend: Literal["auto", "onnxruntime", "tensorrt", "gguf", "openvino", "fastest"] = "auto"
    """Runtime to build for. `auto`: TensorRT for a GPU of the target table, ONNX Runtime for a CPU. `gguf`: a file for
    llama.cpp (decoders on a CPU). `openvino`: OpenVINO's model files, for a CPU. `fastest`: build for each that can, time them in
    turns on this machine, keep the faster."""
    batch: Triple | None = None
    """TensorRT: sequences (or images) at once, [min, opt, max]. Default [1, 1, 4]."""
    prompt: Triple | None = None
    """TensorRT: tokens of one prefill or encoder input, [min, opt, max]. Default [1, 128, 512], within the context."""
    timeout_minutes: float | None = Field(None, gt=0)
    """TensorRT: end the build after that time."""
    engines: Literal["one", "each"] | None = None
    """TensorRT-RTX, for several targets: `one` engine that holds every compute capability (the default: weights are there
    once, a further capability adds bytes), or one `each`; cards of one capability share an engine either way."""
    tune: Literal["none", "session"] = "none"
    """ONNX Runtime on `host`: `session` times threads, spinning, memory arena and memory pattern in turns on this machine; an
    option that is faster beyond the interval becomes part of the artifact."""
    require: Literal["realised", "any"] = "realised"
    """`realised`: a quantized layer that the engine runs in another precision fails the build. `any`: it is reported only."""

    @field_validator("batch", "prompt")
    @classmethod
    def _ordered(cls, value: Triple | None) -> Triple | None:
        if value is not None and not 1 <= value[0] <= value[1] <= value[2]:
            raise ValueError("wants [min, opt, max] with 1 <= min <= opt <= max")
        return value

    def check(self, view: View) -> list[Complaint]:
        found = list(self._without_effect(view))
        if view.backend == "tensorrt" and not view.target.module:
            found.append(
                Complaint(
                    f"TensorRT does not build for {view.target.title}", option="backend", fix="backend: onnxruntime"
                )
            )
        found += self._on_this_machine(view)
        if self.tune != "none" and (view.backend not in ("onnxruntime", FASTEST) or view.target.name != HOST):
            found.append(
                Complaint("`tune` times ONNX Runtime on this machine: it wants `target: host`", "tune", "take it out")
            )
        if not any(p.gives() is Graph and p.word == "fuse" for p in view.earlier):
            found.append(Complaint("it takes a graph lowered by `fuse`", fix="put `fuse` before `build`"))
        longest = self._context(view)
        if self.prompt is not None and longest is not None and self.prompt[2] > longest:
            found.append(
                Complaint(
                    f"the longest prompt, {self.prompt[2]} tokens, does not fit into the context of {longest}",
                    option="prompt",
                    fix="lower the third number, or raise `fuse: {context: …}`",
                )
            )
        return found

    def _on_this_machine(self, view: View) -> list[Complaint]:
        """What stands against GGUF, OpenVINO and timing."""
        if view.backend not in (*PACKAGED, FASTEST):
            return []
        if view.target.is_gpu:
            return [Complaint(f"{view.backend} is for a CPU, not for {view.target.title}", "backend", "target: host")]
        if view.backend != "gguf":
            return []
        from openclaw_opt.backends.gguf_facts import refused

        if not isinstance(view.spec, DecoderSpec):
            return [Complaint(f"GGUF is written for decoders, not for a {view.spec.task} model", "backend", ORT_FIX)]
        why = [*refused(view.spec, self._context(view)), *self._factors(view.spec, view.earlier)]
        return [Complaint(one, "backend", ORT_FIX) for one in why]

    @staticmethod
    def _factors(spec: DecoderSpec, earlier: tuple[Pass, ...]) -> list[str]:
        """AWQ's input factors of `o` move into the values, unless several query heads share one."""
        from fnmatch import fnmatchcase

        from openclaw_opt.passes.quantize import Quantize

        if all(layer.q_heads == layer.kv_heads for layer in spec.layers):
            return []
        parts = [part for p in earlier if isinstance(p, Quantize) for part in p.parts("decoder")]
        awq = [part for part in parts if part.algorithm_for("decoder").startswith("awq")]
        kept = [pattern for p in awq for pattern in p.patterns("decoder")]
        if not awq or any(fnmatchcase("layers.0.o", pattern) for pattern in kept):
            return []
        return ["GGUF has no place for AWQ's factors on `o` with grouped queries; quantize with algorithm: rtn"]

    def _without_effect(self, view: View) -> list[Complaint]:
        if view.backend == "tensorrt":
            found = []
            if self.prompt is not None and view.spec.task == "vision":
                found.append(Complaint("`prompt` has no effect on a vision model", option="prompt"))
            if self.engines is not None and all(one.compute == view.target.compute for one in view.others):
                what = "`engines` has no effect on targets of one compute capability"
                found.append(Complaint(what, option="engines", fix="take it out, or name further targets"))
            return found
        if view.others:
            what = f"{view.backend} builds one artifact for any card, not one for each of several targets"
            return [Complaint(what, option="backend", fix="name one target")]
        return [
            Complaint(
                f"`{name}` has no effect on {view.backend}: its graphs are dynamic", option=name, fix="take it out"
            )
            for name in TENSORRT_ONLY
            if getattr(self, name) is not None
        ]

    @staticmethod
    def _context(view: View) -> int | None:
        if not isinstance(view.spec, DecoderSpec):
            return None
        asked = [getattr(p, "context", None) for p in view.earlier if p.word == "fuse"]
        return next((c for c in asked if c is not None), view.spec.context)

    def ingredients(self, view: View) -> dict[str, Any]:
        """Whether this machine can build decides what comes out; with `fastest`, the machine itself does."""
        if view.backend == FASTEST or self.tune != "none":
            from openclaw_opt.targets import cpu_title

            return {"machine": cpu_title(), **{name: packaged(name).missing() for name in PACKAGED}}
        if view.backend != "tensorrt":
            return {}
        from openclaw_opt.backends.tensorrt import cannot_build

        return {"obstacle": next((why for one in (view.target, *view.others) if (why := cannot_build(one))), "")}

    def run(self, source: Graph, work: Work) -> Done[Engine]:
        engine = self.engine_of(source, (work.target, *work.others), work.backend, work.folder, work.progress)
        facts = engine.facts
        proof = self._proof(engine, source, work)
        if not facts.finished:
            return Done(engine, changed=f"kept the verified graph; not built here: {facts.unfinished_why}", count=1)
        realised = sum(row.ok for row in facts.receipt)
        told = f"; {realised} of {len(facts.receipt)} quantized layers run as asked" if facts.receipt else ""
        return Done(engine, changed=f"built {', '.join(facts.files)} with {facts.tool}{told}", count=1, proof=proof)

    @staticmethod
    def _proof(engine: Engine, source: Graph, work: Work) -> Graph | Engine | None:
        """What must agree exactly with the graph, where the engine rounds activations that the graph does not."""
        if engine.facts.backend == "gguf":
            from openclaw_opt.backends import gguf

            return gguf.build(source, work.target, work.folder / PROOF, proof=True)
        if engine.facts.backend == "openvino":
            from openclaw_opt.backends import openvino

            return openvino.exact_twin(engine, work.folder / PROOF)
        return source if work.backend == FASTEST else None

    def engine_of(
        self,
        source: Graph,
        targets: Sequence[Target],
        backend: str,
        folder: Path,
        progress: Callable[[float, str], None],
    ) -> Engine:
        """Build where this machine can; else keep the graph and say how to finish it."""
        target, others = targets[0], targets[1:]
        strict = self.require == "realised"
        if backend == "onnxruntime":
            from openclaw_opt.backends.onnxruntime import build

            return build(source, target, folder, progress, require_realised=strict, tune=self.tune == "session")
        if backend == "gguf":
            from openclaw_opt.backends import gguf

            return gguf.build(source, target, folder, progress)
        if backend == "openvino":
            from openclaw_opt.backends import openvino

            return openvino.build(source, target, folder, progress, require_realised=strict)
        if backend == FASTEST:
            from openclaw_opt.backends import fastest

            return fastest.build(source, target, folder, progress, require_realised=strict, tune=self.tune == "session")
        from openclaw_opt.backends import tensorrt

        obstacle = next((why for one in targets if (why := tensorrt.cannot_build(one))), "")
        if obstacle:
            engine = tensorrt.unfinished(source, target, folder, obstacle, others)
            engine.write_facts(
                engine.facts.model_copy(update={"finish_command": "openclaw-opt build ARTIFACT --resume"})
            )
            return engine
        return tensorrt.build(
            source, target, self._options(source), folder, lambda phase, part: progress(part, phase), others
        )

    def _options(self, source: Graph) -> Any:
        from openclaw_opt.backends.tensorrt import TensorrtOptions
        from openclaw_opt.backends.trt_profiles import Profiles

        defaults, longest = Profiles(), source.facts.context
        prompt = self.prompt or defaults.prompt
        if self.prompt is None and longest is not None:
            prompt = (1, min(prompt[1], longest), min(prompt[2], longest))
        return TensorrtOptions(
            profiles=Profiles(batch=self.batch or defaults.batch, prompt=prompt),
            timeout_s=None if self.timeout_minutes is None else 60 * self.timeout_minutes,
            require_realised=self.require == "realised",
            engines=self.engines or "one",
        )
