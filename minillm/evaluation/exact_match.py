"""Stage `exact_match`: which responses equal a reference; needs no model."""

from __future__ import annotations

from pathlib import Path

from minillm.evaluation.generations import read_generations
from minillm.evaluation.row_scores import scored
from minillm.files import write_json
from minillm.scores import exact_match


def run_stage(*, generations: Path, out: Path) -> None:
    """Write the share of responses that equal a reference after normalisation (scores.exact_match) to `out`.

    Keys as in ROUGE-L's file; a row's score is 100 or 0.  Raises UserError, one line, if `generations` is
    damaged.
    """
    meta, rows, ids = read_generations(generations)
    head = scored("exact_match", meta, rows, ids, lambda r: exact_match(r["response"], r["references"]))
    write_json(out, {**head, "sampling": meta["sampling"], "sources": [str(generations)]})
