"""Tables 4 and 7: MiniLLM without one of its strategies, and without its pre-training loss."""

from __future__ import annotations

from typing import Any

from minillm.publish.published_numbers import BESIDE, GPT4, beside
from minillm.publish.published_numbers import columns as columns_of
from minillm.publish.results import Found, Trained, judge_of, over_seeds
from minillm.publish.style import DASH
from minillm.publish.tables.sheet import Sheet, decimals, merged_labels

STRATEGIES = {"no-length-norm": "w/o length norm.", "no-mixing": "w/o teacher-mixed", "no-single-step": "w/o single-step"}
# What the paper's means are over, by the names of config/config.yaml.
AVERAGED = {"calibration": {"sst2", "boolq"}, "judge": {"dolly", "self_inst", "vicuna"}}


def test_rouge(found: Found, model: Trained, test: str) -> tuple[float, float | None] | None:
    """ROUGE-L of a model on a test set."""
    return over_seeds(found.metrics("rouge", model, test))


def inst_score(found: Found, model: Trained) -> tuple[float, float | None] | None:
    """Mean judge score over the test sets that were judged by a real judge; None where there is none."""
    if any(metric.get("stand_in", True) for metric in _judged(found, model)):
        return None
    return found.average("judge", model, found.names("judge"))


def inst_is_papers(found: Found, model: Trained) -> bool:
    """Whether it is over the paper's test sets, and GPT-4 judged all of it."""
    return papers_sets(found, "judge") and all(is_gpt4(metric) for metric in _judged(found, model))


def _judged(found: Found, model: Trained) -> list[dict[str, Any]]:
    return [metric for test in found.names("judge") for metric in found.metrics("judge", model, test)]


def is_gpt4(metric: dict[str, Any]) -> bool:
    """Whether a judge metric is of GPT-4: of no stand-in, nor of another model whose name begins so."""
    return not metric.get("stand_in", True) and bool(GPT4.fullmatch(judge_of(metric)))


def class_accuracy(found: Found, model: Trained) -> tuple[float, float | None] | None:
    """Mean accuracy over the classification tasks, in percent."""
    return found.average("calibration", model, found.names("calibration"), "accuracy", "accuracy_error")


def papers_sets(found: Found, kind: str) -> bool:
    """Whether the sets of `kind` are those that the paper's published mean is over."""
    return {name.replace("-", "_") for name in found.names(kind)} == AVERAGED[kind]


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
    compared, dev_rows = False, set()
    for _, own in found.pairs():
        ablated = any(model.method in present for model in own)
        for model in own:
            if not ablated or model.method not in ("minillm", *present):
                continue
            values: dict[str, Any] = {"dev": found.dev_rouge(model), **{t: test_rouge(found, model, t) for t in tests}}
            theirs = {name: found.published("4", model, name, "rougeL") for name in values}
            compared = compared or any(value and theirs[name] for name, value in values.items())
            shown = (beside(decimals(value, 1), value and value[0], theirs[name]) for name, value in values.items())
            rows.append([model.label, model.method_label, *shown])
            records += [
                {"teacher": model.teacher, "student": model.student, "method": model.method, "set": name, "training_seeds": len(model.weights),
                 "mean": value and value[0], "standard_error": value and value[1], **columns_of(value and value[0], theirs[name])}
                for name, value in values.items()
            ]  # fmt: skip
            dev_rows.add(found.dev_rows(model))
            n |= {t: m[0]["n"] for t in tests if (m := found.metrics("rouge", model, t))}
    lacking = [STRATEGIES[method] for method in STRATEGIES if method not in present]
    notes = [
        "dev: of the checkpoint that was chosen by it, sampled without a limit on repeated n-grams; test: as in the main table. The two "
        "are not comparable with each other.",
        "; ".join(filter(None, [dev_n(dev_rows), *(f"{found.label(t)}: n = {count}" for t, count in n.items())])),
        "±: standard error over training seeds, where a row has several (the variants have the first alone); else over sampling seeds.",
        BESIDE if compared else "",
        f"Not in this configuration: {', '.join(lacking)}." if lacking else "",
        f"{DASH}: not evaluated." if any(DASH in row for row in rows) else "",
    ]
    missing = "" if any(record["mean"] is not None for record in records) else "not measured in this run"
    return Sheet(caption, columns, merged_labels(rows), [note for note in notes if note], records, notes[1], missing)


def dev_n(rows: set[int | None]) -> str:
    """The n of dev scores, in words; nothing where it is not recorded."""
    known = sorted(row for row in rows if row is not None)
    return f"dev: n = {' or '.join(map(str, known))}" if known else ""


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
    models: list[Trained] = []
    compared = False
    for _, own in found.pairs():
        without = {m.method for m in own if chosen.get(m.student, {}).get(m.method) == 0.0}
        for model in own if without else ():
            coefficient = chosen.get(model.student, {}).get(model.method)
            if coefficient is None or (coefficient != 0 and model.method != "minillm"):
                continue
            values = {
                "cls": class_accuracy(found, model),
                "inst": inst_score(found, model),
                "rougeL": found.average("rouge", model, tests),
            }
            theirs = {
                "cls": found.published("7", model, "average", "cls") if papers_sets(found, "calibration") else None,
                "inst": found.published("7", model, "average", "inst") if inst_is_papers(found, model) else None,
                "rougeL": None,  # the paper has no such mean
            }
            compared = compared or any(value and theirs[key] for key, value in values.items())
            shown = (beside(decimals(value, 1), value and value[0], theirs[key]) for key, value in values.items())
            rows.append([model.label, model.method_label, *shown])
            record: dict[str, Any] = {}
            for name, value in values.items():
                record |= {name: value and value[0], **columns_of(value and value[0], theirs[name], f"{name}_")}
            who = {"teacher": model.teacher, "student": model.student, "method": model.method}
            records.append({**who, "lm_coef": coefficient, **record})
            models.append(model)
    kinds = {"calibration": found.names("calibration"), "judge": found.names("judge"), "rouge": tests}
    n = "; ".join(dict.fromkeys(text for kind, names in kinds.items() for text in found.sizes(kind, names, models)))
    judges = sorted({judge_of(metric) for model in models for metric in _judged(found, model)})
    notes = [
        f"CLS: mean accuracy over {', '.join(map(found.label, found.names('calibration'))) or 'the classification tasks'}. Inst: mean over "
        f"{', '.join(map(found.label, found.names('judge'))) or 'the judged test sets'} of the judge's score, dashes unless a real judge ran "
        f"(judge: {', '.join(judges) or 'none'}); "
        f"ROUGE-L: mean over {', '.join(map(found.label, tests))}.",
        "±, of one training: CLS over rows, the judge's over prompts, ROUGE-L over sampling seeds, the sets taken as independent; over "
        "training seeds where a row has several.",
        *([BESIDE] if compared else []),
        "The paper's means are over SST-2 and BoolQ (CLS) and over DollyEval, SelfInst and VicunaEval (Inst): a published value stands only "
        "beside a mean over exactly these.",
        f"{n}." if n else "",
        f"{DASH}: not evaluated.",
    ]
    missing = (
        ""
        if any(record[key] is not None for record in records for key in ("cls", "inst", "rougeL"))
        else "not measured in this run"
    )
    return Sheet(caption, columns, merged_labels(rows), [note for note in notes if note], records, n, missing)
