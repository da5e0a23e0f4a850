"""Table 8: prompts and the answers of the paper's methods and of MiniLLM without one of its strategies."""

from __future__ import annotations

import random
from typing import Any

from minillm.config import layout
from minillm.data.conversations import are_messages, as_text
from minillm.errors import UserError
from minillm.evaluation.generations import AGAIN, ROW
from minillm.publish.item_results import ItemResults, Trained
from minillm.publish.style import METHOD_NAMES
from minillm.publish.tables.ablations import STRATEGIES
from minillm.publish.tables.sheet import Sheet, merged_labels
from minillm.readers import all_are

# Prompts per test set.
ROWS = 2
# Characters shown of a text; the CSV has it in full.
SHOWN = 400


def samples(results: ItemResults) -> Sheet:
    """Answers of each teacher and its students to a few prompts per test set, drawn with the data seed."""
    caption = (
        "Answers of the paper's methods, and of MiniLLM without one of its strategies, to the same prompts."
    )
    rows, records = [], []
    seed = results.settings.table.sampling_seeds[0]
    shown = [model for model in results.models() if _shown(results, model)]
    for teacher in dict.fromkeys(model.teacher for model in shown):
        models = [model for model in shown if model.teacher == teacher]
        for test in results.settings.table.tests:
            answers = {}
            for model in models:
                by_id = _answers(results, next(iter(model.weights.values())), test, seed)
                if by_id:
                    answers[model] = by_id
            for row in _drawn(answers, f"{results.settings.seed}/{test}"):
                first = next(iter(answers.values()))[row]
                talk = first.get("messages", [])
                asked = as_text(talk) if talk and are_messages(talk) else first["prompt"]
                about = f"{results.label(test)}, row {row}\n{_cut(asked)}"
                lines = [("reference", "", "; ".join(first["references"]))]
                lines += [
                    (model.label, model.method_label, by_id[row]["response"])
                    for model, by_id in answers.items()
                ]
                rows += [[about, f"{name} {method}".strip(), _cut(text)] for name, method, text in lines]
                prompt = {"test": test, "id": row, "prompt": asked}
                records += [
                    {**prompt, "model": name, "method": method, "text": text} for name, method, text in lines
                ]
    notes = [
        f"{ROWS} prompts of each test set, drawn with the seed {results.settings.seed} from those that all "
        f"these models answered, none picked by hand; sampling seed {seed}, first training seed. Texts are "
        f"cut at {SHOWN} characters; table8.csv has them in full."
    ]
    missing = "" if rows else "no generations in this run"
    n = f"{len({(r['test'], r['id']) for r in records})} prompts"
    columns = ["Prompt", "Model", "Answer"]
    return Sheet(caption, columns, merged_labels(rows), notes, records, n, missing, frozenset({0, 2}))


def _shown(results: ItemResults, model: Trained) -> bool:
    """Whether the table has a model: its pair is in the main table, its method among the paper's examples.

    The model itself may have been trained for a sweep.
    """
    main = any(
        pair.teacher == model.teacher and (not model.student or model.student in pair.students)
        for pair in results.settings.table.pairs
    )
    return main and (model.method in METHOD_NAMES or model.method in STRATEGIES)


def _answers(results: ItemResults, weights: str, test: str, seed: int) -> dict[int, dict[str, Any]]:
    """Row id -> generation of one sampling seed; empty if there are none."""
    path = layout.generations(weights, test)
    rows = results.lines(path, AGAIN, ROW | {"prompt": str})
    if not all(all_are(row["references"], str) for row in rows):
        raise UserError(f"{results.folder / path}: a reference that is not text; {AGAIN}")
    return {row["id"]: row for row in rows if row["seed"] == seed}


def _drawn(answers: dict[Any, dict[int, Any]], seed: str) -> list[int]:
    """A few row ids that every model has, in order."""
    common = sorted(set.intersection(*map(set, answers.values()))) if answers else []
    return sorted(random.Random(seed).sample(common, min(ROWS, len(common))))


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
