"""Tables 2, 3 and 5: calibration, diversity and loss, and the n-grams behind the diversity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minillm.publish.published_numbers import BESIDE, beside
from minillm.publish.published_numbers import columns as beside_columns
from minillm.publish.results import Found, Trained, counts, over_seeds
from minillm.publish.style import DASH
from minillm.publish.tables.sheet import Sheet, decimals, merged_labels

NOT_MEASURED = "not measured in this run"
PAPERS_LOSS = "released"  # the paper's Table 3 has the loss that the published script prints
LOSSES = {
    "tokens": "Loss: cross-entropy of the first reference, mean over all tokens of the test set, the EOS among them; lower is better. The "
    "paper's Table 3 has another one (released), so that its values are not comparable and not shown.",
    "released": "Loss: as the published script prints it, and the paper's Table 3 has it: cross-entropy of the first reference without EOS, "
    "mean over rows of each row's mean; lower is better.",
}


def calibration(found: Found) -> Sheet:
    """Table 2: expected calibration error and accuracy on each zero-shot task."""
    tasks = found.names("calibration")
    rows, records, seen, compared = [], [], [], False
    for model in found.models():
        row = [model.label, model.method_label]
        for task in tasks:
            metrics = found.calibration(model, task)
            seen += metrics
            ece = over_seeds(metrics, "ece", "ece_error")
            raw = over_seeds(metrics, "ece_raw", "ece_raw_error")
            accuracy = over_seeds(metrics, "accuracy", "accuracy_error")
            theirs = {metric: found.published("2", model, task, metric) for metric in ("ece", "accuracy")}
            row += [
                decimals(ece, 3),
                beside(decimals(raw, 3), raw and raw[0], theirs["ece"], 3),
                beside(decimals(accuracy, 1), accuracy and accuracy[0], theirs["accuracy"]),
            ]
            compared = compared or bool(metrics and any(theirs.values()))
            records += [
                _record(model, task, metrics)
                | {"ece": ece and ece[0], "ece_raw": raw and raw[0], "accuracy": accuracy and accuracy[0]}
                | beside_columns(raw and raw[0], theirs["ece"], "ece_raw_")
                | beside_columns(accuracy and accuracy[0], theirs["accuracy"], "accuracy_")
            ]
        rows.append(row)
    columns = [f"{found.label(task)}\n{what}" for task in tasks for what in ("ECE", "raw ECE", "accuracy (%)")]
    notes = [
        "Zero-shot: a task's instruction and an example as prompt, the label words as answers.",
        "ECE, normalised: the sum over bins of (share of examples) × |accuracy - mean confidence|, where the confidence is the probability "
        "of the chosen label word divided by that of all label words. Raw: the same with the label word's own probability.",
        "The paper states neither bins, nor label words, nor whether confidences are normalised; "
        + (
            "its values stand beside the raw ECE, the likelier reading (docs/evaluation.md), and are comparable at most roughly."
            if compared
            else "compare methods here, not with its values."
        ),
        "±: standard error over rows of one training (of an ECE by bootstrap), over training seeds where there are several.",
        BESIDE if compared else "",
        *_bins(found, seen),
    ]
    return _sheet("Calibration on zero-shot classification.", columns, rows, notes, records, seen, tasks, found)


def _bins(found: Found, metrics: list[dict[str, Any]]) -> list[str]:
    """Bins and label words of each task, as the metric files have them."""
    texts = {}
    for metric in metrics:
        bins = metric.get("bins", [])
        edges = ", ".join(f"{b['low']:g}" for b in bins) + (f", {bins[-1]['high']:g}" if bins else "")
        words = metric.get("words")
        text = f"{len(bins)} bins with the edges {edges}."
        if words:
            text += " Label words: " + ", ".join(str(word).strip() for word in words) + "."
        texts[text] = found.label(str(metric.get("dataset", "")))
    return [f"{name}: {text}".removeprefix(": ") for text, name in texts.items()]


def diversity(found: Found) -> Sheet:
    """Table 3: the share of distinct n-grams and the loss of the references, on each test set."""
    tests = list(dict.fromkeys([*found.names("diversity"), *found.names("reference_loss")]))
    rows, records, sizes = [], [], []
    seen: list[dict[str, Any]] = []
    losses: list[dict[str, Any]] = []
    compared = False
    for model in found.models():
        row = [model.label, model.method_label]
        for test in tests:
            metrics = found.metrics("diversity", model, test)
            nll = found.metrics("reference_loss", model, test)
            seen, losses = seen + metrics, losses + nll
            sizes += [metric["ngram"] for metric in metrics]
            share = over_seeds([distinct(metric) for metric in metrics])
            loss = over_seeds(nll)
            own = all(metric["ngram"] == 4 for metric in metrics), all(metric.get("loss") == PAPERS_LOSS for metric in nll)
            theirs = [
                found.published("3", model, test, m) if same else None for m, same in zip(("dist4", "loss"), own, strict=True)
            ]
            repeated = over_seeds([_scaled(metric, "repetition", 100.0) for metric in metrics])
            drift = over_seeds(_drifts(found, model, test))
            row += [
                beside(decimals(share, 1), share and share[0], theirs[0]),
                beside(decimals(loss, 2), loss and loss[0], theirs[1], 2),
                decimals(repeated, 1),
                decimals(drift, 2),
            ]
            compared = compared or any(theirs)
            records.append(
                _record(model, test, metrics or nll)
                | {"distinct_percent": share and share[0], "distinct_error": share and share[1]}
                | dict(zip(("loss", "loss_error"), loss or (None, None), strict=True))
                | dict(zip(("repetition_percent", "repetition_error"), repeated or (None, None), strict=True))
                | dict(zip(("length_drift", "length_drift_error"), drift or (None, None), strict=True))
                | beside_columns(share and share[0], theirs[0], "distinct_")
                | beside_columns(loss and loss[0], theirs[1], "loss_")
            )
        rows.append(row)
    size = "/".join(str(n) for n in sorted(set(sizes))) or "4"
    heads = (f"Dist-{size} (%)", "loss (nats a token)", "repetition (%)", "length drift")
    columns = [f"{found.label(test)}\n{head}" for test in tests for head in heads]
    notes = [
        f"Dist-{size}: distinct over all {size}-grams of tokens in the responses of each sampling seed; mean ± standard error over "
        "sampling seeds (over training seeds where there are several). It falls with the number of responses: compare within a column.",
        *(LOSSES[name] for name in LOSSES if any(metric.get("loss") == name for metric in losses)),
        "± of the loss: standard error over rows of one training, over training seeds where there are several." * bool(losses),
        f"Repetition: mean over responses of the share of {size}-grams that stood in the same response before. Length drift: mean tokens of a "
        "response over those of the first reference, special tokens counted in neither; 1 is the references' length. ± of both as of the first "
        "column.",
        BESIDE if compared else "",
    ]
    return _sheet(
        "Diversity of the responses, and loss of the references.", columns, rows, notes, records, seen + losses, tests, found
    )


def distinct(metric: dict[str, Any]) -> dict[str, Any]:
    """Percent of distinct n-grams of one model, over its sampling seeds."""

    def share(seed: dict[str, Any]) -> float | None:
        total, different = ngram_counts(seed)
        return 100 * different / total if total else None

    return of_seeds(metric, share)


def of_seeds(metric: dict[str, Any], value: Callable[[dict[str, Any]], float | None]) -> dict[str, Any]:
    """Mean and standard error of a value over the sampling seeds of one model that have it."""
    values = [{"mean": found} for seed in metric["per_seed"].values() if (found := value(seed)) is not None]
    mean, error = over_seeds(values) or (None, None)
    return {"mean": mean, "standard_error": error}


def _scaled(metric: dict[str, Any], key: str, scale: float) -> dict[str, Any]:
    """Mean and standard error of a key of each sampling seed, times `scale`."""
    return {name: value and value * scale for name, value in of_seeds(metric, lambda seed: seed.get(key)).items()}


def _drifts(found: Found, model: Trained, test: str) -> list[dict[str, Any]]:
    """Mean tokens of a response over those of a reference, of each training seed of which both are known."""
    values = []
    for weights in model.weights.values():
        metric, loss = found.metric("diversity", weights, test), found.metric("reference_loss", weights, test)
        tokens = (loss or {}).get("reference_tokens")
        if metric and tokens:
            values.append(_scaled(metric, "response_tokens", 1 / tokens))
    return values


def ngram_counts(seed: dict[str, Any]) -> tuple[int, int]:
    """N and C of one sampling seed."""
    return (seed["total"], seed["distinct"]) if "total" in seed else (seed["N"], seed["C"])


def ngrams(found: Found) -> Sheet:
    """Table 5: how many n-grams there are (N) and how many different ones (C), seed by seed."""
    tests = found.names("diversity")
    seeds = [str(seed) for seed in found.settings.table.sampling_seeds]
    rows, records, seen = [], [], []
    for test in tests:
        for model in found.models():
            for training_seed, weights in model.weights.items():
                metric = found.metric("diversity", weights, test)
                if metric is None:
                    continue
                seen.append(metric)
                own = metric["per_seed"]
                name = f"{model.label}, {model.method_label}" + (f", seed {training_seed}" if len(model.weights) > 1 else "")
                row = [found.label(test), name]
                row += ["{} / {}".format(*ngram_counts(own[s])) if s in own else DASH for s in seeds]
                rows.append(row)
                records += [
                    _record(model, test, [metric])
                    | {
                        "training_seed": training_seed,
                        "sampling_seed": seed,
                        "ngram": metric["ngram"],
                        **dict(zip(("N", "C"), ngram_counts(v), strict=True)),
                    }
                    for seed, v in own.items()
                ]
    columns = [f"seed {seed}\nN / C" for seed in seeds]
    sheet = _sheet(
        "N-grams of the responses: all (N) and distinct (C).", columns, merged_labels(rows), [], records, seen, tests, found
    )
    size = ", ".join(sorted({str(metric["ngram"]) for metric in seen})) or "4"
    notes = [f"n-grams of {size} tokens, counted over all responses of one sampling seed; Table 3 has C / N."] if seen else []
    return Sheet(**{**vars(sheet), "columns": ["Test set", "Model", *columns], "notes": [*sheet.notes, *notes]})


def _record(model: Trained, test: str, metrics: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "teacher": model.teacher,
        "student": model.student,
        "method": model.method,
        "test": test,
        "n": metrics[0].get("n") if metrics else None,
    }


def _sheet(
    caption: str,
    columns: list[str],
    rows: list[list[str]],
    notes: list[str],
    records: list[dict[str, Any]],
    seen: list[dict[str, Any]],
    tests: list[str],
    found: Found,
) -> Sheet:
    """The sheet; or the honest line where no metric was found."""
    if not seen:
        return Sheet(caption, ["Model", "Method", *columns], [], [], [], "", NOT_MEASURED)
    by_test = {test: next((r["n"] for r in records if r["test"] == test and r["n"]), None) for test in tests}
    n = "; ".join(f"{found.label(test)}: n = {count}" for test, count in by_test.items() if count)
    notes = [*notes, f"{n}." if n else "", f"{DASH}: not evaluated." if any(DASH in row for row in rows) else ""]
    n = n or ", ".join(map(str, counts(seen)))
    return Sheet(caption, ["Model", "Method", *columns], merged_labels(rows), [note for note in notes if note], records, n)
