"""Tables 4 and 7: MiniLLM without one of its strategies, and without its pre-training loss."""

from __future__ import annotations

from typing import Any

from minillm.publish.found import Found, Trained, average, over_seeds
from minillm.publish.show import Sheet, decimals, merged_labels
from minillm.publish.style import DASH

STRATEGIES = {"no-length-norm": "w/o length norm.", "no-mixing": "w/o teacher-mixed", "no-single-step": "w/o single-step"}


def test_rouge(found: Found, model: Trained, test: str) -> tuple[float, float | None] | None:
    """ROUGE-L of a model on a test set."""
    return over_seeds(found.metrics("rouge", model, test))


def inst_score(found: Found, model: Trained) -> tuple[float, float | None] | None:
    """Mean judge score over the test sets that were judged by a real judge; None where there is none."""
    metrics = {test: found.metrics("judge", model, test) for test in found.names("judge")}
    if any(metric.get("stand_in", True) for own in metrics.values() for metric in own):
        return None
    return average([over_seeds(own) for own in metrics.values()])


def class_accuracy(found: Found, model: Trained) -> tuple[float, float | None] | None:
    """Mean accuracy over the classification tasks, in percent."""
    cells = [over_seeds(found.calibration(model, task), "accuracy", "accuracy_error") for task in found.names("calibration")]
    mean = average(cells)
    if mean is None:
        return None
    scale = 100.0 if all(cell is None or cell[0] <= 1 for cell in cells) else 1.0
    return mean[0] * scale, None if mean[1] is None else mean[1] * scale


def strategies(found: Found) -> Sheet:
    """Table 4: dev ROUGE-L of the chosen checkpoint and test ROUGE-L, MiniLLM and without each strategy."""
    tests = found.settings.table.tests
    present = [method for method in STRATEGIES if method in found.settings.table.methods]
    caption = "MiniLLM without one of its strategies (ROUGE-L)."
    columns = ["Student", "Method", "dev", *map(found.label, tests)]
    if not present or "minillm" not in found.settings.table.methods:
        return Sheet(caption, columns, [], [], [], "", f"not measured: this configuration has none of {', '.join(STRATEGIES)}")
    rows, records = [], []
    n: dict[str, int] = {}
    for _, own in found.pairs():
        ablated = any(model.method in present for model in own)
        for model in own:
            if not ablated or model.method not in ("minillm", *present):
                continue
            values: dict[str, Any] = {"dev": found.dev_rouge(model), **{t: test_rouge(found, model, t) for t in tests}}
            rows.append([model.label, model.method_label, *(decimals(value, 1) for value in values.values())])
            records += [
                {"teacher": model.teacher, "student": model.student, "method": model.method, "set": name,
                 "mean": value and value[0], "standard_error": value and value[1]}
                for name, value in values.items()
            ]  # fmt: skip
            n |= {t: m[0]["n"] for t in tests if (m := found.metrics("rouge", model, t))}
    lacking = [STRATEGIES[method] for method in STRATEGIES if method not in present]
    notes = [
        "dev: of the checkpoint that was chosen by it, sampled without a limit on repeated n-grams; test: as in the main table. The two "
        "are not comparable with each other.",
        "; ".join(f"{found.label(t)}: n = {count}" for t, count in n.items()),
        f"Not in this configuration: {', '.join(lacking)}." if lacking else "",
        f"{DASH}: not evaluated." if any(DASH in row for row in rows) else "",
    ]
    missing = "" if any(record["mean"] is not None for record in records) else "not measured in this run"
    return Sheet(caption, columns, merged_labels(rows), [note for note in notes if note], records, notes[1], missing)


def plain_text(found: Found) -> Sheet:
    """Table 7: MiniLLM with and without L_PT: accuracy on classification, judge score and ROUGE-L on instructions."""
    caption = "MiniLLM with and without the pre-training loss."
    columns = ["Student", "Method", "CLS (%)", "Inst (judge, %)", "Inst (ROUGE-L)"]
    chosen = found.settings.chosen
    if not any(0.0 in methods.values() for methods in chosen.values()):
        return Sheet(
            caption, columns, [], [], [], "", "not measured: no variant of this configuration has lm_coef 0 and is MiniLLM else"
        )
    tests = found.settings.table.tests
    rows: list[list[str]] = []
    records: list[dict[str, Any]] = []
    for _, own in found.pairs():
        without = {m.method for m in own if chosen.get(m.student, {}).get(m.method) == 0.0}
        for model in own if without else ():
            coefficient = chosen.get(model.student, {}).get(model.method)
            if coefficient is None or (coefficient != 0 and model.method != "minillm"):
                continue
            values = {
                "cls": class_accuracy(found, model),
                "inst": inst_score(found, model),
                "rougeL": average([test_rouge(found, model, test) for test in tests]),
            }
            rows.append([model.label, model.method_label, *(decimals(value, 1) for value in values.values())])
            record: dict[str, Any] = {key: value and value[0] for key, value in values.items()}
            who = {"teacher": model.teacher, "student": model.student, "method": model.method}
            records.append({**who, "lm_coef": coefficient, **record})
    notes = [
        f"CLS: mean accuracy over {', '.join(found.names('calibration')) or 'the classification tasks'}. Inst: mean over "
        f"{', '.join(map(found.label, found.names('judge'))) or 'the judged test sets'} of the judge's score, dashes unless a real judge ran; "
        f"ROUGE-L: mean over {', '.join(map(found.label, tests))}.",
        f"{DASH}: not evaluated.",
    ]
    missing = (
        ""
        if any(record[key] is not None for record in records for key in ("cls", "inst", "rougeL"))
        else "not measured in this run"
    )
    return Sheet(caption, columns, merged_labels(rows), notes, records, "", missing)
