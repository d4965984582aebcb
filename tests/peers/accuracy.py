"""What every format and algorithm keeps, ours and the peers', in one run: docs/results/accuracy.md, raw numbers in accuracy.json.

    python tests/peers/accuracy.py --cache FOLDER [--only WORD] [--merge] [--cached] [--tasks decoder encoder vision] [--output docs/results]

Ours are the builds of examples/results/accuracy.py. A peer lives in a virtual environment of its own under FOLDER (accuracy_rows.py has
the pins) and runs in its own process (accuracy_worker.py): it is given the same checkpoint and the same calibration and evaluation
arrays, and gives back what its model says on the latter. Scores, intervals and verdicts are openclaw_opt's own code, for both sides.
What is in FOLDER is not made again, so an interrupted run goes on where it was, and a change of the code takes a new folder.
With `--merge`, the rows that are run take the place of those in accuracy.json, and the others stay as they are there: accuracy does
not depend on the machine, and the page names the rows whose seconds are of another one (with `--cached`: all rows that FOLDER has).
The page is made of accuracy.json alone.
A peer that fails is `not measured` with its last words. On cores that others use, `OMP_NUM_THREADS=1` makes it many times faster.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "examples" / "results")]

import numpy as np  # noqa: E402

from openclaw_opt.artifacts import Measurement  # noqa: E402
from openclaw_opt.backends.torch_sessions import open_checkpoint_session  # noqa: E402
from openclaw_opt.checkpoint import open_checkpoint  # noqa: E402
from openclaw_opt.data import parse_source  # noqa: E402
from openclaw_opt.data.load import load_images, load_sentences, load_tokens  # noqa: E402
from openclaw_opt.metrics.agreement import agreement_rows  # noqa: E402
from openclaw_opt.metrics.classification import classification_rows  # noqa: E402
from openclaw_opt.metrics.embedding import embedding_rows  # noqa: E402
from openclaw_opt.metrics.perplexity import perplexity_rows  # noqa: E402
from openclaw_opt.metrics.reference import TokenReference, store_tokens  # noqa: E402
from openclaw_opt.metrics.scores import score_sequences  # noqa: E402
from tests.peers import accuracy_page, accuracy_rows, speed  # noqa: E402

WAIT_S = 1200
NOT_RUN = "not run yet"


class Task:
    """One model with its data and what the untouched checkpoint says, in a folder that workers read."""

    def __init__(self, kind: str, folder: Path, checkpoint: Path, data: dict[str, dict[str, Any]]) -> None:
        self.kind, self.folder = kind, folder
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copytree(checkpoint, folder / "checkpoint", dirs_exist_ok=True)
        (folder / "task.json").write_text(json.dumps({"task": kind}))
        self.data = {split: self._load(stated) for split, stated in data.items()}
        for split, found in self.data.items():
            np.savez(folder / f"{split}.npz", **_arrays(kind, found))
        self._reference: Any = None

    def _load(self, stated: dict[str, Any]) -> Any:
        source = parse_source(stated)
        if self.kind == "vision":
            return load_images(source)
        load = load_tokens if self.kind == "decoder" else load_sentences
        return load(source, self.folder / "checkpoint" / "tokenizer.json", self.folder / "data")

    @property
    def reference(self) -> Any:
        """What the untouched checkpoint says on the evaluation data; run once."""
        if self._reference is None:
            self._reference = self._run()
        return self._reference

    def score(self, output: np.ndarray) -> list[Measurement]:
        """A model's output on the evaluation data, scored as every artifact of ours is."""
        reference, data = self.reference, self.data["evaluation"]
        if self.kind == "decoder":
            at = {bytes(ids): row for ids, row in zip(data.sequences, output, strict=True)}
            scores = score_sequences(lambda ids: np.stack([at[bytes(one)] for one in ids]), data.sequences, reference)
            return [*perplexity_rows(scores, data.bytes), *agreement_rows(scores)]
        if self.kind == "encoder":
            return embedding_rows(reference, self._pooled(output))
        return classification_rows(reference, output, data.labels)

    def _pooled(self, hidden: np.ndarray) -> np.ndarray:
        """[texts, longest, hidden] → [texts, hidden], as our wrapper pools."""
        import torch

        from openclaw_opt.models.hf import embed, load_hf

        _, spec = load_hf(open_checkpoint(str(self.folder / "checkpoint")))
        mask = torch.from_numpy(self.data["evaluation"].mask[:, : hidden.shape[1]])
        return np.asarray(embed(torch.from_numpy(hidden), mask, spec).numpy())

    def _run(self) -> TokenReference | np.ndarray:
        data = self.data["evaluation"]
        with open_checkpoint_session(open_checkpoint(str(self.folder / "checkpoint"))) as session:
            if self.kind == "decoder":
                vocab = json.loads((self.folder / "checkpoint" / "config.json").read_text())["vocab_size"]
                return store_tokens(session.logits, data.sequences, vocab, self.folder / "reference")  # type: ignore[union-attr]
            if self.kind == "vision":
                return session.infer({"pixel_values": data.images})["logits"]  # type: ignore[union-attr]
            feed = {"input_ids": data.ids, "attention_mask": data.mask, "token_type_ids": np.zeros_like(data.ids)}
            return session.infer(feed)["embedding"]  # type: ignore[union-attr]


def _arrays(kind: str, data: Any) -> dict[str, np.ndarray]:
    if kind == "decoder":
        return {"ids": data.sequences}
    return {"images": data.images, "labels": data.labels} if kind == "vision" else {"ids": data.ids, "mask": data.mask}


def interpreter(tool: str, cache: Path) -> str:
    """The interpreter of a tool's environment, made if it is not there; our own where it needs none."""
    home = accuracy_rows.HOMES.get(tool)
    return sys.executable if home is None else speed.made(cache / "venvs" / home, accuracy_rows.VENVS[home])


def peer(row: accuracy_rows.Row, task: Task, cache: Path, *, cached: bool = False) -> dict[str, Any]:
    """What it keeps, or why it is not known. Kept in the cache, failures too; with `cached`, nothing is run."""
    out = task.folder / "rows" / row.name
    kept = out / "scored.json"
    if kept.is_file():
        return {**json.loads(kept.read_text()), **_said(row)}
    if cached:
        return {**_said(row), "why": NOT_RUN}
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    try:
        python = interpreter(row.tool, cache)
    except subprocess.CalledProcessError as error:
        return {**_said(row), "why": f"its environment could not be made: {error}"}
    why = run(python, row.name, task.folder, out)
    if why:
        kept.write_text(json.dumps({"why": why}))
        return {"why": why, **_said(row)}
    rows = task.score(np.load(out / "output.npy"))
    found = {"made": json.loads((out / "made.json").read_text()), "rows": [one.model_dump() for one in rows]}
    for file in out.iterdir():
        if file.is_file():
            file.unlink()
    kept.write_text(json.dumps(found))
    return {**found, **_said(row)}


def run(python: str, name: str, folder: Path, out: Path) -> str:
    """The worker in a process of its own; its last words where it fails."""
    env = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}
    log = out / "log"
    with log.open("w") as words:
        command = [python, str(HERE / "accuracy_worker.py"), name, str(folder), str(out)]
        try:
            code = subprocess.run(command, stdout=words, stderr=words, env=env, timeout=WAIT_S, check=False).returncode
        except subprocess.TimeoutExpired:
            return f"not done within {WAIT_S} s"
    lines = [line.strip() for line in log.read_text().splitlines() if line.strip()]
    return "" if code == 0 else (lines[-1] if lines else f"exit code {code}")[:200]


def _said(row: accuracy_rows.Row) -> dict[str, Any]:
    return {"name": row.name, "tool": row.tool, "group": row.group, "bits": row.bits, "note": row.note, "ours": False}


def main() -> None:
    import accuracy as ours

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cache", type=Path, required=True, help="environments, builds and outputs; outside the repository"
    )
    parser.add_argument("--tasks", nargs="+", default=list(accuracy_rows.PEERS), choices=list(accuracy_rows.PEERS))
    parser.add_argument("--only", default="", help="rows whose name holds this; no page is written without --merge")
    parser.add_argument("--merge", action="store_true", help="put these rows among those of OUTPUT/accuracy.json")
    parser.add_argument(
        "--cached", action="store_true", help="run nothing: the page of what is there, the rest `not run yet`"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results")
    args = parser.parse_args()
    cache = args.cache.absolute()
    if ROOT in (cache, *cache.parents):
        parser.error("--cache must lie outside the repository")
    if args.merge and not (args.output / "accuracy.json").is_file():
        parser.error("--merge needs accuracy.json in the output folder")
    found: dict[str, Any] = {}
    for kind in args.tasks:
        checkpoint = ours.checkpoint_of(kind, cache / "accuracy")
        task = Task(kind, cache / "accuracy" / kind, checkpoint, ours.data_of(kind))
        rows = ours.measured(kind, cache / "accuracy", args.only, cached=args.cached)
        for row in accuracy_rows.PEERS[kind]:
            if args.only in row.name:
                print(f"{kind}: {row.name}", file=sys.stderr, flush=True)
                rows.append(peer(row, task, cache, cached=args.cached))
                if why := rows[-1].get("why"):
                    print(f"  not measured: {why}", file=sys.stderr, flush=True)
        found[kind] = rows
    if args.merge:
        found = {kind: [one for one in rows if one.get("why") != NOT_RUN] for kind, rows in found.items()}
        found = accuracy_page.merged(
            accuracy_page.kept((args.output / "accuracy.json").read_text()), found, every_row()
        )
    if args.merge or not args.only:
        args.output.mkdir(parents=True, exist_ok=True)
        text = accuracy_page.raw(found)
        (args.output / "accuracy.json").write_text(text)
        (args.output / "accuracy.md").write_text(accuracy_page.page(accuracy_page.kept(text)))


def every_row() -> dict[str, list[dict[str, Any]]]:
    """Every row that a whole run has, in its order, without numbers."""
    import accuracy as ours

    return {
        kind: [*(ours.said(name) for name in ours.rows(kind)), *(_said(row) for row in rows)]
        for kind, rows in accuracy_rows.PEERS.items()
    }


if __name__ == "__main__":
    main()
