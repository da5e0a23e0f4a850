"""ROUGE-L counted by hand, and against the package on real rows."""

from __future__ import annotations

import json
import os
import string
from pathlib import Path
from random import Random

import pytest

from minillm.scores import _tokenizer, exact_match, has_tokens, rouge_l


def by_hand(response: str, reference: str) -> float:
    """F-measure x 100 from the longest common subsequence of the words.

    The words are in lower case, and such that no stemmer changes them.
    """
    a, b = response.split(), reference.split()
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    common = table[-1][-1]
    return 200 * common / (len(a) + len(b)) if common else 0.0


@pytest.mark.parametrize(
    ("response", "reference", "expected"),
    [
        ("red blue green", "red blue green", 100.0),
        ("red blue", "red pink blue gray", 200 * 2 / 6),  # a subsequence need not be contiguous
        ("blue red", "red blue", 50.0),  # order counts
        ("red red red", "red", 50.0),  # a word of the reference is used once
        ("one", "two", 0.0),
    ],
)
def test_hand_counted(response: str, reference: str, expected: float) -> None:
    assert rouge_l(response, [reference]) == pytest.approx(expected)
    assert by_hand(response, reference) == pytest.approx(expected)


def test_equal_to_an_independent_count_on_random_texts() -> None:
    words = ["red", "blue", "pink", "gray", "gold", "box", "cat", "sun"]  # no stemmer changes them
    random = Random(7)
    for _ in range(300):
        response, *references = (" ".join(random.choices(words, k=random.randint(1, 15))) for _ in range(3))
        expected = max(by_hand(response, reference) for reference in references)
        assert rouge_l(response, references) == pytest.approx(expected, abs=1e-9)


def test_best_reference_counts_and_stemming_is_on() -> None:
    assert rouge_l("red blue", ["pink", "red gray", "red blue"]) == pytest.approx(100)
    assert rouge_l("\n Running dogs. \n", ["run dog"]) == pytest.approx(100)


def test_empty_response_is_zero() -> None:
    assert rouge_l("", ["red"]) == 0.0
    assert rouge_l("...", ["red"]) == 0.0
    assert rouge_l("", [""]) == 0.0


def test_exact_match() -> None:
    assert exact_match(" The  Cat!\n", ["a dog", "the cat"]) == 100.0
    assert exact_match("the cat sat", ["the cat"]) == 0.0
    assert exact_match("cat", ["the cat"]) == 0.0  # articles stay


@pytest.mark.parametrize("score", [rouge_l, exact_match])
def test_references_are_checked(score) -> None:
    with pytest.raises(ValueError, match="no reference"):
        score("red", [])
    with pytest.raises(ValueError, match="one string"):
        score("red", "red")


def test_equal_to_the_package_on_real_rows() -> None:
    path = Path(os.environ.get("MINILLM_DATA", "")) / "dolly/test.jsonl"
    if not os.environ.get("MINILLM_DATA") or not path.is_file():
        pytest.skip("MINILLM_DATA names no folder with dolly/test.jsonl")
    from rouge_score import rouge_scorer

    lines = path.read_text().split("\n")[:201]
    texts = [json.loads(line).get("output") or json.loads(line)["response"] for line in lines if line]
    texts = [text if isinstance(text, str) else text[0] for text in texts]
    assert len(texts) > 190
    for response, first, second in zip(texts, texts[1:], texts[2:], strict=False):
        scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
        expected = max(scorer.score(text, response.strip())["rougeL"].fmeasure for text in (first, second))
        assert rouge_l(response, [first, second]) == pytest.approx(100 * expected, abs=1e-12)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\u4f60\u597d\uff0c\u4e16\u754c", ["\u4f60", "\u597d", "\u4e16", "\u754c"]),
        (
            "\u041f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440",
            ["\u043f\u0440\u0438\u0432\u0435\u0442", "\u043c\u0438\u0440"],
        ),
        # Vowel signs are marks: they belong to their word.
        (
            "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941",
            ["\u0928\u092e\u0938\u094d\u0924\u0947", "\u0926\u0941"],
        ),
        ("Gr\u00f6\u00dfe, gro\u0308\u00dfer!", ["gr\u00f6\u00dfe", "gr\u00f6\u00dfer"]),
        ("GPT-4\u306f running", ["gpt", "4", "\u306f", "run"]),
        ("\u0e2a\u0e27\u0e31\u0e2a", ["\u0e2a", "\u0e27\u0e31", "\u0e2a"]),
        ("... \u2026 \U0001f600", []),
    ],
)
def test_words_of_all_scripts(text: str, words: list[str]) -> None:
    assert _tokenizer("unicode").tokenize(text) == words
    assert has_tokens([text], "unicode") == bool(words)
    assert rouge_l(text, [text], "unicode") == (100 if words else 0)


def test_the_papers_scorer_knows_no_other_script() -> None:
    text = "\u4f60\u597d"
    assert rouge_l(text, [text]) == 0 and rouge_l(text, [text], "unicode") == 100
    assert not has_tokens([text, "\u2026"]) and has_tokens([text, "a"])


def test_ascii_text_scores_the_same_with_both() -> None:
    random = Random(0)
    letters = string.printable + "abcdefgs  '" * 10
    for _ in range(200):
        a, b = ("".join(random.choices(letters, k=60)) for _ in range(2))
        assert rouge_l(a, [b]) == rouge_l(a, [b], "unicode")
