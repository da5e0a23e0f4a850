"""Stage `grid`: which candidate of a method's grid is trained in full, chosen only from dev evaluations.

No test set takes part.  A candidate that has diverged is lost and cannot be chosen.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from minillm.config.grid import GridSettings, shortened
from minillm.config.stage_settings import OnPolicySettings, TrainSettings
from minillm.errors import UserError
from minillm.files import check_record, sha256, write_json
from minillm.readers import is_a, read_object
from minillm.training.selection import choose, finite

AGAIN = "remove it and make it again"
# The sign that makes higher better.
SIGNS = {"dev_rouge": 1.0, "dev_objective": -1.0, "dev_reverse_kl": -1.0, "dev_loss": -1.0}

S = TypeVar("S", TrainSettings, OnPolicySettings)


def run_stage(settings: GridSettings, *, trials: Sequence[Path], out: Path) -> None:
    """Write to `out` which candidate was chosen, by which rule, and what each of `trials` measured.

    A trial's value is that of the checkpoint that its run would have kept, the one of best dev ROUGE-L.  On a
    tie the first in the configuration's order is chosen.  Raises UserError if a trial is missing or damaged,
    or if all candidates were lost.
    """
    rows = [_row(settings, name, _trial_of(trials, name, out)) for name in settings.candidates]
    usable = [row for row in rows if row["value"] is not None]
    if not usable:
        reasons = "; ".join(f"{row['candidate']}: {row['lost']}" for row in rows)
        raise UserError(f"{out}: every candidate was lost; add lower rates to the grid ({reasons})")
    sign = SIGNS[settings.rule]
    best = max(usable, key=lambda row: sign * row["value"])
    edge = edges(settings, best)
    write_json(
        out,
        {
            "method": settings.method,
            "student": settings.model,
            "teacher": settings.teacher,
            "rule": settings.rule,
            "higher_is_better": sign > 0,
            "share": settings.share,
            "chosen": {key: best[key] for key in ("candidate", "lr", "length", "value")},
            "edge": edge,
            "candidates": rows,
            "sources_sha256": {str(path): sha256(path) for path in trials},
        },
    )
    if edge:
        print(f"{out}: {edge}", file=sys.stderr)


def _trial_of(trials: Sequence[Path], name: str, out: Path) -> Path:
    for path in trials:
        if path.stem == name:
            return path
    raise UserError(f"{out}: no trial of {name} among --trials; name its file")


def _row(settings: GridSettings, name: str, path: Path) -> dict[str, Any]:
    """One candidate: its values at the checkpoint that would be kept; `value` is None if it was lost."""
    keys = {"settings": dict, "history": list, "lost": str}
    trial = read_object(path, keys, "no such file; run its trial", AGAIN)
    check_record(trial, path, AGAIN)
    theirs = trial["settings"]
    ours = (settings.method, settings.model, settings.teacher)
    if (theirs.get("method") or theirs.get("stage"), theirs.get("model"), theirs.get("teacher")) != ours:
        raise UserError(f"{path}: a trial of another method, student or teacher; {AGAIN}")
    lr, length = settings.candidates[name]
    row = {"candidate": name, "lr": lr, "length": length, "value": None, "lost": trial["lost"]}
    history = trial["history"]
    if not trial["lost"] and not finite(history, "dev_rouge"):
        row["lost"] = "no finite dev_rouge"
    if row["lost"]:
        return row
    kept = choose(history, "best_rouge")
    value = kept.get(settings.rule)
    if not is_a(value, (int, float)):
        return row | {"lost": f"no finite {settings.rule}"}
    return row | {"value": value, **{key: v for key, v in kept.items() if key not in row}}


def edges(settings: GridSettings, chosen: Mapping[str, Any]) -> str:
    """What to say if the choice lies at the edge of the grid; "" if it does not."""
    said = []
    for key, place in (("lr", 0), ("length", 1)):
        values = {candidate[place] for candidate in settings.candidates.values()}
        if len(values) > 1 and chosen[key] in (min(values), max(values)):
            smallest = chosen[key] == min(values)
            said.append(
                f"{key} {chosen[key]:g} is the {'smallest' if smallest else 'largest'} of the grid: "
                f"a {'smaller' if smallest else 'larger'} one may be better"
            )
    return "; ".join(said)


def with_choice(settings: S, path: Path | None) -> tuple[S, dict[str, Any] | None]:
    """(`settings` with the rate and length that a grid has chosen, what its file says).

    Without a file they are unchanged.

    Raises UserError if the file is damaged or of another training.
    """
    if path is None:
        return settings, None
    keys = {"method": str, "student": str, "teacher": str, "chosen": dict, "rule": str, "candidates": list}
    record = read_object(path, keys, "no such file; run the grid", AGAIN)
    check_record(record, path, AGAIN)
    # A supervised stage names a method only if that is a variant of it.
    method = settings.method or settings.stage
    if (record["method"], record["student"], record["teacher"]) != (method, settings.model, settings.teacher):
        raise UserError(f"{path}: the grid of another method, student or teacher; {AGAIN}")
    chosen = record["chosen"]
    if not all(is_a(chosen.get(key), (int, float)) and chosen[key] > 0 for key in ("lr", "length")):
        raise UserError(f"{path}: chosen: lr and length must be numbers above 0; {AGAIN}")
    training = shortened(settings.training, float(chosen["lr"]), float(chosen["length"]))
    summary = {key: record.get(key) for key in ("rule", "share", "chosen", "edge", "candidates")}
    return dataclasses.replace(settings, training=training), summary
