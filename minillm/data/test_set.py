"""Stage `testset`: the prompts of one test set."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from minillm.config.stage_settings import TestSettings
from minillm.data.chat import messages_of
from minillm.data.prepare import (
    count_and_first,
    duplicates,
    refuse_overlap,
    source_of,
    statistics,
    subset,
)
from minillm.data.prompts import holds_end, prompt_length, render
from minillm.data.rows import Rows
from minillm.data.sources import Row, read_rows
from minillm.errors import UserError
from minillm.files import hash_of, identity, settings_hash, whole_file, write_json
from minillm.scores import has_tokens


def run_stage(settings: TestSettings, *, data: Path, out: Path, also: Sequence[Path] | None = None) -> None:
    """Stage `testset`: the prompts of one test set as JSON lines, with FILE.card.json next to them.

    Prompts over `max_prompt` tokens and rows without a reference are dropped and counted, and so are those
    whose prompt is too long in the chat template of a linked data folder (`also`).  Counted too:
    prompts with an EOS written out, which is one token there, and rows that ROUGE-L cannot score
    (`has_tokens`).  Overlap with the training rows is refused; overlap with dev and duplicates are counted
    and named; nothing else is changed.
    """
    where = f"datasets.{settings.name}"
    # First: a damaged folder is named as such, whatever would be read of it.
    content = identity(data)
    split_rows = {
        split: [_row_of(record) for record in Rows.open(data, split).records] for split in ("train", "dev")
    }
    tokenizer, *linked = map(_saved_tokenizer, (data, *(also or ())))
    chat = settings.template == "chat"
    rows = read_rows(settings.dataset, where)
    refuse_overlap(
        split_rows["train"], rows, f"the training rows of {data}", f"{where} ({source_of(settings.dataset)})"
    )
    dropped: Counter[str] = Counter()
    kept = []
    for row in rows:
        prompt = render(row, settings.template, tokenizer, where)
        ids = tokenizer.encode(prompt, add_special_tokens=False)
        if not any(output.strip() for output in row.outputs):
            dropped["empty_references"] += 1
        elif len(ids) > settings.max_prompt:
            dropped["prompt_too_long"] += 1
        elif any(prompt_length(row, other, where) > settings.max_prompt for other in linked):
            dropped["prompt_too_long_in_linked_template"] += 1
        else:
            kept.append((row, prompt, ids))
    kept = subset(kept, settings.dataset.sample, settings.seed, settings.name)
    if not kept:
        reasons = ", ".join(f"{name} {count}" for name, count in dropped.items())
        raise UserError(
            f"{where}: every row was dropped ({reasons}); raise data.max_prompt (now {settings.max_prompt}) "
            "or add references"
        )
    lines = [
        {
            "id": r.id,
            "dataset": settings.name,
            "prompt": prompt,
            "prompt_tokens": ids,
            "references": list(r.outputs),
            **({"messages": messages_of(r)} if chat else {}),
            **({"options": dict(r.options)} if r.options else {}),
        }
        for r, prompt, ids in kept
    ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    dev_keys = {row.key for row in split_rows["dev"]}
    shared = [row.id for row, *_ in kept if row.key in dev_keys]
    card = {
        "source": source_of(settings.dataset),
        "read": len(rows),
        "kept": len(kept),
        "dropped": dict(dropped),
        "sampled_from": len(rows) - sum(dropped.values()),
        "duplicates": count_and_first(duplicates([row for row, *_ in kept])),
        "overlap_with_train": 0,
        "overlap_with_dev": count_and_first(shared),
        "eos_in_prompt": count_and_first(
            [row.id for row, _, ids in kept if holds_end(row, ids, tokenizer, chat)]
        ),
        "without_rouge_tokens": count_and_first([row.id for row, *_ in kept if not has_tokens(row.outputs)]),
        "prompt_tokens": statistics([len(ids) for *_, ids in kept]),
        "content": hash_of(text),
        "data": content,
        "settings_sha256": settings_hash(dataclasses.asdict(settings)),
    }
    with whole_file(out) as partial:
        partial.write_text(text, encoding="utf-8")
    write_json(out.with_suffix(".card.json"), card)


def _saved_tokenizer(data: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        data / "tokenizer", local_files_only=True
    )
    return tokenizer


def _row_of(record: dict[str, Any]) -> Row:
    return Row(record["id"], record["instruction"], record["input"], tuple(record["references"]))
