"""Stages `data` and `testset`, and what training reads back."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from data_case import BASE, TEST, card, embedded, message, needs_data, row, rows_file
from tokenizers import Tokenizer as Backend
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from minillm.config.data import Dataset, Tokenizer
from minillm.data import embedded_corpus
from minillm.data import prepare as prepare_module
from minillm.data.batching import collate
from minillm.data.prepare import run_stage as prepare
from minillm.data.prepare import statistics, subset
from minillm.data.rows import Corpus, Rows
from minillm.data.test_set import run_stage as prepare_test
from minillm.data.tokenizers import END
from minillm.errors import UserError


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "training"
    prepare(BASE, out=out)
    return out


# --- stage data
def test_files_of_the_contract_and_nothing_else(prepared: Path) -> None:
    names = {"tokenizer", "card.json", "corpus.tokens.npy", "corpus.lengths.npy"}
    names |= {f"{s}.{kind}" for s in ("train", "dev") for kind in ("jsonl", "tokens.npy", "lengths.npy")}
    assert {path.name for path in prepared.iterdir()} == names
    assert [path.name for path in prepared.parent.iterdir()] == ["training"]


def test_rows_round_trip(prepared: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(prepared / "tokenizer")
    made = embedded_corpus.instructions("train", 80)
    rows = Rows.open(prepared, "train")
    assert len(rows) == len(rows.records) == 80 and rows.ids == list(range(80))
    assert isinstance(rows.tokens, np.memmap) and rows.tokens.dtype == rows.lengths.dtype == np.int32
    assert rows.lengths.shape == (80, 2) and rows.lengths.sum() == len(rows.tokens)
    for i, record in enumerate(rows.records):
        assert {"id", "prompt", "response", "references"} <= set(record)
        assert record["response"] == made[i]["output"] and record["references"] == [made[i]["output"]]
        assert tokenizer.decode(rows.prompt(i)) == record["prompt"]
        response = rows.response(i)
        assert response[-1] == tokenizer.eos_token_id and (response == tokenizer.eos_token_id).sum() == 1
        assert tokenizer.decode(response[:-1]) == record["response"]


def test_ids_past_16_bits_round_trip(tmp_path: Path) -> None:
    tokens, lengths = [65_535, 65_536, 151_935, 7, 2**31 - 1, 0], [(2, 1), (1, 2)]
    for name in ("train", "corpus"):
        np.save(tmp_path / f"{name}.tokens.npy", np.asarray(tokens, dtype=np.int32))
    np.save(tmp_path / "train.lengths.npy", np.asarray(lengths, dtype=np.int32))
    np.save(tmp_path / "corpus.lengths.npy", np.asarray([4, 2], dtype=np.int32))
    rows, chunks = Rows.open(tmp_path, "train"), Corpus.open(tmp_path)
    assert [(rows.prompt(i).tolist(), rows.response(i).tolist()) for i in range(len(rows))] == [
        ([65_535, 65_536], [151_935]),
        ([7], [2**31 - 1, 0]),
    ]
    assert [chunks.chunk(i).tolist() for i in range(len(chunks))] == [tokens[:4], tokens[4:]]
    assert collate([(rows.prompt(0), rows.response(0))], pad=0).tokens.tolist() == [[65_535, 65_536, 151_935]]


def test_large_ids_are_written_as_they_are(tmp_path: Path) -> None:
    words = {END: 0, "?": 1, **{f"w{i}": i for i in range(2, 70_000)}, "zebra": 70_000}
    backend = Backend(WordLevel(words, unk_token="?"))
    backend.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, unk_token="?").save_pretrained(
        tmp_path / "large"
    )
    train = rows_file(tmp_path / "train.jsonl", row("Name one.", "zebra"))
    spec = Tokenizer(source="folder", path=str(tmp_path / "large"))
    prepare(
        dataclasses.replace(BASE, tokenizer=spec, train=train, corpus=embedded("text", 5)),
        out=tmp_path / "out",
    )
    assert Rows.open(tmp_path / "out", "train").response(0).tolist() == [70_000, 0]


def test_corpus_chunks(prepared: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(prepared / "tokenizer")
    stream = [
        t
        for text in embedded_corpus.plain_text(60)
        for t in [*tokenizer.encode(text), tokenizer.eos_token_id]
    ]
    chunks = Corpus.open(prepared)
    lengths = [len(chunks.chunk(i)) for i in range(len(chunks))]
    assert set(lengths[:-1]) == {64} and 8 <= lengths[-1] <= 64
    assert np.concatenate([chunks.chunk(i) for i in range(len(chunks))]).tolist() == stream[: sum(lengths)]
    assert len(stream) - sum(lengths) < 8
    # A last chunk of exactly 8 tokens is kept, one of 7 is not.
    for rest, kept in ((8, 8), (7, 0)):
        length = next(n for n in range(8, len(stream)) if len(stream) % n == rest)
        prepare(dataclasses.replace(BASE, corpus_length=length), out=tmp_path / str(rest))
        found = np.load(tmp_path / str(rest) / "corpus.lengths.npy")
        assert found.sum() == len(stream) - rest + kept and found[-1] == (kept or length)


def test_without_plain_text_there_is_no_corpus(prepared: Path, tmp_path: Path) -> None:
    """All else is as it was."""
    own = Tokenizer(source="folder", path=str(prepared / "tokenizer"))
    for name, corpus in (("with", BASE.corpus), ("without", None)):
        prepare(dataclasses.replace(BASE, tokenizer=own, corpus=corpus), out=tmp_path / name)
    files = {name: {p.name for p in (tmp_path / name).iterdir()} for name in ("with", "without")}
    assert files["with"] - files["without"] == {"corpus.tokens.npy", "corpus.lengths.npy"}
    whole, bare = (json.loads((tmp_path / name / "card.json").read_text()) for name in ("with", "without"))
    assert "corpus" not in bare and bare["train"] == whole["train"] and bare["content"] != whole["content"]
    with pytest.raises(UserError, match="no corpus here"):
        Corpus.open(tmp_path / "without")
    assert len(Corpus.none()) == 0


def test_card(prepared: Path) -> None:
    found = card(prepared / "card.json")
    for split, count in (("train", 80), ("dev", 20)):
        part = found[split]
        assert (part["read"], part["kept"], part["dropped"], part["sampled_from"]) == (
            count,
            count,
            {},
            count,
        )
        assert part["source"] == f"embedded {split}" and part["duplicates"] == {"count": 0, "first_ids": []}
        lengths = Rows.open(prepared, split).lengths
        for column, key in enumerate(("prompt_tokens", "response_tokens")):
            assert part[key] == statistics(lengths[:, column].tolist())
            assert (
                part[key]["total"] == lengths[:, column].sum()
                and part[key]["max"] == lengths[:, column].max()
            )
        for key, name in (("tokens_sha256", "tokens.npy"), ("rows_sha256", "jsonl")):
            assert part[key] == hashlib.sha256((prepared / f"{split}.{name}").read_bytes()).hexdigest()
    assert found["dev"]["overlap_with_train"] == 0
    assert (
        found["tokenizer"]["sha256"]
        == hashlib.sha256((prepared / "tokenizer" / "tokenizer.json").read_bytes()).hexdigest()
    )
    assert (
        found["corpus"]["documents"] == 60 and found["corpus"]["tokens"] == Corpus.open(prepared).starts[-1]
    )


def test_statistics() -> None:
    assert statistics([1, 2, 3, 10]) == {
        "min": 1,
        "median": 2.5,
        "mean": 4.0,
        "p95": pytest.approx(8.95),
        "max": 10,
        "total": 16,
    }


def test_content_names_the_folder(prepared: Path, tmp_path: Path) -> None:
    first = card(prepared / "card.json")
    prepare(BASE, out=tmp_path / "again")
    assert card(tmp_path / "again" / "card.json") == first
    for i, change in enumerate(
        (
            {"seed": 1, "train": embedded("train", 80, sample=70)},
            {"template": "alpaca", "max_prompt": 500},
            {"corpus_length": 32},
            {"tokenizer": Tokenizer(source="train", vocabulary=300)},
            {"max_response": 3},
        )
    ):
        prepare(dataclasses.replace(BASE, **change), out=tmp_path / str(i))  # type: ignore[arg-type]
    contents = {card(path)["content"] for path in tmp_path.glob("*/card.json")}
    assert len(contents) == 6 and all(len(content) == 64 for content in contents)


def test_content_follows_rows_not_places(tmp_path: Path) -> None:
    contents = []
    for place, answer in (("here", "one"), ("there", "one"), ("other", "two")):
        (tmp_path / place).mkdir()
        train = rows_file(tmp_path / place / "rows.jsonl", row("A."), row("B.", ["fine", answer]))
        prepare(dataclasses.replace(BASE, train=train), out=tmp_path / place / "out")
        contents.append(card(tmp_path / place / "out" / "card.json")["content"])
    assert contents[0] == contents[1] != contents[2]


def test_long_prompts_are_dropped_never_cut(tmp_path: Path) -> None:
    train = rows_file(
        tmp_path / "train.jsonl",
        row("Short."),
        row("Long " * 200),
        row("Empty.", " "),
        row("Also short.", ["", "x"]),
        row("Last."),
    )
    settings = dataclasses.replace(
        BASE, train=train, dev=rows_file(tmp_path / "dev.jsonl", row("D.")), max_prompt=60
    )
    prepare(settings, out=tmp_path / "out")
    part = card(tmp_path / "out" / "card.json")["train"]
    assert (part["read"], part["kept"]) == (5, 2)
    assert part["dropped"] == {"prompt_too_long": 1, "empty_response": 2}
    rows = Rows.open(tmp_path / "out", "train")
    assert rows.ids == [0, 4]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "tokenizer")
    assert all(str(tokenizer.decode(rows.prompt(i))).endswith("### Response:\n") for i in range(len(rows)))
    exact = len(rows.prompt(0))
    prepare(dataclasses.replace(settings, max_prompt=exact), out=tmp_path / "exact")
    assert 0 in Rows.open(tmp_path / "exact", "train").ids
    said = message(lambda: prepare(dataclasses.replace(settings, max_prompt=1), out=tmp_path / "none"))
    assert (
        said == "data.train: every row was dropped (prompt_too_long 3, empty_response 2); "
        "raise data.max_prompt (now 1)"
    )


def test_cut_responses_are_counted(tmp_path: Path) -> None:
    train = rows_file(tmp_path / "train.jsonl", row("A.", "word " * 200), row("B.", "x"))
    prepare(dataclasses.replace(BASE, train=train), out=tmp_path / "out")
    rows = Rows.open(tmp_path / "out", "train")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "tokenizer")
    assert card(tmp_path / "out" / "card.json")["train"]["response_cut"] == 1
    assert len(rows.response(0)) == 80 and tokenizer.eos_token_id not in rows.response(0)
    assert rows.response(1).tolist() == [*tokenizer.encode("x"), tokenizer.eos_token_id]


def test_duplicates_are_counted_and_named(tmp_path: Path) -> None:
    train = rows_file(
        tmp_path / "t.jsonl",
        *(row("Same. ", str(i)) for i in range(8)),
        row("Other."),
        row("Other.", input="x"),
    )
    prepare(dataclasses.replace(BASE, train=train), out=tmp_path / "out")
    assert card(tmp_path / "out" / "card.json")["train"]["duplicates"] == {
        "count": 7,
        "first_ids": [1, 2, 3, 4, 5],
    }


def test_overlap_of_train_and_dev_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    train = rows_file(tmp_path / "train.jsonl", row("A."), row("B.", input="x"), row("C."))
    dev = rows_file(tmp_path / "dev.jsonl", row("D."), row("B."), row(" C.\n", "else", input=" "))
    said = message(lambda: prepare(dataclasses.replace(BASE, train=train, dev=dev), out=tmp_path / "out"))
    assert said == (
        f"data.dev (folder {tmp_path / 'dev.jsonl'}): 1 of its rows are training rows too, "
        f"e.g. row 2 is row 2 of data.train (folder {tmp_path / 'train.jsonl'}); "
        "remove them from one of the two"
    )
    assert not list(tmp_path.glob("*out*"))


def test_sample_is_seeded_and_keeps_the_order(tmp_path: Path) -> None:
    prepare(dataclasses.replace(BASE, train=embedded("train", 80, sample=25)), out=tmp_path / "out")
    ids = Rows.open(tmp_path / "out", "train").ids
    assert len(set(ids)) == 25 and ids == sorted(ids) and ids != list(range(25))
    part = card(tmp_path / "out" / "card.json")["train"]
    assert (part["read"], part["sampled_from"], part["kept"]) == (80, 80, 25)
    items = list(range(1000))
    assert subset(items, 50, 0, "train") == subset(items, 50, 0, "train") != subset(items, 50, 0, "dev")
    assert subset(items, 50, 0, "train") != subset(items, 50, 1, "train")
    assert subset(items, 50, -1, "train") != subset(
        items, 50, -2, "train"
    )  # keys are whole 64-bit numbers, never rounded
    assert subset(items, 0, 0, "x") == subset(items, 1000, 0, "x") == items
    # The sample of one set does not depend on that of another.
    prepare(
        dataclasses.replace(BASE, train=embedded("train", 80, sample=25), dev=embedded("dev", 20, sample=5)),
        out=tmp_path / "b",
    )
    assert Rows.open(tmp_path / "b", "train").ids == ids and len(Rows.open(tmp_path / "b", "dev")) == 5


def test_a_failure_leaves_the_old_folder(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(BASE, out=tmp_path / "out")
    before = card(tmp_path / "out" / "card.json")

    def broken(*_: object) -> None:
        raise RuntimeError("disk full")

    monkeypatch.setattr(prepare_module, "_write_corpus", broken)
    with pytest.raises(RuntimeError):
        prepare(dataclasses.replace(BASE, max_response=4), out=tmp_path / "out")
    assert card(tmp_path / "out" / "card.json") == before and [p.name for p in tmp_path.iterdir()] == ["out"]


def test_too_little_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a\n")
    text = Dataset(source="folder", path=str(tmp_path / "a.txt"))
    said = message(lambda: prepare(dataclasses.replace(BASE, corpus=text), out=tmp_path / "out"))
    assert said == f"data.corpus (folder {tmp_path / 'a.txt'}): fewer than 8 tokens of text; give it more"


def test_opening_what_is_not_there(tmp_path: Path) -> None:
    assert (
        message(lambda: Rows.open(tmp_path, "train"))
        == f"{tmp_path}: no train rows here; run the data stage first"
    )
    assert message(lambda: Corpus.open(tmp_path)) == f"{tmp_path}: no corpus here; run the data stage first"


# --- stage testset
def test_testset(prepared: Path, tmp_path: Path) -> None:
    out = tmp_path / "tests" / "a.jsonl"
    prepare_test(TEST, data=prepared, out=out)
    tokenizer = AutoTokenizer.from_pretrained(prepared / "tokenizer")
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    made = embedded_corpus.instructions("test", 30)
    assert [line["id"] for line in lines] == list(range(30))
    for line, entry in zip(lines, made, strict=True):
        assert set(line) == {"id", "dataset", "prompt", "prompt_tokens", "references"}
        assert line["dataset"] == "tests" and line["references"] == [entry["output"]]
        assert line["prompt_tokens"] == tokenizer.encode(line["prompt"], add_special_tokens=False)
    found = card(tmp_path / "tests" / "a.card.json")
    assert (found["read"], found["kept"], found["dropped"], found["overlap_with_train"]) == (30, 30, {}, 0)
    assert len(found["content"]) == 64
    assert {path.name for path in out.parent.iterdir()} == {"a.jsonl", "a.card.json"}
    prepare_test(TEST, data=prepared, out=tmp_path / "b.jsonl")
    assert (tmp_path / "b.jsonl").read_bytes() == out.read_bytes() and card(tmp_path / "b.card.json") == found


def test_testset_has_the_options_of_a_question(prepared: Path, tmp_path: Path) -> None:
    question = {"instruction": "Which?", "choices": ["red", "blue"], "output": 1}
    dataset = dataclasses.replace(
        rows_file(tmp_path / "t.jsonl", question),
        fields={"options": "choices"},
        where={"instruction": "Which?"},
    )
    prepare_test(dataclasses.replace(TEST, dataset=dataset), data=prepared, out=tmp_path / "a.jsonl")
    (line,) = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert line["options"] == {"A": "red", "B": "blue"} and line["references"] == ["B", "blue"]
    assert "A. red\nB. blue\n" in line["prompt"]
    assert card(tmp_path / "a.card.json")["source"].endswith("t.jsonl instruction=Which?")


def test_testset_overlaps_long_prompts_and_samples(prepared: Path, tmp_path: Path) -> None:
    train, dev = embedded_corpus.instructions("train", 80)[3], embedded_corpus.instructions("dev", 20)[7]
    new = [row(f"New {i}.", ["a", "b"]) for i in range(4)]
    dataset = rows_file(tmp_path / "t.jsonl", new[0], row("Long " * 200), dev, new[1], new[1], new[2], new[3])
    settings = dataclasses.replace(TEST, dataset=dataset)
    prepare_test(settings, data=prepared, out=tmp_path / "a.jsonl")
    found = card(tmp_path / "a.card.json")
    assert (found["read"], found["kept"], found["dropped"]) == (7, 6, {"prompt_too_long": 1})
    assert found["overlap_with_dev"] == {"count": 1, "first_ids": [2]} and found["duplicates"] == {
        "count": 1,
        "first_ids": [4],
    }
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [0, 2, 3, 4, 5, 6] and lines[0]["references"] == ["a", "b"]
    prepare_test(
        dataclasses.replace(settings, dataset=dataclasses.replace(dataset, sample=3)),
        data=prepared,
        out=tmp_path / "s.jsonl",
    )
    ids = [json.loads(line)["id"] for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert len(ids) == 3 and ids == sorted(ids) and set(ids) <= {0, 2, 3, 4, 5, 6}
    dataset = rows_file(tmp_path / "bad.jsonl", new[0], train)
    said = message(
        lambda: prepare_test(
            dataclasses.replace(TEST, dataset=dataset), data=prepared, out=tmp_path / "x.jsonl"
        )
    )
    assert said == (
        f"datasets.tests (folder {tmp_path / 'bad.jsonl'}): 1 of its rows are training rows too, "
        f"e.g. row 1 is row 3 of the training rows of {prepared}; remove them from one of the two"
    )
    assert not list(tmp_path.glob("*x.*"))
    assert "neither a model folder (provenance.json) nor a data folder" in message(
        lambda: prepare_test(TEST, data=tmp_path, out=tmp_path / "x.jsonl")
    )


def test_rows_without_a_reference_eos_in_prompts_and_other_scripts(prepared: Path, tmp_path: Path) -> None:
    dataset = rows_file(
        tmp_path / "t.jsonl",
        row("Empty.", ""),
        row("All empty.", [" ", ""]),
        row("One is not.", ["", "a"]),
        row(f"Say {END} twice."),
        row("Chinese.", ["\u4f60\u597d", "\u4e16\u754c"]),
        row("Both.", ["\u4f60\u597d", "hello"]),
    )
    prepare_test(dataclasses.replace(TEST, dataset=dataset), data=prepared, out=tmp_path / "a.jsonl")
    found = card(tmp_path / "a.card.json")
    assert (found["read"], found["kept"], found["dropped"]) == (6, 4, {"empty_references": 2})
    assert [json.loads(line)["id"] for line in (tmp_path / "a.jsonl").read_text().splitlines()] == [
        2,
        3,
        4,
        5,
    ]
    assert found["eos_in_prompt"] == {"count": 1, "first_ids": [3]}
    assert found["without_rouge_tokens"] == {"count": 1, "first_ids": [4]}
    empty = dataclasses.replace(TEST, dataset=rows_file(tmp_path / "e.jsonl", row("Empty.", "")))
    said = message(lambda: prepare_test(empty, data=prepared, out=tmp_path / "x.jsonl"))
    assert said.startswith("datasets.tests: every row was dropped (empty_references 1); ")
    assert not (tmp_path / "x.jsonl").exists()


def test_an_eos_in_a_training_prompt_is_counted(tmp_path: Path) -> None:
    train = rows_file(tmp_path / "t.jsonl", row("Say it."), row(f"Say {END} twice."))
    prepare(dataclasses.replace(BASE, train=train), out=tmp_path / "out")
    found = card(tmp_path / "out/card.json")
    assert (found["train"]["eos_in_prompt"], found["dev"]["eos_in_prompt"]) == (1, 0)


def test_damaged_arrays_are_one_line(prepared: Path, tmp_path: Path) -> None:
    """Truncated, of another type or shape, no array at all, or not those of the other file."""
    folder = tmp_path / "data"
    shutil.copytree(prepared, folder)
    tokens, lengths = folder / "train.tokens.npy", folder / "train.lengths.npy"
    whole, counts = tokens.read_bytes(), lengths.read_bytes()
    numbers = np.load(lengths)

    def said() -> str:
        return message(lambda: Rows.open(folder, "train"))

    for damage in (
        whole[:-4],
        whole[:50],
        b"",
        b"\x93NUMPY\x01\x00\xff\xff",
        whole.replace(b"<i4", b"|O8"),
        b"{}",
    ):
        tokens.write_bytes(damage)
        assert said().startswith(f"{tokens}: ") and said().endswith("run the data stage again")
    tokens.write_bytes(whole)
    for array in (numbers.astype(np.int64), numbers.astype(np.float32), np.zeros((1, 1, 2), dtype=np.int32)):
        np.save(lengths, array)
        assert said().startswith(f"{lengths}: not an array of int32")
    for array in (numbers[:-1], numbers[:, :1], numbers[:0], numbers.reshape(-1), numbers * [[1, -1]]):
        np.save(lengths, array.astype(np.int32))
        assert said().startswith(f"{lengths}: does not fit train.tokens.npy")
    lengths.write_bytes(counts)
    assert len(Rows.open(folder, "train").records) == 80
    rows = folder / "train.jsonl"
    rows.write_text("".join(rows.read_text(encoding="utf-8").splitlines(True)[:-1]), encoding="utf-8")
    assert "79 rows, but tokens of 80" in message(lambda: Rows.open(folder, "train").records)
    (folder / "corpus.lengths.npy").write_bytes(counts)
    assert "does not fit corpus.tokens.npy" in message(lambda: Corpus.open(folder))


# --- real data
@needs_data
def test_dolly_and_wikitext(tmp_path: Path) -> None:
    settings = dataclasses.replace(
        BASE,
        tokenizer=Tokenizer(source="train", vocabulary=2000),
        train=Dataset(source="folder", path="$MINILLM_DATA/dolly/train.jsonl", rows=200),
        dev=Dataset(source="folder", path="$MINILLM_DATA/dolly/dev.jsonl", sample=50),
        corpus=Dataset(source="folder", path="$MINILLM_DATA/wikitext2/valid.txt", rows=200),
        template="alpaca",
        max_prompt=256,
        max_response=64,
    )
    prepare(settings, out=tmp_path / "out")
    found = card(tmp_path / "out" / "card.json")
    assert (
        found["train"]["read"]
        == 200
        == found["train"]["kept"] + found["train"]["dropped"].get("prompt_too_long", 0)
    )
    assert (
        found["dev"]["read"] == 1000
        and found["dev"]["kept"] == 50
        and found["dev"]["prompt_tokens"]["max"] <= 256
    )
    assert found["corpus"]["documents"] == 200
    test = Dataset(source="folder", path="$MINILLM_DATA/sni/test.jsonl", rows=100)
    prepare_test(
        dataclasses.replace(TEST, name="sni", dataset=test, template="alpaca", max_prompt=400),
        data=tmp_path / "out",
        out=tmp_path / "sni.jsonl",
    )
    lines = [json.loads(line) for line in (tmp_path / "sni.jsonl").read_text().splitlines()]
    assert any(len(line["references"]) > 1 for line in lines)
