"""A decoder session as lm-eval's model: its log-likelihoods and greedy continuations, whatever runs it.

Tokens, truncation and windows follow lm-eval's own Hugging Face model, so that a checkpoint has the same scores in both:

    loglikelihood          Σ log p of the continuation's tokens after the context; is each of them the most probable one?
    loglikelihood_rolling  Σ log p of a text of any length, in windows of the context that do not overlap in what they predict
    generate_until         the most probable token again and again, until a stop string, the end token or the limit

A request that is longer than the context loses tokens on its left, and `truncated` counts them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lm_eval import utils
from lm_eval.api.model import TemplateLM

from openclaw_opt.backends import DecoderSession
from openclaw_opt.errors import RecipeError, VerificationError
from openclaw_opt.numerics.divergence import log_softmax

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

Asked = tuple[Any, list[int], list[int]]
"""What was asked in words, the context's tokens, the continuation's."""

LOGIT_BYTES = 64 * 2**20
"""Logits held at once."""
GENERATED = 256
"""Tokens of a continuation where the task does not say; lm-eval's own default."""


class SessionModel(TemplateLM):  # type: ignore[misc]
    """lm-eval's model over a session.

    Args:
        session: open; the caller closes it.
        folder: of a checkpoint or an engine: its tokenizer and config.json.
        context: tokens the model takes.
    """

    def __init__(self, session: DecoderSession, folder: Path, context: int) -> None:
        from transformers import AutoTokenizer

        super().__init__()
        self._session, self.max_length = session, context
        self.tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        self.truncated = 0
        if self.prefix_token_id is None:
            raise RecipeError("lm-eval needs a first token, and the tokenizer has no bos and no eos", where=str(folder))

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return bos if bos is not None else self.tokenizer.eos_token_id  # type: ignore[no-any-return]

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids; a text that brings its own first token gets no second one."""
        special = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        if add_special_tokens is None and string.startswith(self.tokenizer.decode(self.prefix_token_id)):
            special = {"add_special_tokens": False}
        return list(self.tokenizer.encode(string, **special))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def _loglikelihood_tokens(self, requests: list[Asked], **_: Any) -> list[tuple[float, bool]]:
        """Longest first, in batches of one padded length; answers in the order of the requests."""
        rows = [self._row(asked) for asked in requests]
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(rows)
        for chosen in self._batches([len(row) - 1 for row, _ in rows]):
            given = self._logits([rows[i][0][:-1] for i in chosen])
            for i, logits in zip(chosen, given, strict=True):
                row, count = rows[i]
                answers[i] = _scored(logits[len(row) - 1 - count : len(row) - 1], row[-count:])
                if requests[i][0] is not None:  # a window of a rolling request is nothing to remember
                    self.cache_hook.add_partial("loglikelihood", requests[i][0], answers[i])
        return answers

    def _row(self, asked: Asked) -> tuple[list[int], int]:
        """The whole row that fits, and how many tokens at its end are scored."""
        words, context, continuation = asked
        if not continuation:
            said = f": {words[1]!r} after {words[0][-40:]!r}" if words else ""
            raise RecipeError(f"a continuation has no token of its own, the tokenizer merges it with its context{said}")
        if len(continuation) > self.max_length:
            raise RecipeError(
                f"a continuation of {len(continuation)} tokens does not fit the context of {self.max_length}"
            )
        whole = context + continuation
        self.truncated += max(0, len(whole) - self.max_length - 1)
        return whole[-(self.max_length + 1) :], len(continuation)

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Indices by falling length; a batch's logits stay within LOGIT_BYTES."""
        order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
        vocab = len(self.tokenizer)
        while order:
            size = max(1, LOGIT_BYTES // (max(1, lengths[order[0]]) * vocab * 4))
            yield order[:size]
            order = order[size:]

    def _logits(self, rows: Sequence[Sequence[int]]) -> Any:
        """[rows, longest, vocab] float32. A causal model does not see the padding at the right."""
        ids = np.full((len(rows), max(map(len, rows))), self.prefix_token_id, np.int64)
        for padded, row in zip(ids, rows, strict=True):
            padded[: len(row)] = row
        return self._session.logits(ids)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        windows: list[Asked] = []
        owner: list[int] = []
        for i, request in enumerate(requests):
            pairs = utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            made: list[Asked] = [(None, *utils.make_disjoint_window(pair)) for pair in pairs]
            windows += made
            owner += [i] * len(made)
        sums = [0.0] * len(requests)
        for i, (score, _) in zip(owner, self._loglikelihood_tokens(windows), strict=True):
            sums[i] += score
        return sums

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        return [self._continued(*request.args) for request in requests]

    def _continued(self, context: str, options: dict[str, Any]) -> str:
        """Greedy; a task that samples is refused, since its score would be another one every time."""
        if options.get("do_sample") or options.get("temperature"):
            raise RecipeError(f"the task samples its answers ({options}); only greedy ones can be compared")
        until = options.get("until") or []
        stops = [until] if isinstance(until, str) else list(until)
        limit = int(options.get("max_gen_toks", options.get("max_new_tokens", GENERATED)))
        if limit >= self.max_length:
            raise RecipeError(f"the task generates {limit} tokens, and the context is {self.max_length}")
        whole = self.tok_encode(context)
        prompt = whole[-(self.max_length - limit) :]
        self.truncated += len(whole) - len(prompt)
        text, made = "", list[int]()
        logits = self._session.prefill(np.array([prompt], np.int64))
        while len(made) < limit:
            token = int(logits[0].argmax())
            if token == self.eot_token_id:
                break
            made.append(token)
            text = self.tokenizer.decode(made, skip_special_tokens=True)
            if any(stop in text for stop in stops) or len(made) == limit:
                break
            logits = self._session.decode(np.array([token], np.int64))
        for stop in stops:
            text = text.split(stop)[0]
        self.cache_hook.add_partial("generate_until", (context, options), text)
        return text


def _scored(logits: Any, tokens: Sequence[int]) -> tuple[float, bool]:
    """Σ log p of `tokens` [n] under logits [n, vocab], and whether each is the most probable."""
    if not np.isfinite(logits).all():
        raise VerificationError("the engine's logits hold NaN or infinity")
    log_probabilities = log_softmax(np.asarray(logits, np.float32))
    wanted = np.asarray(tokens)
    score = float(log_probabilities[np.arange(len(wanted)), wanted].astype(np.float64).sum())
    return score, bool((log_probabilities.argmax(-1) == wanted).all())
