"""Metrics of responses other than ROUGE-L: definitions by hand, files, and what is refused."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from word_model import word_model

from minillm.config.launch import Launch
from minillm.config.measurements.metrics import RougeNSettings
from minillm.config.sections import Sampling
from minillm.config.stage_settings import GenerateSettings
from minillm.data import embedded_corpus, open_world
from minillm.errors import UserError
from minillm.evaluation.choice import named
from minillm.evaluation.choice import run_stage as choice
from minillm.evaluation.exact_match import run_stage as exact_match
from minillm.evaluation.numeric import VALUES, last_number, read, score
from minillm.evaluation.numeric import run_stage as numeric
from minillm.evaluation.rouge import run_stage as rouge_l
from minillm.evaluation.rouge_n import run_stage as rouge_n
from minillm.publish.results import frame_of
from minillm.publish.run_models import MetricFile
from minillm.sampling.generate import run_stage as generate
from minillm.scores import rouge


def write(folder: Path, texts: dict[int, list[str]], references: list[list[str]], **row: object) -> Path:
    """A generations file: seed -> a response for each row."""
    path = folder / "t.jsonl"
    rows = [
        {"id": 2 * i, "dataset": "t", "prompt": "p", "references": right, "response": text, "seed": seed}
        | row
        for seed, responses in texts.items()
        for i, (text, right) in enumerate(zip(responses, references, strict=True))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    meta = {"model": "abc", "sampling": {}, "seeds": list(texts), "dataset": "t", "rows": len(references)}
    path.with_suffix(".meta.json").write_text(json.dumps(meta))
    return path


def overlap(n: int, response: str, reference: str) -> float:
    """F-measure of the n-grams that two texts of plain words share, clipped, in percent."""
    grams = [
        Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
        for words in (response.split(), reference.split())
    ]
    shared = sum((grams[0] & grams[1]).values())
    sizes = sum(grams[0].values()), sum(grams[1].values())
    return 100 * 2 * shared / sum(sizes) if shared else 0.0


@pytest.mark.parametrize("n", [1, 2])
def test_rouge_n_is_the_overlap_of_n_grams(n: int, tmp_path: Path) -> None:
    texts = {10: ["red blue red pink", "gold"], 20: ["blue red", "red"]}
    references = [["red blue gold", "pink red blue red red"], ["gold gold"]]
    path = write(tmp_path, texts, references)
    rouge_n(RougeNSettings(f"rouge{n}", "rouge_score"), generations=path, out=tmp_path / "m.json")
    metric = json.loads((tmp_path / "m.json").read_text())
    expected = {
        str(seed): [
            max(overlap(n, text, reference) for reference in right)
            for text, right in zip(responses, references, strict=True)
        ]
        for seed, responses in texts.items()
    }
    assert metric["metric"] == f"rouge{n}" and metric["ids"] == [0, 2]
    assert {seed: pytest.approx(values) for seed, values in expected.items()} == metric["scores"]
    means = [sum(values) / 2 for values in expected.values()]
    assert metric["mean"] == pytest.approx(sum(means) / 2)
    assert metric["standard_error"] == pytest.approx(abs(means[0] - means[1]) / 2)


def test_rouge_n_counts_words_of_all_scripts_if_asked(tmp_path: Path) -> None:
    path = write(tmp_path, {10: ["кот спит", "red"]}, [["кот"], ["red"]])
    rouge_n(RougeNSettings("rouge1", "rouge_score"), generations=path, out=tmp_path / "a.json")
    rouge_n(RougeNSettings("rouge1", "unicode"), generations=path, out=tmp_path / "b.json")
    ours, unicode = (json.loads((tmp_path / f"{name}.json").read_text()) for name in "ab")
    assert ours["scores"] == {"10": [0, 100]} and ours["without_tokens"] == {"count": 1, "first_ids": [0]}
    assert unicode["scores"]["10"] == pytest.approx([200 / 3, 100]) and unicode["tokenizer"] == "unicode"
    assert rouge("rougeL", "a b c", ["a c"]) == pytest.approx(80)


def test_exact_match_is_that_of_rouges_file(tmp_path: Path) -> None:
    texts = {10: ["The cat.", "cat", " a  DOG"], 20: ["the cat", "the cat!", "dog"]}
    path = write(tmp_path, texts, [["the cat"], ["cat"], ["x", "a dog"]])
    exact_match(generations=path, out=tmp_path / "exact.json")
    rouge_l(generations=path, out=tmp_path / "rouge.json")
    exact, other = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("exact", "rouge"))
    # Articles stay.
    assert exact["scores"] == {"10": [100, 100, 100], "20": [100, 0, 0]}
    assert (exact["mean"], exact["standard_error"]) == (other["exact_match"], other["exact_match_error"])


# --- numeric
@pytest.mark.parametrize(
    ("text", "equal", "other"),
    [
        ("It costs $18.", "18", "81"),
        ("48/2 = <<48/2=24>>24 clips in May.\n#### 72", "72", "24"),
        ("#### 1,234", "1234.0", "1"),
        ("so \\boxed{\\frac{1}{2}} of 8", "0.5", "8"),
        ("First 3, then 4", "4", "3"),
        ("The answer is 42, not 40.", "42", "40"),
        ("{-7}", "-7", "7"),
        ("about 50%", "0.5", "5"),
        ("Twenty-one pens", "21", "20"),
        ("one of them has seven", "7", "1"),
    ],
)
def test_the_number_of_a_text(text: str, equal: str, other: str) -> None:
    assert score(text, [other, equal]) == 100 and score(text, [other]) == 0
    # A reference is read like a response.
    assert score(equal, [text]) == 100


def test_texts_without_a_number() -> None:
    for text in ("", "no idea", "42 ####", "phone someone"):
        assert read(text) == ((), "none") and score(text, ["42"]) == 0
    assert score("42", ["no idea"]) == 0
    assert (last_number("-1,234.50 and x"), last_number("ninety nine"), last_number("a")) == (
        "-1234.50", "99", ""
    )  # fmt: skip


@pytest.mark.parametrize("split", ["test", "open_test"])
def test_every_right_answer_of_the_embedded_arithmetic_is_read(split: str) -> None:
    """The closed task `count` and the open task `sum` in all its forms, against numbers worked out here."""
    if split == "test":
        rows = [row for row in embedded_corpus.instructions(split, 150) if row["category"] == "count"]
    else:
        rows = [row for row in open_world.instructions(split, 30, 16) if row["category"] == "sum"]
    assert len(rows) >= 10
    for row in rows:
        shown = [
            VALUES[word]
            for word in re.findall(r"[a-z]+", row["input"] or row["instruction"])
            if word in VALUES
        ]
        # The last step goes on; two numbers are added.
        total = min(max(2 * shown[-1] - shown[-2], 1), 20) if split == "test" else sum(shown)
        answers = row["output"] if isinstance(row["output"], list) else [row["output"]]
        for answer in answers:
            assert score(answer, [str(total)]) == 100, row
            assert score(answer, [str(total + 1)]) == 0, row


def test_the_file_of_numeric_says_how_numbers_were_read(tmp_path: Path) -> None:
    texts = {10: ["#### 5", "eight", "?"], 20: ["5.0", "9", "x"]}
    path = write(tmp_path, texts, [["2+3=5\n#### 5"], ["4", "8"], ["none"]])
    numeric(generations=path, out=tmp_path / "m.json")
    metric = json.loads((tmp_path / "m.json").read_text())
    assert metric["scores"] == {"10": [100, 100, 0], "20": [100, 0, 0]}
    assert metric["read"] == {"math-verify": 3, "last number": 1, "none": 2}
    assert metric["without_number"] == {"count": 1, "first_ids": [4]}


def test_a_set_without_numbers_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, {10: ["5"]}, [["a cat"]])
    with pytest.raises(
        UserError, match=r"t.jsonl: no reference has a number; remove numeric from metrics.t$"
    ):
        numeric(generations=path, out=tmp_path / "m.json")
    assert not (tmp_path / "m.json").exists()


# --- choice
OPTIONS = {"A": "red wine", "B": "red", "C": "a cat", "10": "ten (10)"}


@pytest.mark.parametrize(
    ("response", "label"),
    [
        ("B", "B"),
        ("The answer is B.", "B"),
        ("(A)", "A"),
        ("A: the first", "A"),
        ("Answer: A\nbecause", "A"),
        ("I think Red", "B"),
        ("red  Wine, not red", "A"),
        ("C, not B", "C"),
        # An article, then the text of an option.
        ("A cat", "C"),
        ("10", "10"),
        ("TEN (10)!", "10"),
        ("b", None),
        ("reddish, AB, 100", None),
        ("", None),
    ],
)
def test_the_option_that_is_named_first(response: str, label: str | None) -> None:
    assert named(response, OPTIONS) == label


def test_the_file_of_choice_counts_what_is_unanswered(tmp_path: Path) -> None:
    right = [["B", "red"], ["A", "red wine"]]
    path = write(tmp_path, {10: ["B.", "?"], 20: ["red wine", "A"]}, right, options=OPTIONS)
    choice(generations=path, out=tmp_path / "m.json")
    metric = json.loads((tmp_path / "m.json").read_text())
    assert metric["scores"] == {"10": [100, 0], "20": [0, 100]}
    assert (metric["unanswered"], metric["responses"]) == (1, 4)
    file = MetricFile("choice", "big", "", "teacher", 10, "t", "big/teacher")
    frame = frame_of(tmp_path, [(file, metric)])
    overall = frame[frame["sampling_seed"].isna()].set_index("metric")["value"].to_dict()
    assert overall == {"choice": 50.0, "choice_unanswered": 25.0}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "id 0: 'options' is missing or not labels with texts"),
        ({"options": {"X": "y", "Z": "w"}}, "id 0: the first reference is not the label of an option"),
    ],
)
def test_rows_that_have_no_options_are_refused(row: dict, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, {10: ["B"]}, [["B"]], **row)
    with pytest.raises(UserError, match=message):
        choice(generations=path, out=tmp_path / "m.json")


def test_options_go_from_a_test_set_to_the_metric(tmp_path: Path) -> None:
    folder = word_model(tmp_path / "model", ["<end>", *"abcdefghijkl"])
    test, out = tmp_path / "test.jsonl", tmp_path / "answers.jsonl"
    shared = {"dataset": "t", "prompt": "a b", "prompt_tokens": [1, 2], "references": ["c", "d"]}
    options = {letter: f"the {letter}" for letter in "cdefgh"}
    rows = [{"id": i, **shared, **({"options": options} if i < 2 else {})} for i in range(3)]
    test.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = GenerateSettings("generate", (10, 20), "fp32", Sampling(max_tokens=3))
    generate(asked, Launch(), test=test, model=folder, out=out)
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert [answer.get("options") for answer in answers] == [options, options, None] * 2
    with pytest.raises(UserError, match="seed 10, id 2: 'options' is missing"):
        choice(generations=out, out=tmp_path / "m.json")
    test.write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    generate(asked, Launch(), test=test, model=folder, out=out)
    choice(generations=out, out=tmp_path / "m.json")
    metric = json.loads((tmp_path / "m.json").read_text())
    for answer in map(json.loads, out.read_text().splitlines()):
        first = next((word for word in answer["response"].split() if word in options), None)
        score = metric["scores"][str(answer["seed"])][answer["id"]]
        assert score == (100 if first == "c" else 0)


def test_exact_match_is_once_in_the_frame(tmp_path: Path) -> None:
    """ROUGE-L's file has it too: a mean over both would take them for two trainings."""
    path = write(tmp_path, {10: ["a", "b"], 20: ["a", "a"]}, [["a"], ["a"]])
    contents = []
    for kind, stage in (("rouge", rouge_l), ("exact_match", exact_match)):
        stage(generations=path, out=tmp_path / f"{kind}.json")
        file = MetricFile(kind, "big", "", "teacher", 10, "t", "big/teacher")
        contents.append((file, json.loads((tmp_path / f"{kind}.json").read_text())))
    frame = frame_of(tmp_path, contents)
    found = frame[frame["metric"] == "exact_match"]
    assert found["value"].tolist() == [75.0, 50.0, 100.0]
    assert found["sampling_seed"].isna().tolist() == [True, False, False]
