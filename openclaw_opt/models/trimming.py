"""A decoder with a trimmed vocabulary (`models.vocabulary`): rows of the embedding and the head, tokenizer, configs, and proofs.

Proofs: logits of the tokens that stay are those of the whole decoder; calibration text encodes into the same tokens as before;
and texts that no calibration holds come back as they are when they are encoded and decoded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from openclaw_opt.artifacts import Model, Task
from openclaw_opt.data import Source
from openclaw_opt.data.load import token_counts
from openclaw_opt.errors import RecipeError, VerificationError
from openclaw_opt.models.calibrate import Batch
from openclaw_opt.models.decoder import Decoder
from openclaw_opt.models.store import copy_assets
from openclaw_opt.models.vocabulary import Trimmed, named_ids, renumbered, trim, why_not
from openclaw_opt.numerics.quantization import relative_difference

TOLERANCE = 1e-5
CONFIGS = ("config.json", "generation_config.json")
STALE = ("vocab.json", "merges.txt", "tokenizer.model", "added_tokens.json")
"""Older forms of a tokenizer, which would still hold the whole vocabulary."""
UNSEEN = (
    "The quick brown fox jumps over the lazy dog; 3.14159 × 2 ≈ 6.28318!",
    "Größe, naïve, façade, Ελληνικά, Русский, 日本語, 한국어, العربية, ไทย",
    "def f(x):\n\treturn {x: [x**2 for x in range(10)]}  # \u00a0\u2028 end\r\n",
    "emoji 👩‍👩‍👧‍👦 🇪🇺 and a control \x07, a tab \t, zero-width \u200b",
    "".join(map(chr, range(32, 127))),
)
"""Texts that hold every kind of byte sequence; each tokenizer that is trimmed must give them back."""


@dataclass(frozen=True)
class Vocabulary:
    """A trimmed tokenizer, and how many tokens the model had and the text used."""

    trimmed: Trimmed
    before: int
    used: int

    @property
    def kept(self) -> Tensor:
        return torch.tensor(self.trimmed.kept)


def vocabulary_of(
    source: Model, before: int, text: Source, cache: Path, rows: int | None = None, multiple: int = 1
) -> Vocabulary:
    """What stays of the model's vocabulary of `before` tokens for that text: what occurs, or `rows` of the most frequent.

    Raises:
        RecipeError: the tokenizer cannot be trimmed, or nothing of it can go.
        VerificationError: the trimmed tokenizer loses text.
    """
    file = source.assets / "tokenizer.json"
    old = json.loads(file.read_text(encoding="utf-8"))
    if reason := why_not(old):
        raise RecipeError(f"the tokenizer cannot be trimmed: {reason}", where="prune.vocabulary", fix="leave it out")
    counts = token_counts(text, file, cache)
    stated = {i for config in _configs(source).values() for i in named_ids(config) if i < before}
    made = trim(old, counts, stated, rows, multiple)
    if len(made.kept) >= before:
        what = f"{len(counts)} of {before} tokens occur in the calibration text, and the others must stay with them"
        raise RecipeError(what, where="prune.vocabulary", fix="vocabulary: 0.1, a share to remove, or leave it out")
    prove_text(old, made, [*UNSEEN, *_texts(text)])
    return Vocabulary(made, before, len(counts))


def _texts(source: Source, most: int = 20) -> Iterable[str]:
    return [document.text for document, _ in zip(source.documents(), range(most), strict=False)]


def prove_text(old: dict[str, object], made: Trimmed, texts: Sequence[str]) -> None:
    """Every text comes back as with the old tokenizer, and one whose tokens all stay is the same tokens.

    Raises:
        VerificationError: it does not; the text's beginning is shown.
    """
    theirs, ours = (Tokenizer.from_str(json.dumps(one)) for one in (old, made.tokenizer))
    new = made.new
    for text in texts:
        before, after = (one.encode(text, add_special_tokens=False).ids for one in (theirs, ours))
        if theirs.decode(before, skip_special_tokens=False) != ours.decode(after, skip_special_tokens=False):
            raise VerificationError(f"the trimmed tokenizer does not give back {text[:40]!r}", where="tokenizer.json")
        if all(i in new for i in before) and [new[i] for i in before] != after:
            raise VerificationError(
                f"the trimmed tokenizer splits {text[:40]!r} in another way", where="tokenizer.json"
            )


def with_rows(decoder: Decoder, kept: Tensor) -> Decoder:
    """The decoder with these rows of its embedding and head alone, in that order; other weights are shared."""
    with torch.device("meta"):
        made = Decoder(decoder.spec.model_copy(update={"vocab": len(kept)}))
    state = dict(decoder.state_dict())
    for name in ("embed.weight", "head.weight"):
        state[name] = state[name][kept].contiguous()
    made.load_state_dict(state, assign=True)
    made.tie()
    return made.eval().requires_grad_(False)


@torch.no_grad()
def prove_rows(whole: Decoder, trimmed: Decoder, kept: Tensor, probe: Batch) -> float:
    """Largest relative difference of the logits of tokens that stay; `probe` is in new ids.

    Raises:
        VerificationError: it is above TOLERANCE.
    """
    before = whole(kept[probe[0]], *probe[1:])[0][..., kept]
    difference = relative_difference(before, trimmed(*probe)[0])
    if difference > TOLERANCE:
        what = f"logits with the trimmed vocabulary differ by {difference:.2g} of the largest (at most {TOLERANCE:g} is rounding)"
        raise VerificationError(what, where="head")
    return difference


def assets_of(source: Model, folder: Path, trimmed: Trimmed, task: Task) -> Model:
    """Write the source's assets into `folder`, with the trimmed tokenizer and configs with its ids."""
    model = Model(folder)
    copy_assets(source.assets, model.assets, task)
    for name in STALE:
        (model.assets / name).unlink(missing_ok=True)
    files: dict[str, object] = {name: renumbered(config, trimmed.new) for name, config in _configs(model).items()}
    files["tokenizer.json"] = trimmed.tokenizer
    extra = model.assets / "tokenizer_config.json"
    if extra.is_file():
        config = json.loads(extra.read_text(encoding="utf-8"))
        if "added_tokens_decoder" in config:
            tokens = {int(i): token for i, token in config["added_tokens_decoder"].items()}
            known = {str(trimmed.new[i]): token for i, token in tokens.items() if i in trimmed.new}
            config["added_tokens_decoder"] = known
            files[extra.name] = config
    for name, content in files.items():
        (model.assets / name).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return model


def _configs(model: Model) -> dict[str, dict[str, object]]:
    files = ((name, model.assets / name) for name in CONFIGS)
    return {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files if file.is_file()}
