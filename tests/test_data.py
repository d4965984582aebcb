"""Data sources: what a recipe may say, what splits share, and that bytes and tokens are about the same text."""

from __future__ import annotations

import hashlib
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from openclaw_opt.data import Document, Source, overlap, parse_source, part_of, shuffled, source_class, source_names
from openclaw_opt.data._packing import BETWEEN, cover, front, pack
from openclaw_opt.data.load import load_images, load_sentences, load_tokens
from openclaw_opt.data.python_stdlib import module_names
from openclaw_opt.errors import MachineError, RecipeError

PROSE = "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich – 日本語, naïve café 🙂🙂.\n"


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Byte-level BPE of 300 entries: so few that most non-ASCII characters are several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["<s>"], show_progress=False
    )
    tokenizer.train_from_iterator([PROSE], trainer)
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(file))
    return file


@pytest.fixture(scope="module")
def bos_tokenizer_file(tokenizer_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, putting `<s>` in front of every text."""
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    file = tmp_path_factory.mktemp("bos") / "tokenizer.json"
    tokenizer.save(str(file))
    return file


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for index in range(20):
        (folder / f"{index}.txt").write_text(f"Text {index}. " + PROSE * (index + 1), encoding="utf-8")
    return folder


def mistakes(entry: Any, folder: Path = Path()) -> list[str]:
    """Everything that is wrong with a recipe's entry, as a person reads it."""
    with pytest.raises(RecipeError) as caught:
        parse_source(entry, folder=folder)
    return [str(mistake) for mistake in caught.value.mistakes or (caught.value,)]


def refusal(source: Source, tokenizer: Path, cache: Path) -> str:
    with pytest.raises(RecipeError) as caught:
        load_tokens(source, tokenizer, cache)
    return str(caught.value)


# --- the recipe's words


def test_every_file_is_a_source_under_its_own_word() -> None:
    assert source_names() == ("datasets", "digits", "python-docstrings", "python-stdlib", "text")
    assert all(source_class(name).word() == name for name in source_names())


def test_a_source_survives_its_own_description(corpus: Path) -> None:
    entries: list[Any] = [
        {"source": "python-stdlib", "split": "evaluation", "samples": 3, "length": 17, "seed": 2},
        {"source": "text", "path": str(corpus), "unit": "line"},
        {"source": "digits", "split": "train"},
        {"source": "datasets", "name": "org/set", "split": "test[:10%]", "revision": "main"},
    ]
    for entry in entries:
        source = parse_source(entry)
        assert parse_source(json.loads(json.dumps(source.described()))) == source


def test_the_word_alone_is_an_entry_and_still_checked() -> None:
    assert mistakes("python-stdlib") == [
        "split: source 'python-stdlib' needs 'split'\n  fix: legal: train, calibration, evaluation"
    ]


def test_every_mistake_of_an_entry_is_found_at_once() -> None:
    entry = {"source": "python-stdlib", "split": "evalution", "sample": 3, "length": -1, "seed": True}
    assert mistakes(entry) == [
        "split: unknown split 'evalution'; legal: train, calibration, evaluation; did you mean 'evaluation'?",
        "length: input should be greater than 0, got -1",
        "seed: input should be a valid integer, got True",
        "sample: unknown key 'sample' for source 'python-stdlib'\n  fix: did you mean 'samples'?",
    ]


def test_an_unknown_source_is_told_the_nearest() -> None:
    assert mistakes({"source": "python-stdlb"}) == [
        "source: unknown data source 'python-stdlb'\n  fix: did you mean 'python-stdlib'?"
    ]
    assert mistakes({"split": "x"})[0].startswith("source: no `source`\n  fix: legal: datasets, digits")
    assert mistakes({"source": 3})[0].startswith("source: `source` must be a word, got 3")


def test_sources_and_their_overlap_load_neither_numpy_nor_torch() -> None:
    code = (
        "import sys; from openclaw_opt.data import overlap, parse_source as p, source_class, source_names\n"
        "[source_class(name) for name in source_names()]\n"
        "c, e = (p({'source': 'python-stdlib', 'split': s}) for s in ('calibration', 'evaluation'))\n"
        "assert overlap(c, e) is None; p({'source': 'digits', 'split': 'train'}).identities()\n"
        "assert not {'numpy', 'torch', 'tokenizers', 'sklearn', 'datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- splits


def test_splits_share_nothing_and_leave_nothing_out() -> None:
    for name in ("python-stdlib", "digits"):
        parts = [parse_source({"source": name, "split": split}) for split in ("train", "calibration", "evaluation")]
        ids = [part.identities() for part in parts]
        assert all(ids)
        assert len(frozenset.union(*ids)) == sum(map(len, ids))
        assert overlap(parts[0], parts[1]) is overlap(parts[1], parts[2]) is overlap(parts[0], parts[2]) is None


def test_a_module_stays_in_its_split_for_ever() -> None:
    """The checkpoint in examples/ was trained on `train`: if this fails, its held-out numbers are void."""
    assert [part_of(name) for name in ("json.decoder", "socket", "shlex")] == ["calibration", "evaluation", "train"]
    assert "socket" in module_names("evaluation")
    assert not any(part in name.split(".") for name in module_names("train") for part in ("test", "encodings"))


def test_sources_over_the_same_modules_are_seen_to_overlap() -> None:
    code = parse_source({"source": "python-stdlib", "split": "evaluation"})
    prose = parse_source({"source": "python-docstrings", "split": "evaluation"})
    count = len(module_names("evaluation"))
    first, second, third = module_names("evaluation")[:3]
    assert overlap(code, prose) == (
        f"python-stdlib (split evaluation) and python-docstrings (split evaluation) share {count} documents: "
        f"stdlib:{first}, stdlib:{second}, stdlib:{third} and {count - 3} more"
    )


def test_no_docstring_is_in_two_splits() -> None:
    texts = {
        split: {d.text for d in parse_source({"source": "python-docstrings", "split": split}).documents()}
        for split in ("calibration", "evaluation")
    }
    assert min(map(len, texts.values())) > 200
    assert not texts["calibration"] & texts["evaluation"]
    assert all("\n" not in text and len(re.findall("[A-Za-z]+", text)) >= 5 for text in texts["evaluation"])


def test_the_order_depends_on_the_seed_and_on_nothing_else() -> None:
    names = [f"n{index}" for index in range(50)]
    assert shuffled(names, 1) == shuffled(names[::-1], 1) != shuffled(names, 2)


def test_equal_text_is_the_same_document_in_any_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the same line\nonly in a\n")
    (tmp_path / "b.jsonl").write_text('{"text": "the same line\\n"}\n{"text": "only in b"}\n')
    a = parse_source({"source": "text", "path": "a.txt", "unit": "line"}, folder=tmp_path)
    b = parse_source({"source": "text", "path": "b.jsonl"}, folder=tmp_path)
    digest = hashlib.sha256(b"the same line\n").hexdigest()
    assert overlap(a, b) == f"text (split all) and text (split all) share 1 document: sha256:{digest}"


# --- text


def documents(folder: Path, **fields: Any) -> dict[str, str]:
    source = parse_source({"source": "text", "path": ".", **fields}, folder=folder)
    return {document.id: document.text for document in source.documents()}


def test_units_of_text_and_records_of_jsonl(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("one\ntwo\n\nthree\n")
    (tmp_path / "b.jsonl").write_text('{"body": "first"}\n\n{"body": "zwölf"}\n', encoding="utf-8")
    (tmp_path / "ignored.csv").write_text("x")
    records = {"b.jsonl:1": "first", "b.jsonl:3": "zwölf"}
    assert documents(tmp_path, field="body") == {"a.md:1": "one\ntwo\n\nthree\n", **records}
    assert documents(tmp_path, field="body", unit="line") == {
        "a.md:1": "one\n", "a.md:2": "two\n", "a.md:4": "three\n", **records
    }  # fmt: skip
    assert documents(tmp_path, field="body", unit="paragraph") == {
        "a.md:1": "one\ntwo\n",
        "a.md:3": "\nthree\n",
        **records,
    }
    assert documents(tmp_path, path="*.md") == {"a.md:1": "one\ntwo\n\nthree\n"}


def test_the_parts_of_a_text_make_up_the_whole(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("".join(f"line {index}\n" for index in range(300)))
    parts = [documents(tmp_path, unit="line", split=split) for split in ("train", "calibration", "evaluation")]
    assert [len(part) > 10 for part in parts] == [True, True, True]
    assert {**parts[0], **parts[1], **parts[2]} == documents(tmp_path, unit="line")
    assert sum(map(len, parts)) == 300


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "not JSON: Expecting property name enclosed in double quotes at column 2"),
        ("[1]", "a JSON object is wanted, got list"),
        ('{"txet": "a"}', "no field 'text'\n  fix: field: did you mean 'txet'?"),
        ('{"text": 3}', "field 'text' must be text, got int"),
    ],
)
def test_a_bad_line_of_jsonl_is_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(RecipeError) as caught:
        documents(tmp_path)
    assert str(caught.value) == f"{tmp_path}/a.jsonl:2: {message}"


def test_bytes_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"good\nb\xffd\n")
    with pytest.raises(RecipeError) as caught:
        documents(tmp_path, unit="line")
    assert str(caught.value) == f"{tmp_path}/a.txt:2: byte 6 is not UTF-8\n  fix: save the file as UTF-8"


def test_a_path_that_leads_nowhere_is_found_before_work(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    assert mistakes({"source": "text", "path": "corpsu.txt"}, tmp_path) == [
        "path: no such file or folder 'corpsu.txt'; did you mean 'corpus.txt'?"
    ]
    assert mistakes({"source": "text", "path": "empty"}, tmp_path) == [
        "path: 'empty' holds no .jsonl, .md, .py, .txt file"
    ]
    assert mistakes({"source": "text", "path": "*.md"}, tmp_path) == [
        "path: '*.md' holds no .jsonl, .md, .py, .txt file"
    ]


# --- datasets


def hub(split: str, **fields: str) -> Source:
    return parse_source({"source": "datasets", "name": "org/set", "split": split, **fields})


@pytest.mark.parametrize(
    ("a", "b", "shared"),
    [
        ("train", "test", False),
        ("train", "train[:1%]", True),
        ("train[:50%]", "train[50%:]", False),
        ("train[:51%]", "train[50%:]", True),
        ("train[10%:20%]", "train[20%:30%]", False),
        ("train[:100]", "train[100:]", True),  # rows and percents cannot be compared unread
    ],
)
def test_slices_of_a_data_set_that_may_share_rows(a: str, b: str, shared: bool) -> None:
    assert (overlap(hub(a), hub(b)) is not None) is shared
    assert overlap(hub(a, config="x"), hub(b, config="y")) is None


def test_a_malformed_slice_is_refused() -> None:
    assert mistakes({"source": "datasets", "name": "a/b", "split": "train[:1"}) == [
        "split: split 'train[:1' is not a name with an optional slice, e.g. `train` or `train[:10%]`"
    ]


def test_a_missing_package_is_the_machines_fault(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tokenizer_file: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said = {"datasets": "datasets", "digits": "scikit-learn"}
    for source in (hub("train"), parse_source({"source": "digits", "split": "train"})):
        package = said[source.word()]
        problem = source.missing()
        assert isinstance(problem, MachineError)
        assert str(problem) == (
            f"source '{source.word()}' needs {package}, which is not installed\n  fix: pip install {package}"
        )
    with pytest.raises(MachineError):
        load_tokens(hub("train"), tokenizer_file, tmp_path)
    with pytest.raises(MachineError):
        load_images(parse_source({"source": "digits", "split": "train"}))


def test_a_data_set_in_a_local_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"text": f"row {index}"}) + "\n" for index in range(10)))
    source = parse_source({"source": "datasets", "name": str(tmp_path), "split": "train[:50%]"})
    assert sorted(document.text for document in source.documents()) == [f"row {index}" for index in range(5)]
    wrong = parse_source({"source": "datasets", "name": str(tmp_path), "split": "train", "field": "txt"})
    with pytest.raises(RecipeError, match=r"has no column 'txt'\n  fix: did you mean 'text'\?"):
        next(wrong.documents())
    with pytest.raises(RecipeError, match="cannot be loaded"):
        next(parse_source({"source": "datasets", "name": str(tmp_path), "split": "test"}).documents())


# --- bytes and tokens


@given(st.text(max_size=40))
def test_tokens_cover_every_byte_once_whatever_the_text(text: str) -> None:
    tokenizer = byte_level()
    encoding = tokenizer.encode(text)
    if not encoding.ids:
        return
    ends, begins = cover(text, encoding.offsets)
    assert ends[-1] == len(text.encode())
    assert (np.diff(ends) >= 0).all()
    for position in np.flatnonzero(begins):  # where a character begins, cutting the tokens cuts the text
        start = ends[position - 1] if position else 0
        assert tokenizer.decode(encoding.ids[position:]) == text.encode()[start:].decode()


def byte_level() -> Tokenizer:
    """A token a byte: every character beyond ASCII is several."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@pytest.mark.parametrize("length", [5, 16, 33])
def test_bytes_are_those_of_the_decoded_predicted_tokens(
    length: int, tokenizer_file: Path, bos_tokenizer_file: Path
) -> None:
    texts = [Document(str(index), PROSE * (index + 2)) for index in range(4)]
    for file in (tokenizer_file, bos_tokenizer_file):
        tokenizer = Tokenizer.from_file(str(file))
        packed = pack(texts, tokenizer, samples=7, length=length)
        assert packed.sequences.shape == (7, length)
        decoded = [tokenizer.decode(row[1:].tolist()) for row in packed.sequences]
        assert all("\ufffd" not in text for text in decoded), "a character was cut"
        assert packed.bytes == sum(len(text.encode()) for text in decoded)


def test_what_the_tokenizer_puts_in_front_begins_every_sequence(tokenizer_file: Path, bos_tokenizer_file: Path) -> None:
    assert front(Tokenizer.from_file(str(tokenizer_file))) == []
    bos = Tokenizer.from_file(str(bos_tokenizer_file))
    packed = pack([Document("a", PROSE * 9)], bos, samples=5, length=20)
    assert packed.sequences[:, 0].tolist() == [0] * 5
    assert 0 not in packed.sequences[:, 1:]


def test_a_normaliser_does_not_change_what_is_counted() -> None:
    """WordPiece drops spaces and case; the bytes are still those of the text it was given."""
    vocabulary = {"[UNK]": 0, "hello": 1, "world": 2, "!": 3}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    packed = pack([Document("a", "Hello   WORLD!")], tokenizer, samples=1, length=3)
    assert packed.sequences.tolist() == [[1, 2, 3]]
    assert packed.bytes == len("   WORLD!")


def test_windows_are_spread_and_do_not_repeat_text(tokenizer_file: Path) -> None:
    texts = [Document(str(index), "".join(f"{index}/{word} " for word in range(400))) for index in range(10)]
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    packed = pack(texts, tokenizer, samples=20, length=32)
    assert len(packed.documents) > 2
    rows = [tokenizer.decode(row.tolist()) for row in packed.sequences]
    stream = "".join(document.text + BETWEEN for document in texts)
    places = [stream.index(row) for row in rows]
    assert all(places[i] + len(rows[i]) <= places[i + 1] for i in range(19))


def test_a_special_token_in_a_text_is_text(tmp_path: Path, tokenizer_file: Path) -> None:
    (tmp_path / "a.txt").write_text("a <s> b " * 50)
    loaded = load_tokens(
        parse_source({"source": "text", "path": str(tmp_path), "samples": 1}), tokenizer_file, tmp_path / "c"
    )
    assert 0 not in loaded.sequences


def test_padding_and_truncation_of_the_tokenizers_file_do_not_count(bos_tokenizer_file: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(PROSE * 20, encoding="utf-8")
    source = parse_source({"source": "text", "path": str(tmp_path), "samples": 4, "length": 32})
    plain = load_tokens(source, bos_tokenizer_file, tmp_path / "c")
    padded = Tokenizer.from_file(str(bos_tokenizer_file))
    padded.enable_padding(length=5000)
    padded.enable_truncation(16)
    padded.save(str(tmp_path / "tokenizer.json"))
    assert load_tokens(source, tmp_path / "tokenizer.json", tmp_path / "c").fingerprint == plain.fingerprint


# --- loading and the cache


def small(corpus: Path, **fields: Any) -> Source:
    return parse_source({"source": "text", "path": str(corpus), "samples": 8, "length": 32, **fields})


def test_loading_twice_tokenizes_once_and_gives_the_same(
    corpus: Path, tokenizer_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_tokens(small(corpus), tokenizer_file, tmp_path / "cache")
    assert first.sequences.shape == (8, 32)
    assert first.sequences.dtype == np.int64
    assert first.documents == tuple(sorted(first.documents, key=first.documents.index))
    monkeypatch.setattr("openclaw_opt.data.load.pack", lambda *a: pytest.fail("tokenized again"))
    second = load_tokens(small(corpus), tokenizer_file, tmp_path / "cache")
    assert (second.sequences == first.sequences).all()
    assert (second.bytes, second.fingerprint, second.documents) == (first.bytes, first.fingerprint, first.documents)


def test_changed_text_tokenizer_or_fields_are_seen(
    corpus: Path, tokenizer_file: Path, bos_tokenizer_file: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    prints = [
        load_tokens(small(corpus), tokenizer_file, cache).fingerprint,
        load_tokens(small(corpus, seed=1), tokenizer_file, cache).fingerprint,
        load_tokens(small(corpus), bos_tokenizer_file, cache).fingerprint,
    ]
    for file in corpus.iterdir():
        file.write_text("Changed. " + file.read_text(encoding="utf-8"), encoding="utf-8")
    prints.append(load_tokens(small(corpus), tokenizer_file, cache).fingerprint)
    assert len(set(prints)) == 4


def test_a_damaged_cache_is_made_anew(corpus: Path, tokenizer_file: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = load_tokens(small(corpus), tokenizer_file, cache)
    (file,) = cache.iterdir()
    for damage in (file.read_bytes()[:-40], b"", b"not an archive"):
        file.write_bytes(damage)
        assert load_tokens(small(corpus), tokenizer_file, cache).fingerprint == first.fingerprint
    assert [each.suffix for each in cache.iterdir()] == [".npz"]


def test_too_little_text_tells_how_much_there_is(corpus: Path, tokenizer_file: Path, tmp_path: Path) -> None:
    source = small(corpus, path=str(corpus / "0.txt"), samples=50, length=24)
    message = refusal(source, tokenizer_file, tmp_path)
    assert message == (
        "samples: source 'text' (split all) holds 2 sequences of 24 tokens (65 tokens in all), the recipe asks for 50"
        "\n  fix: samples: 2"
    )
    enough = small(corpus, path=str(corpus / "0.txt"), samples=2, length=24)
    assert len(load_tokens(enough, tokenizer_file, tmp_path).sequences) == 2
    assert refusal(small(corpus, path=str(corpus / "0.txt"), length=500), tokenizer_file, tmp_path).endswith(
        "holds 0 sequences of 500 tokens (65 tokens in all), the recipe asks for 8"
        "\n  fix: use more text, or a smaller `length`"
    )
    assert refusal(small(corpus, length=1), tokenizer_file, tmp_path) == (
        "length: sequences of 1 tokens are too short\n  fix: length: 256"
    )


def test_an_empty_source_is_refused(tmp_path: Path, tokenizer_file: Path) -> None:
    (tmp_path / "a.txt").write_text(" \n")
    source = parse_source({"source": "text", "path": str(tmp_path)})
    message = "source: source 'text' (split all) is empty\n  fix: choose another split or other files"
    assert refusal(source, tokenizer_file, tmp_path / "c") == message
    with pytest.raises(RecipeError, match="is empty"):
        load_sentences(source, tokenizer_file, tmp_path / "c")


def test_a_tokenizer_that_is_missing_or_broken(corpus: Path, tmp_path: Path) -> None:
    assert refusal(small(corpus), tmp_path / "tokenizer.json", tmp_path) == (
        f"{tmp_path}: no tokenizer.json\n  fix: save the checkpoint with a fast tokenizer beside it"
    )
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    assert refusal(small(corpus), tmp_path / "tokenizer.json", tmp_path).startswith(
        f"{tmp_path}/tokenizer.json: not a tokenizer that the library `tokenizers` reads: "
    )


def test_the_wrong_kind_of_source_is_refused(corpus: Path, tokenizer_file: Path, tmp_path: Path) -> None:
    digits = parse_source({"source": "digits", "split": "train"})
    assert refusal(digits, tokenizer_file, tmp_path).startswith("source 'digits' holds images, not text")
    with pytest.raises(RecipeError, match=r"^source 'text' holds text, not images"):
        load_images(small(corpus))


def test_sentences_are_padded_cut_and_masked(tmp_path: Path, tokenizer_file: Path) -> None:
    (tmp_path / "s.txt").write_text("short\na rather longer sentence than that\n" + "x" * 200 + "\n")
    entry = {"source": "text", "path": str(tmp_path), "unit": "line", "samples": 3, "length": 40}
    for _ in range(2):  # made, then from the cache
        loaded = load_sentences(parse_source(entry), tokenizer_file, tmp_path / "cache")
        assert loaded.ids.shape == loaded.mask.shape == (3, 40)
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
        for text, ids, mask in zip(loaded.texts, loaded.ids, loaded.mask, strict=True):
            assert ids[mask == 1].tolist() == tokenizer.encode(text).ids[:40]
            assert not ids[mask == 0].any()
    with pytest.raises(RecipeError, match=r"holds 3 sentences, the recipe asks for 4\n  fix: samples: 3"):
        load_sentences(parse_source({**entry, "samples": 4}), tokenizer_file, tmp_path / "cache")


def test_digits_are_images_with_their_labels() -> None:
    from sklearn.datasets import load_digits

    loaded = load_images(parse_source({"source": "digits", "split": "evaluation", "samples": 100}))
    assert loaded.images.shape == (100, 1, 8, 8)
    assert loaded.images.dtype == np.float32
    assert (loaded.images.min(), loaded.images.max()) == (-1, 1)
    pixels, labels = load_digits(return_X_y=True)
    index = [int(name.removeprefix("digits/")) for name in loaded.documents]
    assert (loaded.images.reshape(100, 64) == pixels[index] / 8 - 1).all()
    assert (loaded.labels == labels[index]).all()
    with pytest.raises(RecipeError, match=r"holds \d+ images, the recipe asks for 5000"):
        load_images(parse_source({"source": "digits", "split": "evaluation", "samples": 5000}))


def test_the_embedded_source_fills_the_default_sets(tokenizer_file: Path, tmp_path: Path) -> None:
    for split in ("calibration", "evaluation"):
        source = parse_source({"source": "python-stdlib", "split": split})
        loaded = load_tokens(source, tokenizer_file, tmp_path)
        assert loaded.sequences.shape == (64, 256)
        assert len(loaded.documents) > 10
        assert math.isclose(loaded.bytes / (64 * 255), 1.7, abs_tol=0.7)
