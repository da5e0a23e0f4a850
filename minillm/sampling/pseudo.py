"""Stage `pseudo`: the teacher's answers to training prompts, for SeqKD."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from minillm.config.launch import Launch
from minillm.config.stage_settings import PseudoSettings
from minillm.data.rows import Rows
from minillm.files import identity, settings_hash, sha256, stage_key, whole_file, write_json
from minillm.models.loading import check_same_tokenizer, load_tokenizer
from minillm.runtime.processes import start
from minillm.sampling.generate import Request, answer_all, answered_by, load_answerer, remove_journals


def run_stage(
    settings: PseudoSettings, launch: Launch, *, data: Path, teacher: Path, out: Path, checkpoints: Path
) -> None:
    """The teacher's answers to the first `rows` training prompts and the first `dev_rows` dev prompts.

    The latter only serve to measure SeqKD's own objective.  FILE.meta.json says what they were made of.
    """
    world = start(settings.seed, launch.patience)
    tokenizer = load_tokenizer(data / "tokenizer")
    check_same_tokenizer(teacher, data / "tokenizer")
    inputs = {"data": identity(data), "teacher": identity(teacher)}
    journal = checkpoints / f"pseudo-{stage_key(dataclasses.asdict(settings), inputs)}"
    questions = []
    for split, limit in (("dev", settings.pseudo.dev_rows), ("train", settings.pseudo.rows)):
        rows = Rows.open(data, split)
        count = min(limit or len(rows), len(rows))
        questions += [
            Request((split, int(rows.ids[i])), int(rows.ids[i]), settings.seed, rows.prompt(i))
            for i in range(count)
        ]
    sampling = settings.pseudo.sampling
    loaded = load_answerer(teacher, settings.precision, sampling, launch, world, journal)
    answers = answer_all(loaded, tokenizer, questions, sampling, launch, world, journal)
    if answers is not None:
        with whole_file(out) as partial, open(partial, "w", encoding="utf-8") as file:
            for question, answer in zip(sorted(questions, key=lambda q: q.key), answers, strict=True):
                split, row = question.key
                file.write(json.dumps({"id": row, "split": split, **answer}, ensure_ascii=False) + "\n")
        settings_sha256 = settings_hash(dataclasses.asdict(settings))
        meta = {
            **inputs,
            "rows": len(answers),
            "settings_sha256": settings_sha256,
            **answered_by(loaded),
            "content": sha256(out),
        }
        write_json(out.with_suffix(".meta.json"), meta)
        remove_journals(journal)
    world.barrier()
