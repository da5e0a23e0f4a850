"""Verdicts, coverage and mass: hand-counted cases, the generator's own answers, a whole grammar."""

from __future__ import annotations

import itertools
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from minillm.data import embedded_corpus, open_world
from minillm.evaluation import mode_mass, validity

REFERENCES = [
    "Dear Anna, the apple is red. It is a fruit from the garden. Your friend.",
    "To Anna: an apple is a fruit. Its colour is red. Its place is the garden. That is all.",
]


@pytest.mark.parametrize(
    ("response", "finished", "expected"),
    [
        (REFERENCES[1], True, "right"),
        (f"  {REFERENCES[0].replace(' ', '  ')}\n", True, "right"),
        (REFERENCES[0], False, "unfinished"),
        ("Dear Anna, the apple is green. It is a fruit from the garden. Your friend.", True, "wrong fact"),
        ("Dear Ben, the apple is red. It is an animal from the garden. Your friend.", True, "wrong fact"),
        ("Dear Anna, the apple is red. It is a fruit", True, "form broken off"),
        ("", True, "form broken off"),
        ("Dear Anna, the apple is red. Its place is the garden. That is all.", True, "forms mixed"),
        (REFERENCES[0] + " That is all.", True, "forms mixed"),
        ("Dear Anna, the apple is very red. It is a fruit from the garden. Your friend.", True, "other"),
        (REFERENCES[0] + " x", True, "other"),
    ],
)
def test_a_response_has_the_verdict_that_a_reader_gives_it(
    response: str, finished: bool, expected: str
) -> None:
    assert validity.verdict(response, REFERENCES, finished) == expected


def write(path: Path, rows: list[dict[str, Any]], seeds: list[int]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    meta = {"dataset": "open", "rows": len(rows) // len(seeds), "seeds": seeds, "sampling": {}}
    path.with_suffix(".meta.json").write_text(json.dumps(meta))
    return path


def measured(tmp_path: Path, rows: list[dict[str, Any]], seeds: list[int]) -> dict[str, Any]:
    out = tmp_path / "validity.json"
    validity.run_stage(generations=write(tmp_path / "open.jsonl", rows, seeds), out=out)
    result: dict[str, Any] = json.loads(out.read_text())
    return result


def test_a_hand_counted_file(tmp_path: Path) -> None:
    texts = {
        1: {0: "A b. C.", 1: "D.", 2: "x"},
        2: {0: "A b. C.", 1: "E.", 2: "F g."},
    }
    references = {0: ["A b. C.", "A b. D."], 1: ["D.", "E.", "D."], 2: ["F g."]}
    rows = [
        {"id": i, "seed": s, "response": texts[s][i], "references": references[i], "finished": True}
        for s in texts
        for i in references
    ]
    result = measured(tmp_path, rows, [1, 2])
    assert result["per_seed"] == {"1": pytest.approx(200 / 3), "2": 100.0}
    assert result["mean"] == pytest.approx(250 / 3)
    assert result["reached"] == [1, 2, 1]
    assert result["right_answers"] == [2, 2, 1]
    assert result["coverage"] == pytest.approx(100 * (0.5 + 1 + 1) / 3)
    assert result["coverage_uniform"] == pytest.approx(100 * (0.75 + 0.75 + 1) / 3)
    assert result["verdicts"] == {name: {"right": 5, "other": 1}.get(name, 0) for name in validity.VERDICTS}


@pytest.mark.parametrize("forms", open_world.FORMS)
def test_answers_of_the_generator_itself_are_right_and_reach_all_forms(tmp_path: Path, forms: int) -> None:
    rng, seeds = random.Random(forms), list(range(8 * forms))
    entries = open_world.instructions("open_test", 30, forms)
    rows = [
        {"id": i, "seed": s, "response": rng.choice(e["output"]), "references": e["output"], "finished": True}
        for s in seeds
        for i, e in enumerate(entries)
    ]
    result = measured(tmp_path, rows, seeds)
    assert result["mean"] == 100.0
    assert result["coverage"] > 99.0
    assert result["coverage"] == pytest.approx(result["coverage_uniform"], abs=1.0)


def test_one_right_answer_is_the_closed_tasks_behaviour(tmp_path: Path) -> None:
    """With K = 1, as in the closed tasks, precision is exact match, and coverage is reaching it at all."""
    for entries in (
        embedded_corpus.instructions("test", 40),
        open_world.instructions("open_test", 40, 1),
    ):
        rows = []
        for seed in (1, 2):
            for i, entry in enumerate(entries):
                right = entry["output"] if isinstance(entry["output"], str) else entry["output"][0]
                text = right if (i + seed) % 3 else right + " no"
                rows.append(
                    {"id": i, "seed": seed, "response": text, "references": [right], "finished": True}
                )
        result = measured(tmp_path, rows, [1, 2])
        exact = [row["response"] == row["references"][0] for row in rows]
        assert result["mean"] == pytest.approx(100 * sum(exact) / len(exact))
        reached = [exact[i] or exact[i + 40] for i in range(40)]
        assert result["coverage"] == pytest.approx(100 * sum(reached) / 40)


def test_mass_of_a_grammar_that_is_enumerated_whole() -> None:
    """A random law over all strings of two letters of up to four tokens, of which three are right."""
    generator = torch.Generator().manual_seed(3)
    # Of each prefix: the law of its next token (a, b, end); after four letters the end is certain.
    laws: dict[str, np.ndarray] = {}
    strings = ["".join(s) for n in range(5) for s in itertools.product("ab", repeat=n)]
    for prefix in strings:
        law = torch.rand(3, generator=generator, dtype=torch.float64).numpy()
        laws[prefix] = np.array([0, 0, 1.0]) if len(prefix) == 4 else law / law.sum()

    def probability(text: str) -> float:
        steps = [laws[text[:i]]["ab".index(letter)] for i, letter in enumerate(text)]
        return float(math.prod(steps) * laws[text][2])

    every = {text: probability(text) for text in strings}
    assert math.fsum(every.values()) == pytest.approx(1.0, abs=1e-12)
    right = ["ab", "ba", "abab"]
    result = mode_mass.summary([[math.log(every[text]) for text in right]], draws=2)
    assert result["mean"] == pytest.approx(100 * sum(every[text] for text in right), rel=1e-12)
    assert result["void"] == pytest.approx(
        100 * math.fsum(p for text, p in every.items() if text not in right), rel=1e-12
    )
    # Coverage of two draws, over all pairs of draws.
    expected = math.fsum(
        p * q * len({a, b} & set(right)) / 3 for (a, p), (b, q) in itertools.product(every.items(), repeat=2)
    )
    assert result["coverage"] == pytest.approx(100 * expected, rel=1e-12)
    shares = np.array([every[text] for text in right]) / sum(every[text] for text in right)
    assert result["forms"] == pytest.approx(float(np.prod(shares**-shares)), rel=1e-12)


def test_a_mass_that_underflows_still_has_its_forms() -> None:
    result = mode_mass.summary([[-2000.0, -2000.0], [math.log(0.5), -3000.0]], draws=3)
    assert result["mean"] == pytest.approx(25.0)
    assert result["forms"] == pytest.approx(1.5)
    assert result["coverage"] == pytest.approx(100 * (0 + (1 - 0.125) / 2) / 2)
