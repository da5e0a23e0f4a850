"""Tables 2, 3 and 5: calibration; diversity and loss; the n-gram counts behind the diversity."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pandas as pd

from minillm.publish.item_results import ItemResults, Trained
from minillm.publish.published_numbers import BRACKETS, bracketed
from minillm.publish.published_numbers import columns as published_columns
from minillm.publish.results import MODEL, Value, over_training_seeds
from minillm.publish.style import DASH
from minillm.publish.tables.sheet import Sheet, decimals, merged_labels

NOT_MEASURED = "not measured in this run"
# The loss that the published script prints, which is that of the paper's Table 3, is a metric of its own.
PAPERS_LOSS = "reference_loss_released"
LOSSES = {
    "reference_loss": (
        "Loss: cross-entropy of the first reference, mean over all tokens of the test set including EOS; "
        "lower is better. The paper's Table 3 has a different one (released), so its values are not "
        "comparable and not shown."
    ),
    PAPERS_LOSS: (
        "Loss: as the published script prints it and the paper's Table 3 has it: cross-entropy of the first "
        "reference without EOS, mean over rows of each row's mean; lower is better."
    ),
}


def calibration(results: ItemResults) -> Sheet:
    """Table 2: expected calibration error and accuracy on each zero-shot task."""
    tasks = results.names("calibration")
    rows, records, metrics, compared = [], [], [], False
    for model in results.models():
        row = [model.label, model.method_label]
        for task in tasks:
            metrics += results.calibration(model, task)
            ece, raw, accuracy = (results.value(model, name, task) for name in ("ece", "ece_raw", "accuracy"))
            paper = {name: results.published("2", model, task, name) for name in ("ece", "accuracy")}
            row += [
                decimals(ece, 3),
                bracketed(decimals(raw, 3), raw and raw[0], paper["ece"], 3),
                bracketed(decimals(accuracy, 1), accuracy and accuracy[0], paper["accuracy"]),
            ]
            compared = compared or bool(accuracy and any(paper.values()))
            records += [
                _record(results, model, task, "calibration")
                | {"ece": ece and ece[0], "ece_raw": raw and raw[0], "accuracy": accuracy and accuracy[0]}
                | published_columns(raw and raw[0], paper["ece"], "ece_raw_")
                | published_columns(accuracy and accuracy[0], paper["accuracy"], "accuracy_")
            ]
        rows.append(row)
    heads = ("ECE", "raw ECE", "accuracy (%)")
    columns = [f"{results.label(task)}\n{head}" for task in tasks for head in heads]
    comparable = (
        "its values are shown next to the raw ECE, the likelier reading (docs/evaluation.md), and are "
        "comparable at most roughly."
    )
    notes = [
        "Zero-shot: a task's instruction and an example as prompt, the label words as answers.",
        "ECE, normalised: the sum over bins of (share of examples) × |accuracy - mean confidence|, where "
        "the confidence is the probability of the chosen label word divided by that of all label words. "
        "Raw: the same with the label word's own probability.",
        "The paper states neither bins, nor label words, nor whether confidences are normalised; "
        + (comparable if compared else "compare methods here, not with its values."),
        "±: standard error over rows for a single training (of an ECE by bootstrap), over training seeds if "
        "there are several.",
        BRACKETS if compared else "",
        *_bins(results, metrics),
    ]
    return _sheet("Calibration on zero-shot classification.", columns, rows, notes, records, tasks, results)


def _bins(results: ItemResults, metrics: list[dict[str, Any]]) -> list[str]:
    """Bins and label words of each task, from the metric files."""
    texts = {}
    for metric in metrics:
        bins = metric.get("bins", [])
        edges = ", ".join(f"{b['low']:g}" for b in bins) + (f", {bins[-1]['high']:g}" if bins else "")
        words = metric.get("words")
        text = f"{len(bins)} bins with the edges {edges}."
        if words:
            text += " Label words: " + ", ".join(str(word).strip() for word in words) + "."
        texts[text] = results.label(str(metric.get("dataset", "")))
    return [f"{name}: {text}".removeprefix(": ") for text, name in texts.items()]


def diversity(results: ItemResults) -> Sheet:
    """Table 3: the share of distinct n-grams and the loss on the references, on each test set."""
    tests = list(dict.fromkeys([*results.names("diversity"), *results.names("reference_loss")]))
    sizes = _ngram_sizes(results.frame)
    shares = [f"dist{size}" for size in sizes]
    losses = [metric for metric in LOSSES if (results.frame["metric"] == metric).any()]
    drifts = _drifts(results.frame)
    rows, records, compared = [], [], False
    for model in results.models():
        row = [model.label, model.method_label]
        for test in tests:
            share, repeated = (results.value(model, metric, test) for metric in (shares, "repetition"))
            loss_rows = results.rows(model, losses, [test])
            loss = over_training_seeds(loss_rows)
            drift = drifts.get((*model.key, test))
            comparable = (shares == ["dist4"], set(loss_rows["metric"]) <= {PAPERS_LOSS})
            paper = [
                results.published("3", model, test, name) if same else None
                for name, same in zip(("dist4", "loss"), comparable, strict=True)
            ]
            row += [
                bracketed(decimals(share, 1), share and share[0], paper[0]),
                bracketed(decimals(loss, 2), loss and loss[0], paper[1], 2),
                decimals(repeated, 1),
                decimals(drift, 2),
            ]
            compared = compared or any(paper)
            record = _record(results, model, test, "diversity", "reference_loss")
            for column, value in (
                ("distinct_percent", share),
                ("loss", loss),
                ("repetition_percent", repeated),
                ("length_drift", drift),
            ):
                record[column], record[f"{column.removesuffix('_percent')}_error"] = value or (None, None)
            records.append(
                record
                | published_columns(share and share[0], paper[0], "distinct_")
                | published_columns(loss and loss[0], paper[1], "loss_")
            )
        rows.append(row)
    size = "/".join(sizes)
    heads = (f"Dist-{size} (%)", "loss (nats per token)", "repetition (%)", "length drift")
    columns = [f"{results.label(test)}\n{head}" for test in tests for head in heads]
    caption = "Diversity of the responses, and loss on the references."
    notes = _diversity_notes(size, losses, compared)
    return _sheet(caption, columns, rows, notes, records, tests, results)


def _diversity_notes(size: str, losses: list[str], compared: bool) -> list[str]:
    """The notes under Table 3; `size`: n of the n-grams."""
    errors = "standard error over rows for a single training, over training seeds if there are several."
    return [
        f"Dist-{size}: distinct over all {size}-grams of tokens in the responses of each sampling seed; mean "
        "± standard error over sampling seeds (over training seeds if there are several). It falls with the "
        "number of responses: compare within a column.",
        *(LOSSES[metric] for metric in losses),
        f"± of the loss: {errors}" if losses else "",
        f"Repetition: mean over responses of the share of {size}-grams that occurred earlier in the same "
        "response. Length drift: mean tokens of a response over those of the first reference, special tokens "
        "not counted in either; 1 is the references' length. ± of both as in the first column.",
        BRACKETS if compared else "",
    ]


def _drifts(frame: pd.DataFrame) -> dict[Any, Value | None]:
    """(teacher, student, method, set) -> mean tokens of a response over those of a reference."""
    overall = frame[frame["sampling_seed"].isna()].set_index([*MODEL, "test_set", "training_seed"])
    response, reference = (
        overall[overall["metric"] == f"{whose}_tokens"] for whose in ("response", "reference")
    )
    scale = (1 / reference.loc[reference["value"] > 0, "value"]).reindex(response.index)
    scaled = response[["value", "error"]].mul(scale, axis="index").dropna(subset="value")
    groups = scaled.groupby([*MODEL, "test_set"], sort=False)
    return {key: over_training_seeds(rows) for key, rows in groups}


def ngrams(results: ItemResults) -> Sheet:
    """Table 5: the number of n-grams (N) and of distinct ones (C), seed by seed."""
    tests = results.names("diversity")
    seeds = results.settings.table.sampling_seeds
    sizes = _ngram_sizes(results.frame)
    rows, records = [], []
    for test in tests:
        for model in results.models():
            counts = _counts(results.rows(model, ("total", "distinct"), [test], each_seed=True))
            for training_seed, seed_counts in counts.groupby(level="training_seed", sort=False):
                texts = {seed: f"{row.total} / {row.distinct}" for (_, seed), row in seed_counts.iterrows()}
                name = f"{model.label}, {model.method_label}"
                name += f", seed {training_seed}" if len(model.weights) > 1 else ""
                rows.append([results.label(test), name, *(texts.get(seed, DASH) for seed in seeds)])
                about = _record(results, model, test, "diversity") | {"training_seed": training_seed}
                records += [
                    about
                    | {"sampling_seed": seed, "ngram": "/".join(sizes), "N": row.total, "C": row.distinct}
                    for (_, seed), row in seed_counts.iterrows()
                ]
    columns = [f"seed {seed}\nN / C" for seed in seeds]
    caption = "N-grams of the responses: all (N) and distinct (C)."
    sheet = _sheet(caption, columns, merged_labels(rows), [], records, tests, results)
    size = ", ".join(sizes)
    notes = [f"n-grams of {size} tokens, counted over all responses of one sampling seed; Table 3 has C / N."]
    notes = [*sheet.notes, *notes] if records else []
    return dataclasses.replace(sheet, columns=["Test set", "Model", *columns], notes=notes)


def _ngram_sizes(frame: pd.DataFrame) -> list[str]:
    """The n of every Dist-n in the frame; a run has only one."""
    matches = (re.fullmatch(r"dist(\d+)", metric) for metric in frame["metric"].unique())
    return sorted(match[1] for match in matches if match) or ["4"]


def _counts(rows: pd.DataFrame) -> pd.DataFrame:
    """Columns total and distinct, one row per training and sampling seed, in the order of `rows`."""
    seeds = ["training_seed", "sampling_seed"]
    counts = rows.pivot(index=seeds, columns="metric", values="value").astype(int)
    return counts.loc[pd.MultiIndex.from_frame(rows[seeds].drop_duplicates())]


def _record(results: ItemResults, model: Trained, test: str, *kinds: str) -> dict[str, Any]:
    sizes = [n for kind in kinds for n in results.sizes(kind, [model], test)]
    about = {"teacher": model.teacher, "student": model.student, "method": model.method, "test": test}
    return about | {"n": sizes[0] if sizes else None}


def _sheet(
    caption: str,
    columns: list[str],
    rows: list[list[str]],
    notes: list[str],
    records: list[dict[str, Any]],
    tests: list[str],
    results: ItemResults,
) -> Sheet:
    """The sheet; if nothing was measured, only a line that says so."""
    columns = ["Model", "Method", *columns]
    if results.frame.empty:
        return Sheet(caption, columns, [], [], [], "", NOT_MEASURED)
    by_test = {test: next((r["n"] for r in records if r["test"] == test and r["n"]), None) for test in tests}
    n = "; ".join(f"{results.label(test)}: n = {count}" for test, count in by_test.items() if count)
    notes = [
        *notes,
        f"{n}." if n else "",
        f"{DASH}: not evaluated." if any(DASH in row for row in rows) else "",
    ]
    return Sheet(caption, columns, merged_labels(rows), [note for note in notes if note], records, n)
