"""The embedded corpus: the same everywhere, disjoint splits, right answers."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import pytest

from minillm.data import embedded_corpus

SIZES = {"train": 2000, "dev": 300, "test": 300, "test_hard": 300}


@pytest.fixture(scope="module")
def splits() -> dict[str, list[dict[str, str]]]:
    return {split: embedded_corpus.instructions(split, rows, 0) for split, rows in SIZES.items()}


def digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def test_the_same_in_another_process_whatever_its_hash_seed() -> None:
    code = (
        "import hashlib, json; from minillm.data import embedded_corpus as corpus; "
        "value = [corpus.instructions('train', 200, 3), corpus.plain_text(200, 3)]; "
        "print(hashlib.sha256(json.dumps(value).encode()).hexdigest())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert found == {
        digest([embedded_corpus.instructions("train", 200, 3), embedded_corpus.plain_text(200, 3)])
    }


def test_the_first_rows_are_these_for_ever() -> None:
    """A change here changes every result that was made from the embedded corpus."""
    assert {split: digest(embedded_corpus.instructions(split, 20)) for split in embedded_corpus.SPLITS} == {
        "train": "07dfe070c70556f246a8c7bc4424b4265e2c86532314e06ad7a68306643a5e80",
        "dev": "ab7d576ca2224dae688420d710dc4f34ddcab0733b52c34e7d9e8a8e23a1825a",
        "test": "b46f8308c1ea5e46da086178d4f2648d15151052df2e9a5503634aa94e6a13a2",
        "test_hard": "b05865c9a67a7701f03a1b5f3f7794d3af8a9bff660318e60acf50414196d90c",
    }
    assert (
        digest(embedded_corpus.plain_text(20))
        == "c72d2806120e2872b830f7fe68cd3508f6a9a9eb20385e02c04c338bfae1b5a6"
    )


def test_one_row_of_each_task_read_by_hand() -> None:
    rows = embedded_corpus.instructions("train", 13)
    assert {i: tuple(rows[i].values()) for i in (0, 1, 2, 3, 5, 6, 7, 12)} == {
        0: ("Describe for Greta: sled.", "", "The sled is a red vehicle from the field.", "describe"),
        1: (
            "What does Ben have?",
            "Ben has a lemon. David has a plum. Kara has a swan.",
            "Ben has a lemon.",
            "who",
        ),
        2: (
            "What number comes next?",
            "Emma counts nine, ten, eleven.",
            "The next number is twelve.",
            "count",
        ),
        3: ("Put these words in order.", "frog bike cherry plum", "bike cherry frog plum", "sort"),
        5: ("Where is it found?", "David sees a banana.", "The banana is found in the kitchen.", "fact"),
        6: ("Give the opposite.", "wide and hard", "narrow and soft", "opposite"),
        7: ("Reverse the order of these words.", "bucket sled frog lamp", "lamp frog sled bucket", "reverse"),
        12: ("Say these words again.", "sled mole hammer", "sled mole hammer", "copy"),
    }


def test_another_seed_gives_other_rows() -> None:
    assert embedded_corpus.instructions("train", 50, 0) != embedded_corpus.instructions("train", 50, 1)
    assert embedded_corpus.plain_text(50, 0) != embedded_corpus.plain_text(50, 1)


def test_fewer_rows_are_the_first_of_more() -> None:
    assert embedded_corpus.instructions("dev", 40) == embedded_corpus.instructions("dev", 100)[:40]
    assert embedded_corpus.plain_text(40) == embedded_corpus.plain_text(100)[:40]


def test_splits_are_disjoint_without_duplicates_and_complete(splits: dict[str, list[dict[str, str]]]) -> None:
    keys = {name: [(row["instruction"], row["input"]) for row in rows] for name, rows in splits.items()}
    assert {name: len(found) for name, found in keys.items()} == SIZES
    assert all(len(set(found)) == len(found) for found in keys.values())
    assert len(set().union(*keys.values())) == sum(SIZES.values())


def test_splits_stay_disjoint_under_any_seed(splits: dict[str, list[dict[str, str]]]) -> None:
    train = {(row["instruction"], row["input"]) for row in splits["train"]}
    for seed in range(1, 4):
        for split in ("dev", "test", "test_hard"):
            assert not train & {
                (row["instruction"], row["input"]) for row in embedded_corpus.instructions(split, 200, seed)
            }


def test_rows_have_the_four_fields_and_vary(splits: dict[str, list[dict[str, str]]]) -> None:
    for rows in splits.values():
        assert all(set(row) == {"instruction", "input", "output", "category"} for row in rows)
        assert all(row["instruction"].strip() and row["output"].strip() for row in rows)
        assert len({row["category"] for row in rows}) >= 6
        assert any(row["input"] for row in rows) and any(not row["input"] for row in rows)
    lengths = [len(row["output"].split()) for row in splits["train"]]
    assert min(lengths) == 1 and max(lengths) >= 15
    words = {
        word for rows in splits.values() for row in rows for text in row.values() for word in text.split()
    }
    words |= {word for text in embedded_corpus.plain_text(1000) for word in text.split()}
    assert len(words) < 800


def test_hard_rows_are_longer(splits: dict[str, list[dict[str, str]]]) -> None:
    def mean(split: str) -> float:
        return sum(len((r["instruction"] + " " + r["input"]).split()) for r in splits[split]) / SIZES[split]

    assert mean("test_hard") > 1.3 * mean("test")


def test_answers_are_right(splits: dict[str, list[dict[str, str]]]) -> None:
    both = {**embedded_corpus.OPPOSITES, **{b: a for a, b in embedded_corpus.OPPOSITES.items()}}
    numbers = {word: i for i, word in enumerate(embedded_corpus.NUMBERS, 1)}
    checked = set()
    for row in (row for rows in splits.values() for row in rows):
        words, answer, category = row["input"].split(), row["output"], row["category"]
        checked.add(category)
        if category == "copy":
            assert answer.split() == words
        elif category == "reverse":
            assert answer.split() == words[::-1]
        elif category == "sort":
            assert answer.split() == sorted(words)
        elif category == "opposite":
            assert answer.split(" and ") == [both[word] for word in row["input"].split(" and ")]
        elif category == "count":
            seen = [numbers[word] for word in row["input"].split(" counts ")[1].rstrip(".").split(", ")]
            following = numbers[answer.removeprefix("The next number is ").rstrip(".")]
            assert len({b - a for a, b in zip(seen, [*seen[1:], following], strict=True)}) == 1
        elif category == "who":
            person, thing = answer.split()[0], answer.split()[-1].rstrip(".")
            assert f"{person} has a {thing}." in row["input"] or f"{person} has an {thing}." in row["input"]
            assert person in row["instruction"] or thing in row["instruction"]
        elif category == "fact":
            thing = words[-1].rstrip(".")
            values = embedded_corpus.THINGS[thing]
            said = [word.strip(".,") for word in answer.split()]
            assert len(set(values) & set(said)) == (3 if row in splits["test_hard"] else 1)
        else:
            assert category == "describe"
            things = row["instruction"].split(": ")[1].rstrip(".").split(" and ")
            assert answer.count(". ") + 1 == len(things)
            assert all(word in answer for thing in things for word in (thing, *embedded_corpus.THINGS[thing]))
    assert checked == {name for name, _ in embedded_corpus.TASKS}


def test_articles_fit(splits: dict[str, list[dict[str, str]]]) -> None:
    texts = [
        text for rows in splits.values() for row in rows for text in (row["input"], row["output"])
    ] + embedded_corpus.plain_text(500)
    pairs = [pair for text in texts for pair in zip(text.split(), text.split()[1:], strict=False)]
    assert not [
        p for p in pairs if (p[0] == "a" and p[1][0] in "aeiou") or (p[0] == "an" and p[1][0] not in "aeiou")
    ]


def test_unknown_split_and_too_many_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="train, dev, test, test_hard, not 'valid'"):
        embedded_corpus.instructions("valid", 5)
    with (
        pytest.raises(ValueError, match="fewer than 3 different rows"),
        pytest.MonkeyPatch.context() as patch,
    ):
        only = {"instruction": "a", "input": "", "output": "b"}
        patch.setattr(embedded_corpus, "TASKS", (("one", lambda rng, hard: dict(only)),))
        embedded_corpus.instructions(embedded_corpus.belongs(("a", "")), 3)


def test_plain_text_is_one_line_each() -> None:
    texts = embedded_corpus.plain_text(300)
    assert len(texts) == 300 and len(set(texts)) > 200
    assert all(text.strip() == text and text and "\n" not in text for text in texts)
