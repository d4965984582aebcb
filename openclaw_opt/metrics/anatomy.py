"""anatomy: where the time of one request goes on this host, from the engine's files to the text that comes out.

    anatomy.load_ms        opening the engine in a new process until it can run; imports before it are not counted, and the
                           files may be in the system's file cache
    anatomy.tokenize_ms    text to token ids, by the checkpoint's own tokenizer
    anatomy.prefill_ms     the prompt until the first new token's logits
    anatomy.decode_ms      all `new_tokens` after it
    anatomy.detokenize_ms  those ids to text
    anatomy.infer_ms       encoders and vision models: one sample

Each is a median. `load_ms` comes of `loads` processes one after another, the rest of rounds that do one whole request each,
so that the parts are those of the same requests. Images are not decoded or scaled here: a vision model is given arrays.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from openclaw_opt.artifacts import Measurement, Task
from openclaw_opt.errors import MachineError
from openclaw_opt.metrics import Metric, Number
from openclaw_opt.metrics.latency import machine_load, timed

if TYPE_CHECKING:
    from openclaw_opt.backends import Session
    from openclaw_opt.metrics.subject import Subject

DECODER: tuple[Task, ...] = ("decoder",)
TEXT: tuple[Task, ...] = ("decoder", "encoder")
OTHERS: tuple[Task, ...] = ("encoder", "vision")
CHILD = "openclaw_opt.metrics._load_child"
ENOUGH_ROUNDS = 44
Parts = dict[str, list[float]]
"""Name of a part to its milliseconds, one a round."""


def load_command(engine: Path) -> tuple[str, ...]:
    """Arguments after `python` that open the engine of that folder and print how long it took."""
    return ("-m", CHILD, str(engine))


class Anatomy(Metric):
    """Load, tokenize, prefill, decode, detokenize: the parts of one request."""

    summary: ClassVar[str] = "where a request's time goes: load, tokenize, prefill, decode, detokenize"
    timed: ClassVar[bool] = True
    """It times the engine: nothing else should run beside it."""
    depends_on: ClassVar[Literal["artifact", "target", "machine"]] = "machine"
    numbers: ClassVar[tuple[Number, ...]] = (
        Number("anatomy.load_ms", "ms", "lower", "opening the engine in a new process"),
        Number("anatomy.tokenize_ms", "ms", "lower", "text to token ids", TEXT),
        Number("anatomy.prefill_ms", "ms", "lower", "the prompt until the first new token's logits", DECODER),
        Number("anatomy.decode_ms", "ms", "lower", "all new tokens after the first", DECODER),
        Number("anatomy.detokenize_ms", "ms", "lower", "new token ids to text", DECODER),
        Number("anatomy.infer_ms", "ms", "lower", "one sample", OTHERS),
    )

    prompt: int = Field(default=128, gt=0)
    """Tokens of the prompt, or of the text of an encoder; cut to the model's context."""
    new_tokens: int = Field(default=64, gt=1)
    """Tokens decoded after it."""
    loads: int = Field(default=7, ge=1)
    """Processes that open the engine; a median needs 7."""
    time_box_s: float = Field(default=5.0, gt=0)
    """Seconds to measure requests for; measuring ends earlier when there are 44."""
    timeout_s: float = Field(default=300.0, gt=0)
    """Seconds after which opening the engine is given up."""

    def measure(self, subject: Subject) -> list[Measurement]:
        task = subject.facts.task
        if subject.speed.open is None:
            return self.all_unmeasured(task, subject.speed.why, subject=subject.speed.subject)
        loads, why_not = self._loads(subject)
        load = machine_load()
        with ExitStack() as stack:
            try:
                parts = self._parts(stack.enter_context(subject.speed.open()), subject)
            except MachineError as error:
                return self.all_unmeasured(task, error.what, subject=subject.speed.subject)
            times = self._rounds(parts)
        note = "; ".join(part for part in (subject.speed.note, self._conditions(task), load) if part)
        rows = [self._load_row(loads, why_not, load)]
        for name in self.measurement_names(task)[1:]:
            part = name.split(".")[1].removesuffix("_ms")
            rows.append(
                self._median(name, times[part], note) if part in times else self.unmeasured(name, _why(subject))
            )
        return rows

    def _conditions(self, task: Task) -> str:
        said = {
            "decoder": f"prompt {self.prompt}, {self.new_tokens} new tokens",
            "encoder": f"text of {self.prompt} tokens",
        }
        return f"batch 1; {said[task]}" if task in said else "batch 1"

    def _loads(self, subject: Subject) -> tuple[list[float], str]:
        """Milliseconds of each opening, or why there are none."""
        if subject.load_command is None:
            return [], subject.memory_why or "the engine is no folder that a process of its own could open"
        found: list[float] = []
        for _ in range(self.loads):
            command = [sys.executable, *subject.load_command]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=self.timeout_s, check=False)
            except subprocess.TimeoutExpired:
                return [], f"opening took longer than {self.timeout_s:g} s"
            if done.returncode != 0:
                last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                return [], f"opening ended with exit code {done.returncode}: {last}"
            found.append(float(json.loads(done.stdout.strip().splitlines()[-1])["open_ms"]))
        return found, ""

    def _load_row(self, loads: list[float], why: str, note: str) -> Measurement:
        if not loads:
            return self.unmeasured("anatomy.load_ms", why)
        return self._median("anatomy.load_ms", loads, f"a new process each time, files cached; {note}")

    def _median(self, name: str, samples: list[float], note: str) -> Measurement:
        from openclaw_opt.numerics.stats import minimum_samples, percentile_estimate

        estimate = percentile_estimate(samples, 50) if samples else None
        if estimate is None:
            return self.unmeasured(name, f"p50 needs {minimum_samples(50)} samples, {len(samples)} were taken")
        return self.row(name, estimate, note=note)

    def _rounds(self, parts: dict[str, Callable[[], float]]) -> Parts:
        """Whole requests, one after another; the first is not counted."""
        for run in parts.values():
            run()
        times: Parts = {name: [] for name in parts}
        began = time.perf_counter()
        done = 0
        while done < ENOUGH_ROUNDS and (not done or time.perf_counter() - began < self.time_box_s):
            for name, run in parts.items():
                times[name].append(run())
            done += 1
        return times

    def _parts(self, session: Session, subject: Subject) -> dict[str, Callable[[], float]]:
        """What to time, in the order of a request."""
        import numpy as np

        from openclaw_opt.backends import DecoderSession, GenericSession
        from openclaw_opt.metrics.workload import sample_feed, sample_prompt

        facts = subject.facts
        if isinstance(session, GenericSession):
            infer = partial(session.infer, sample_feed(facts, self.prompt))
            return {**self._text(subject, self.prompt), "infer": lambda: timed(infer)}
        assert isinstance(session, DecoderSession)
        ids, steps = sample_prompt(facts, self.prompt, self.new_tokens)
        follow = np.random.default_rng(1).integers(0, facts.vocab or 1, (steps, 1))
        parts = self._text(subject, ids.shape[1])
        back = {"detokenize": parts.pop("detokenize")} if parts else {}
        return {
            **parts,
            "prefill": lambda: timed(partial(session.prefill, ids)),
            "decode": lambda: sum(timed(partial(session.decode, token)) for token in follow),
            **back,
        }

    def _text(self, subject: Subject, length: int) -> dict[str, Callable[[], float]]:
        """Tokenizing about `length` tokens of evaluation text, and the way back; nothing without a tokenizer."""
        if subject.tokenizer is None or subject.facts.task == "vision":
            return {}
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(subject.tokenizer))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        text = sample_text(tokenizer, subject.data, length)
        new = tokenizer.encode(text).ids[: self.new_tokens]
        found: dict[str, Callable[[], float]] = {"tokenize": lambda: timed(lambda: tokenizer.encode(text))}
        if subject.facts.task == "decoder":
            found["detokenize"] = lambda: timed(lambda: tokenizer.decode(new))
        return found


def _why(subject: Subject) -> str:
    return "the checkpoint has no tokenizer.json" if subject.tokenizer is None else "this engine has no such part"


def sample_text(tokenizer: Any, data: Any, length: int) -> str:
    """Text of about `length` tokens: of the evaluation data where there is any, else of the vocabulary in order."""
    from openclaw_opt.data.load import SentenceSet, TokenSet

    if isinstance(data, SentenceSet):
        ids = tokenizer.encode(" ".join(data.texts)).ids[:length]
    elif isinstance(data, TokenSet):
        ids = data.sequences.reshape(-1)[:length].tolist()
    else:
        ids = [i % tokenizer.get_vocab_size() for i in range(length)]
    return str(tokenizer.decode(ids)) or " "
