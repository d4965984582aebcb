"""Writes the two tasks' documents from held-out modules of the standard library: no download, and no text the demo was trained on.

    python examples/tasks/make.py

python_next_line.jsonl  `before`: lines of a module; `lines`: the one that follows and three of other modules, indented as deep
                        and nearly as long, shuffled; `answer`: which one follows
python_text.jsonl       `text`: the first kilobytes of a module

The modules are those of the Python that runs this; the files in the repository are of Python 3.11.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from openclaw_opt.data.python_stdlib import module_names, read_module

HERE = Path(__file__).parent
QUESTIONS, TEXTS = 400, 40
EACH = 8
"""Questions of one module."""
BEFORE = 10
"""Lines that a question shows."""
SHORTEST, LONGEST = 12, 80
"""Characters of an answer."""
POOL, NEAREST = 2000, 12
"""Lines to choose wrong answers from, and how many of them are near enough in length."""
CHARACTERS = 400
"""Of a text."""


def main() -> None:
    rng = random.Random(0)
    modules = sorted(module_names("evaluation"))
    rng.shuffle(modules)
    sources = [text for text in map(read_module, modules) if text.isascii()]
    lines = [[line for line in text.splitlines() if line.strip()] for text in sources]
    every = sorted({line for one in lines for line in one})
    found = [question for one in lines for question in questions(one, rng.sample(every, POOL), rng)]
    rng.shuffle(found)
    write("python_next_line.jsonl", found[:QUESTIONS])
    write("python_text.jsonl", [{"text": text[:CHARACTERS]} for text in sources if len(text) >= CHARACTERS][:TEXTS])


def questions(lines: list[str], others: list[str], rng: random.Random) -> Iterator[dict[str, object]]:
    """A few of a module. The wrong lines are of other modules: the nearest in length, so that length does not tell."""
    places = range(BEFORE, len(lines))
    for place in rng.sample(places, min(EACH, len(places))):
        right = lines[place]
        alike = [line for line in others if depth(line) == depth(right) and line != right and line not in lines]
        if not SHORTEST <= len(right) <= LONGEST or len(alike) < NEAREST:
            continue
        near = sorted(alike, key=lambda line: abs(len(line) - len(right)))[:NEAREST]
        choices = [right, *rng.sample(near, 3)]
        rng.shuffle(choices)
        yield {
            "before": "\n".join(lines[place - BEFORE : place]),
            "lines": [f"\n{line}\n" for line in choices],
            "answer": choices.index(right),
        }


def depth(line: str) -> int:
    return len(line) - len(line.lstrip())


def write(name: str, rows: list[dict[str, object]] | list[dict[str, str]]) -> None:
    (HERE / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{name}: {len(rows)} documents")


if __name__ == "__main__":
    main()
