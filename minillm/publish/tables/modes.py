"""Table `modes`: precision, coverage and probability of right answers, where all are known; what is wrong."""

from __future__ import annotations

from typing import Any

from minillm.publish.item_results import ItemResults
from minillm.publish.style import DASH
from minillm.publish.tables.sheet import Sheet, decimals, merged_labels

CAPTION = "Right answers, where all of them are known."
MEASURES = {
    "validity": "precision\n(%)",
    "validity_coverage": "coverage\n(%)",
    "mode_mass": "mass\n(%)",
    "mode_mass_forms": "forms",
}
# Metric -> heading: what the responses are that are not right.
WRONG = {
    "validity_wrong_fact": "wrong\nfact",
    "validity_forms_mixed": "forms\nmixed",
    "validity_form_broken_off": "broken\noff",
    "validity_unfinished": "unfin-\nished",
    "validity_other": "other",
}
NOTES = (
    "Precision: share of the responses that are right answers. Coverage: share of a prompt's right answers "
    "that its responses reach, one response for each sampling seed. Mass: the model's probability of all "
    "right answers of a prompt together, by scoring each; the rest is void. Forms: effective number of "
    "right answers that this mass is spread over. ± as in the other tables, of precision over sampling "
    "seeds, of the others over prompts; over training seeds if there are several.",
    "Then the responses that are not right, in percent of all: a right answer but for words of the same "
    "class; only sentences of right answers, not those of one; the beginning of a right answer; no end "
    "within the limit; anything else.",
)


def modes(results: ItemResults) -> Sheet:
    """Precision, coverage, mass and forms of each model on each test set, and what is wrong with the rest."""
    columns = ["Test set", "Model", "Method", *MEASURES.values(), *WRONG.values()]
    if results.frame.empty:
        return Sheet(CAPTION, columns, [], [], [], "", "not measured in this run", left=3)
    rows, records, reached = [], [], []
    tests = list(dict.fromkeys([*results.names("validity"), *results.names("mode_mass")]))
    for test in tests:
        for model in results.models():
            values = {metric: results.value(model, metric, test) for metric in (*MEASURES, *WRONG)}
            cells = [
                decimals(value, 1) if metric not in WRONG else decimals(value and (value[0], None), 1)
                for metric, value in values.items()
            ]
            rows.append([results.label(test), model.label, model.method_label, *cells])
            about: dict[str, Any] = {
                "teacher": model.teacher,
                "student": model.student,
                "method": model.method,
                "test": test,
            }
            for metric, value in values.items():
                about[metric], about[f"{metric}_error"] = value or (None, None)
            records.append(about)
        reached += _limit(results, test)
    sizes = results.sizes_text("validity", tests, results.models())
    n = "; ".join(sizes)
    notes = [*NOTES, *reached, f"{n}." if n else ""]
    notes += [f"{DASH}: not evaluated."] if any(DASH in row for row in rows) else []
    return Sheet(CAPTION, columns, merged_labels(rows), [note for note in notes if note], records, n, left=3)


def _limit(results: ItemResults, test: str) -> list[str]:
    """What coverage could be with as many responses."""
    for model in results.models():
        limit = results.value(model, "validity_coverage_uniform", test)
        if limit is not None:
            text = f"{results.label(test)}: as many responses, all right and uniform over the right answers,"
            return [f"{text} would cover {limit[0]:.1f}%."]
    return []
