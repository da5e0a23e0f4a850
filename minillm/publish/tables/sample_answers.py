"""Table 8: what the paper's methods, and MiniLLM without one of its strategies, answer to the same prompts."""

from __future__ import annotations

import json
import random
from typing import Any

from minillm.config import layout
from minillm.errors import UserError
from minillm.publish.item_results import ItemResults, Trained
from minillm.publish.style import METHOD_NAMES
from minillm.publish.tables.ablations import STRATEGIES
from minillm.publish.tables.sheet import Sheet, merged_labels

ROWS = 2  # prompts a test set
SHOWN = 400  # characters of a text; the CSV has it whole


def samples(results: ItemResults) -> Sheet:
    """Answers of a teacher and of its students' models to a few prompts of each test set, drawn by the seed."""
    caption = (
        "Answers of the paper's methods, and of MiniLLM without one of its strategies, to the same prompts."
    )
    rows, records = [], []
    seed = results.settings.table.sampling_seeds[0]
    every = [model for model in results.models() if _shown(results, model)]
    for teacher in dict.fromkeys(model.teacher for model in every):
        models = [model for model in every if model.teacher == teacher]
        for test in results.settings.table.tests:
            answers = {}
            for model in models:
                by_id = _answers(results, next(iter(model.weights.values())), test, seed)
                if by_id:
                    answers[model] = by_id
            for row in _drawn(answers, f"{results.settings.seed}/{test}"):
                first = next(iter(answers.values()))[row]
                about = f"{results.label(test)}, row {row}\n{_cut(first['prompt'])}"
                lines = [("reference", "", "; ".join(first["references"]))]
                lines += [
                    (model.label, model.method_label, by_id[row]["response"])
                    for model, by_id in answers.items()
                ]
                rows += [[about, f"{name} {method}".strip(), _cut(text)] for name, method, text in lines]
                records += [
                    {
                        "test": test,
                        "id": row,
                        "prompt": first["prompt"],
                        "model": name,
                        "method": method,
                        "text": text,
                    }
                    for name, method, text in lines
                ]
    notes = [
        f"{ROWS} prompts of each test set, drawn by the seed {results.settings.seed} among those that all these models answered, none picked "
        f"by hand; sampling seed {seed}, first training seed. Texts are cut at {SHOWN} characters; table8.csv has them whole."
    ]
    missing = "" if rows else "no generations in this run"
    n = f"{len({(r['test'], r['id']) for r in records})} prompts"
    return Sheet(
        caption,
        ["Prompt", "Model", "Answer"],
        merged_labels(rows),
        notes,
        records,
        n,
        missing,
        frozenset({0, 2}),
    )


def _shown(results: ItemResults, model: Trained) -> bool:
    """Whether the table has a model: of a pair of the main table, be it trained for a sweep, and of a method that the paper's examples have."""
    pairs = results.settings.table.pairs
    main = any(
        pair.teacher == model.teacher and (not model.student or model.student in pair.students)
        for pair in pairs
    )
    return main and (model.method in METHOD_NAMES or model.method in STRATEGIES)


def _answers(results: ItemResults, weights: str, test: str, seed: int) -> dict[int, dict[str, Any]]:
    """id -> generation of one sampling seed; empty if there are none."""
    path = layout.generations(weights, test)
    text = results.text(path)
    try:
        lines = [json.loads(line) for line in (text or "").split("\n") if line]
        return {line["id"]: line for line in lines if line["seed"] == seed}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{results.folder / path}: damaged: {error!r}; remove it and generate again"
        ) from None


def _drawn(answers: dict[Any, dict[int, Any]], seed: str) -> list[int]:
    """A few ids that every model has, in order."""
    common = sorted(set.intersection(*map(set, answers.values()))) if answers else []
    return sorted(random.Random(seed).sample(common, min(ROWS, len(common))))


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
