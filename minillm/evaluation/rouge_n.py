"""Stages `rouge1` and `rouge2`: overlap of single words, or of pairs, with the references; need no model."""

from __future__ import annotations

from pathlib import Path

from minillm.config.measurements.metrics import RougeNSettings
from minillm.evaluation.generations import read_generations
from minillm.evaluation.rouge import how_counted, without_words
from minillm.evaluation.row_scores import scored
from minillm.files import write_json
from minillm.scores import rouge


def run_stage(settings: RougeNSettings, *, generations: Path, out: Path) -> None:
    """Write ROUGE-1 or ROUGE-2 (F-measure, the best of the references) of the responses to `out`.

    Keys as in ROUGE-L's file.  Raises UserError, one line, if `generations` is damaged.
    """
    kind, words = settings.stage, settings.tokenizer
    meta, rows, ids = read_generations(generations)
    head = scored(kind, meta, rows, ids, lambda row: rouge(kind, row["response"], row["references"], words))
    tail = {"sampling": meta["sampling"], "sources": [str(generations)]}
    write_json(out, {**head, **tail, **how_counted(words, without_words(meta, rows, ids, words))})
