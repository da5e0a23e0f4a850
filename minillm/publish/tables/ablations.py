"""Tables 4 and 7: MiniLLM without one of its strategies, and without its pre-training loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minillm.publish.item_results import ItemResults, Trained, judge_of
from minillm.publish.published_numbers import BRACKETS, GPT4, Published, bracketed
from minillm.publish.published_numbers import columns as columns_of
from minillm.publish.results import Value, over_sets
from minillm.publish.style import DASH
from minillm.publish.tables.sheet import Sheet, decimals, merged_labels

STRATEGIES = {
    "no-length-norm": "w/o length norm.",
    "no-mixing": "w/o teacher-mixed",
    "no-single-step": "w/o single-step",
}
# The sets that the paper's means are over, by their names in config/config.yaml.
AVERAGED = {"calibration": {"sst2", "boolq"}, "judge": {"dolly", "self_inst", "vicuna"}}


def inst_score(results: ItemResults, model: Trained) -> Value | None:
    """Mean score of a real judge over the judged test sets; None if no real judge scored all of them."""
    rows = results.rows(model, ("judge", "judge_stand_in"), results.names("judge"))
    return None if (rows["metric"] == "judge_stand_in").any() else over_sets(rows, results.names("judge"))


def inst_is_papers(results: ItemResults, model: Trained) -> bool:
    """Whether the mean judge score is over the paper's test sets and GPT-4 gave all scores."""
    return papers_sets(results, "judge") and all(is_gpt4(metric) for metric in _judged(results, model))


def _judged(results: ItemResults, model: Trained) -> list[dict[str, Any]]:
    return [metric for test in results.names("judge") for metric in results.contents("judge", model, test)]


def is_gpt4(metric: dict[str, Any]) -> bool:
    """Whether a judge metric is GPT-4's: not a stand-in's, nor that of a model whose name only begins so."""
    return not metric.get("stand_in", True) and bool(GPT4.fullmatch(judge_of(metric)))


def class_accuracy(results: ItemResults, model: Trained) -> Value | None:
    """Mean accuracy over the classification tasks, in percent."""
    return results.average(model, "accuracy", results.names("calibration"))


def papers_sets(results: ItemResults, kind: str) -> bool:
    """Whether the sets of `kind` are exactly those that the paper's published mean is over."""
    return {name.replace("-", "_") for name in results.names(kind)} == AVERAGED[kind]


def strategies(results: ItemResults) -> Sheet:
    """Table 4: ROUGE-L on dev (of the chosen checkpoint) and test, of MiniLLM and without each strategy."""
    tests = results.names("rouge")
    present = [method for method in STRATEGIES if method in results.settings.table.methods]
    caption = "MiniLLM without one of its strategies (ROUGE-L)."
    columns = ["Student", "Method", "dev", *map(results.label, tests)]
    if not present or "minillm" not in results.settings.table.methods:
        missing = f"not measured: this configuration has none of {', '.join(STRATEGIES)}"
        return Sheet(caption, columns, [], [], [], "", missing)
    rows, records = [], []
    n: dict[str, int] = {}
    compared, dev_rows = False, set()
    for _, students in results.pairs():
        ablated = any(model.method in present for model in students)
        for model in students:
            if not ablated or model.method not in ("minillm", *present):
                continue
            values: dict[str, Any] = {
                "dev": results.dev_rouge(model),
                **{t: results.value(model, "rouge", t) for t in tests},
            }
            paper = {name: results.published("4", model, name, "rougeL") for name in values}
            compared = compared or any(value and paper[name] for name, value in values.items())
            shown = (
                bracketed(decimals(value, 1), value and value[0], paper[name])
                for name, value in values.items()
            )
            rows.append([model.label, model.method_label, *shown])
            about = {"teacher": model.teacher, "student": model.student, "method": model.method}
            records += [
                {
                    **about,
                    "set": name,
                    "training_seeds": len(model.weights),
                    "mean": value and value[0],
                    "standard_error": value and value[1],
                    **columns_of(value and value[0], paper[name]),
                }
                for name, value in values.items()
            ]
            dev_rows.add(results.dev_rows(model))
            n |= {test: sizes[0] for test in tests if (sizes := results.sizes("rouge", [model], test))}
    absent = [STRATEGIES[method] for method in STRATEGIES if method not in present]
    sizes_text = [dev_n(dev_rows), *(f"{results.label(test)}: n = {count}" for test, count in n.items())]
    notes = [
        "dev: of the checkpoint that was chosen by it, sampled without a limit on repeated n-grams; test: as "
        "in the main table. The two are not comparable with each other.",
        "; ".join(filter(None, sizes_text)),
        "±: standard error over training seeds if a row has several (the variants have only the first), "
        "else over sampling seeds.",
        BRACKETS if compared else "",
        f"Not in this configuration: {', '.join(absent)}." if absent else "",
        f"{DASH}: not evaluated." if any(DASH in row for row in rows) else "",
    ]
    missing = "" if any(record["mean"] is not None for record in records) else "not measured in this run"
    return Sheet(caption, columns, merged_labels(rows), list(filter(None, notes)), records, notes[1], missing)


def dev_n(rows: set[int | None]) -> str:
    """The n of dev scores, in words; empty if it is not recorded."""
    recorded = sorted(count for count in rows if count is not None)
    return f"dev: n = {' or '.join(map(str, recorded))}" if recorded else ""


def plain_text(results: ItemResults) -> Sheet:
    """Table 7: MiniLLM with and without L_PT: classification accuracy, judge score and ROUGE-L."""
    caption = "MiniLLM with and without the pre-training loss."
    columns = ["Student", "Method", "CLS (%)", "Inst (judge, %)", "Inst (ROUGE-L)"]
    chosen = results.settings.chosen
    # With and without.
    if not any(0.0 in methods.values() and len(set(methods.values())) > 1 for methods in chosen.values()):
        missing = "not measured: this configuration has no variant that differs from MiniLLM only in lm_coef"
        return Sheet(caption, columns, [], [], [], "", missing)
    rows: list[list[str]] = []
    records: list[dict[str, Any]] = []
    models: list[Trained] = []
    compared = False
    for _, students in results.pairs():
        without = {m.method for m in students if chosen.get(m.student, {}).get(m.method) == 0.0}
        for model in students if without else ():
            of_student = chosen.get(model.student, {})
            coefficient = of_student.get(model.method)
            # Where MiniLLM itself has no plain text, a variant is the one that has.
            if coefficient is None or (
                coefficient and model.method != "minillm" and of_student.get("minillm")
            ):
                continue
            values, paper = _plain_text_values(results, model)
            compared = compared or any(value and paper[name] for name, value in values.items())
            shown = (
                bracketed(decimals(value, 1), value and value[0], paper[name])
                for name, value in values.items()
            )
            rows.append([model.label, model.method_label, *shown])
            record: dict[str, Any] = {}
            for name, value in values.items():
                mean = value and value[0]
                record |= {name: mean, **columns_of(mean, paper[name], f"{name}_")}
            about = {"teacher": model.teacher, "student": model.student, "method": model.method}
            records.append({**about, "lm_coef": coefficient, **record})
            models.append(model)
    notes, n = _plain_text_notes(results, models, compared)
    measured = any(record[name] is not None for record in records for name in ("cls", "inst", "rougeL"))
    missing = "" if measured else "not measured in this run"
    return Sheet(caption, columns, merged_labels(rows), notes, records, n, missing)


def _plain_text_values(
    results: ItemResults, model: Trained
) -> tuple[dict[str, Value | None], dict[str, Published | None]]:
    """The measured values in a row of Table 7, and the published ones that are comparable with them."""
    values = {
        "cls": class_accuracy(results, model),
        "inst": inst_score(results, model),
        "rougeL": results.average(model, "rouge", results.names("rouge")),
    }
    # The paper has no mean ROUGE-L.
    paper: dict[str, Published | None] = {"cls": None, "inst": None, "rougeL": None}
    if papers_sets(results, "calibration"):
        paper["cls"] = results.published("7", model, "average", "cls")
    if inst_is_papers(results, model):
        paper["inst"] = results.published("7", model, "average", "inst")
    return values, paper


def _plain_text_notes(
    results: ItemResults, models: Sequence[Trained], compared: bool
) -> tuple[list[str], str]:
    """The notes under Table 7, and its n in words."""
    tasks, judged, tests = (results.names(kind) for kind in ("calibration", "judge", "rouge"))
    kinds = {"calibration": tasks, "judge": judged, "rouge": tests}
    sizes = (text for kind, names in kinds.items() for text in results.sizes_text(kind, names, models))
    n = "; ".join(dict.fromkeys(sizes))
    judges = sorted({judge_of(metric) for model in models for metric in _judged(results, model)})
    notes = [
        f"CLS: mean accuracy over {', '.join(map(results.label, tasks)) or 'the classification tasks'}. "
        f"Inst: mean over {', '.join(map(results.label, judged)) or 'the judged test sets'} of the judge's "
        f"score, dashes unless a real judge ran (judge: {', '.join(judges) or 'none'}); ROUGE-L: mean over "
        f"{', '.join(map(results.label, tests)) or 'no test set'}.",
        "± for a single training: CLS over rows, the judge's score over prompts, ROUGE-L over sampling "
        "seeds, the sets taken as independent; over training seeds if a row has several.",
        *([BRACKETS] if compared else []),
        "The paper's means are over SST-2 and BoolQ (CLS) and over DollyEval, SelfInst and VicunaEval "
        "(Inst): a published value is shown only next to a mean over exactly these.",
        f"{n}." if n else "",
        f"{DASH}: not evaluated.",
    ]
    return [note for note in notes if note], n
