"""The cost of each method in time, processors, memory and tokens (benchmarks, provenance), and its score."""

from __future__ import annotations

from typing import Any

from minillm.publish.item_results import ItemResults
from minillm.publish.run_costs import COSTS, costs_of
from minillm.publish.style import DASH
from minillm.publish.tables.sheet import Sheet, decimals, merged_labels

QUANTITIES = (
    "wall (h)",
    "incl. prerequisites (h)",
    "CPU (h)",
    "GPU (h)",
    "memory (GB)",
    "updates",
    "tokens (M)",
)
COLUMNS = ["Model", "Method", *QUANTITIES, "ROUGE-L"]


def costs(results: ItemResults) -> Sheet:
    """One line per model, averaged over training seeds."""
    tests = results.names("rouge")
    rows: list[list[str]] = []
    records: list[dict[str, Any]] = []
    for model in results.models():
        runs = [run for weights in model.weights.values() if (run := costs_of(results, model, weights))]
        values = {key: _mean([run[key] for run in runs]) for key in COSTS}
        score = results.average(model, "rouge", tests)
        shown = [(f"{v:.3g}" if v is not None else DASH) for v in values.values()]
        shown[-1] = DASH if values["tokens"] is None else f"{values['tokens'] / 1e6:.3g}"
        shown[-2] = DASH if values["updates"] is None else f"{values['updates']:.0f}"
        rows.append([model.label, model.method_label, *shown, decimals(score, 1)])
        about = {"teacher": model.teacher, "student": model.student, "method": model.method}
        records.append({**about, **values, "rougeL": score and score[0], "training_seeds": len(runs)})
    notes = [
        "Only the method's own stage, except for the column with prerequisites, which adds the base model, "
        "the teacher with its base model, the teacher's answers for SeqKD, and the SFT that on-policy "
        "methods start from, each once. Wall and CPU hours: from the rules' benchmarks (the last attempt of "
        "a stage that was stopped and resumed). GPU hours: wall hours of the stage × processes, if it ran "
        "on GPUs. Memory: resident.",
        "Tokens: for on-policy methods those newly sampled, summed over the log's collections; for "
        "supervised ones those of the answers trained on, counted each time (updates × batch × mean length "
        "of an answer).",
        f"ROUGE-L: mean over {', '.join(map(results.label, tests)) or 'no test set'}; ± over sampling seeds "
        "for a single training, the sets taken as independent, over training seeds if there are several. "
        f"{DASH}: not recorded.",
    ]
    count = sum(record["training_seeds"] for record in records)
    missing = "" if count else "no trained model of this run has a provenance"
    caption = "What each method cost, next to its score."
    return Sheet(caption, COLUMNS, merged_labels(rows), notes, records, f"{count} trained models", missing)


def _mean(values: list[float | None]) -> float | None:
    recorded = [value for value in values if value is not None]
    return sum(recorded) / len(recorded) if recorded else None
