"""From a run of the study to the rows of its csv: one for each training, with what was measured of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from minillm.errors import UserError

TEXTS = ("piece", "teacher", "student", "method", "processor", "edge", "git")
# Column -> (test set or "", metric) of metrics.csv.
MEASURES = {
    "rouge": ("test", "rouge"),
    "precision": ("test", "validity"),
    "coverage": ("test", "validity_coverage"),
    "wrong_fact": ("test", "validity_wrong_fact"),
    "mixed": ("test", "validity_forms_mixed"),
    "mass": ("test", "mode_mass"),
    "forms": ("test", "mode_mass_forms"),
    "dist4": ("test", "dist4"),
    "repetition": ("test", "repetition"),
    "finished": ("test", "finished"),
    "length": ("test", "response_tokens"),
    "rouge_short": ("test", "lengths_0_12"),
    "rouge_long": ("test", "lengths_20_"),
    "reference_loss": ("test", "reference_loss"),
    "exposure_bias": ("test", "exposure_bias"),
    "place": ("place", "accuracy"),
    "ece_place": ("place", "ece"),
    "ece_raw_place": ("place", "ece_raw"),
    "total": ("total", "accuracy"),
    "ece_total": ("total", "ece"),
    "ece_raw_total": ("total", "ece_raw"),
    # Of the mini, on real text.
    "rouge_dolly": ("dolly", "rouge"),
    "rouge_self_inst": ("self-inst", "rouge"),
    "rouge_vicuna": ("vicuna", "rouge"),
    "rouge_sni": ("s-ni", "rouge"),
    "rouge_dolly_short": ("dolly", "lengths_0_5"),
    "rouge_dolly_long": ("dolly", "lengths_11_"),
    "bias_dolly": ("dolly", "exposure_bias"),
    "dist4_dolly": ("dolly", "dist4"),
    "loss_dolly": ("dolly", "reference_loss"),
    "sst2": ("sst2", "accuracy"),
    "ece_sst2": ("sst2", "ece"),
    "dev_loss": ("dev", "dev_loss"),
    "dev_rouge": ("dev", "dev_rouge"),
    "dev_reverse_kl": ("dev", "dev_reverse_kl"),
    "dev_forward_kl": ("dev", "dev_forward_kl"),
    "clip_fraction": ("", "mean_clip_fraction"),
    "effective_samples": ("", "mean_effective_samples"),
    "grad_variance": ("", "mean_grad_variance"),
    "grad_norm": ("", "mean_grad_norm"),
    "wall_hours": ("", "wall_hours"),
    "updates": ("", "updates"),
    "tokens": ("", "tokens"),
}
REAL = ("rouge_dolly", "rouge_self_inst", "rouge_vicuna", "rouge_sni")
DERIVED = ("long_lead", "noise", "log_forms", "truncated", "rouge_real", "long_lead_dolly")
Row = dict[str, Any]


def rows_of(run: Path) -> list[Row]:
    """A row per training of results/study-<piece>; raises UserError if the run has no metrics.csv."""
    path = run / "metrics.csv"
    if not path.exists():
        raise UserError(f"{path}: no such file; run the piece first (make study)")
    frame = pd.read_csv(path, keep_default_na=False)
    frame = frame[frame["sampling_seed"] == ""]
    piece = run.name.removeprefix("study-")
    trainings: dict[tuple[str, ...], Row] = {}
    measured: dict[tuple[tuple[str, ...], str], set[float]] = {}
    for entry in frame.to_dict("records"):
        names = [c for c, of in MEASURES.items() if of == (entry["test_set"], entry["metric"])]
        teacher = "" if entry["method"] == "sft" else entry["teacher"]
        key = (teacher, entry["student"], entry["method"], str(entry["training_seed"]))
        row = trainings.setdefault(
            key,
            {
                "piece": piece,
                "teacher": key[0],
                "student": key[1],
                "method": key[2],
                "seed": int(entry["training_seed"]),
            }
            | dict.fromkeys(("processor", "edge", "git", "lr", *MEASURES)),
        )
        if names and entry["value"] != "":
            # SFT's exposure bias is measured by each teacher, and with several it is not SFT's alone.
            measured.setdefault((key, names[0]), set()).add(float(entry["value"]))
        if entry["source"].endswith("provenance.json"):
            row |= _origin(run / entry["source"])
    for (key, name), values in measured.items():
        trainings[key][name] = values.pop() if len(values) == 1 else None
    return [row | _derived(row) for _, row in sorted(trainings.items())]


def with_earlier(rows: Sequence[Row], earlier: Sequence[Row]) -> list[Row]:
    """The rows of a run, and those of students that it did not train.

    Raises UserError, one line, if these were run on another kind of processor: claims 1c and 2e compare what
    is found with two students, and there the teacher would be another too.
    """
    here = {row["student"] for row in rows}
    others = [row for row in earlier if row["student"] not in here]
    kinds = sorted({str(row["processor"]) for row in [*others, *rows]})
    if len(kinds) > 1:
        raise UserError(
            f"{rows[0]['piece']}.csv: rows of one piece are from processors {' and '.join(kinds)}; "
            "run all of its students on one"
        )
    return sorted(
        [*others, *rows],
        key=lambda row: [row[key] for key in ("student", "teacher", "method", "seed")],
    )


def measured_columns(rows: Sequence[Row]) -> list[Row]:
    """The rows without the measures that none of them has."""
    kept = [key for key in rows[0] if key in TEXTS or any(row.get(key) is not None for row in rows)]
    return [{key: row.get(key) for key in kept} for row in rows]


def _origin(path: Path) -> Row:
    """Processor, revision, and learning rate, with where a grid's choice lay at its edge."""
    provenance = json.loads(path.read_text())
    return {
        "processor": provenance.get("processor", ""),
        "edge": (provenance.get("grid") or {}).get("edge", ""),
        "git": provenance.get("git", ""),
        "lr": provenance["settings"]["training"]["lr"],
    }


def _derived(row: Mapping[str, Any]) -> Row:
    """What claims need of one training's numbers."""

    def of(names: Sequence[str], value: Callable[..., float]) -> float | None:
        values = [row[name] for name in names]
        return None if None in values else value(*values)

    def difference(long: float, short: float) -> float:
        return long - short

    return {
        "long_lead": of(("rouge_long", "rouge_short"), difference),
        "noise": of(("grad_variance", "grad_norm"), lambda variance, norm: variance / norm**2),
        "log_forms": of(("forms",), math.log),
        "truncated": of(("finished",), lambda finished: 100 - finished),
        "rouge_real": of(REAL, lambda *sets: math.fsum(sets) / len(sets)),
        "long_lead_dolly": of(("rouge_dolly_long", "rouge_dolly_short"), difference),
    }
