"""Stage `data`: rows become prompts and tokens, with a card of what was kept."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from minillm.config.chat import Chat
from minillm.config.data import Dataset
from minillm.config.stage_settings import DataSettings
from minillm.data.chat import answer_of, messages_of, rendered, with_chat
from minillm.data.prompts import encode, holds_end, prompt_length, render
from minillm.data.sources import Row, read_rows, read_texts
from minillm.data.tokenizers import check_same_tokens, make_tokenizer, vocabulary_size
from minillm.errors import UserError
from minillm.files import (
    CARD,
    CHAT_TEMPLATE,
    data_content,
    hash_of,
    hashes,
    settings_hash,
    sha256,
    tokenizer_content,
    whole_folder,
    write_json,
)

# How many rows a card names when it counts duplicates or overlap.
NAMED = 5
# Tokens that the last chunk of the corpus must have to be kept.
SHORTEST = 8


def run_stage(settings: DataSettings, *, out: Path) -> None:
    """Stage `data`: a tokenizer, and training rows, dev rows and any corpus in its tokens, into `out`.

    card.json says what was kept.  Rows with a prompt over `max_prompt` tokens (also in a linked template) or
    without a response are dropped, never cut.  Raises UserError if training and dev rows overlap, and if
    linked tokenizers differ in a token.
    """
    texts = read_texts(settings.corpus, "data.corpus") if settings.corpus else []
    rows = {
        "train": read_rows(settings.train, "data.train", every_turn=settings.turns == "all"),
        "dev": read_rows(settings.dev, "data.dev"),
    }
    refuse_overlap(
        rows["train"],
        rows["dev"],
        f"data.train ({source_of(settings.train)})",
        f"data.dev ({source_of(settings.dev)})",
    )
    card: dict[str, Any] = {}
    with whole_folder(out) as partial:
        renderers, document_end = _renderers(settings, texts)
        tokenizer = renderers[0]
        tokenizer.save_pretrained(partial / "tokenizer")
        if settings.template == "chat":
            (partial / CHAT_TEMPLATE).write_text(tokenizer.get_chat_template(), encoding="utf-8")
        for split, dataset in (("train", settings.train), ("dev", settings.dev)):
            card[split] = _write_rows(partial, split, rows[split], dataset, settings, renderers)
        if settings.corpus:
            length = settings.corpus_length
            card["corpus"] = _write_corpus(partial, texts, settings.corpus, length, tokenizer, document_end)
        # Any overlap was refused above.
        card["dev"]["overlap_with_train"] = 0
        card["tokenizer"] = {
            "vocabulary": vocabulary_size(tokenizer),
            "eos": tokenizer.eos_token_id,
            "pad": tokenizer.pad_token_id,
        }
        card["max_prompt"], card["max_response"] = settings.max_prompt, settings.max_response
        card["settings_sha256"] = settings_hash(dataclasses.asdict(settings))
        card["files"] = hashes(partial)
        card["tokenizer"]["sha256"] = tokenizer_content(card["files"])
        card["content"] = data_content(card["files"])
        write_json(partial / CARD, card)


def _renderers(settings: DataSettings, texts: list[str]) -> tuple[list[PreTrainedTokenizerBase], int]:
    """(the tokenizer and those that are linked to it; the id that ends a document of the corpus).

    With chat templates the EOS ends an answer, and a document ends as it did in the model's pre-training.
    """
    made = [make_tokenizer(spec, lambda: texts) for spec in (settings.tokenizer, *(settings.also or ()))]
    end: int = made[0].eos_token_id
    for spec, tokenizer in zip((settings.tokenizer, *(settings.also or ())), made, strict=True):
        check_same_tokens(made[0], tokenizer, settings.tokenizer.path, spec.path)
        if settings.template == "chat":
            with_chat(tokenizer, spec.chat or Chat())
    return made, end


def _write_rows(
    folder: Path,
    split: str,
    rows: list[Row],
    dataset: Dataset,
    settings: DataSettings,
    renderers: list[PreTrainedTokenizerBase],
) -> dict[str, Any]:
    tokenizer, *linked = renderers
    chat, where = settings.template == "chat", f"data.{split}"
    dropped: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    kept: list[tuple[Row, str, list[int], list[int], Counter[str]]] = []
    for row in rows:
        text = render(row, settings.template, tokenizer, where)
        prompt, response, seen = encode(tokenizer, text, row.outputs[0], settings.max_response, chat)
        if not row.outputs[0].strip():
            dropped["empty_response"] += 1
        elif len(prompt) > settings.max_prompt:
            dropped["prompt_too_long"] += 1
        elif any(prompt_length(row, other, where) > settings.max_prompt for other in linked):
            dropped["prompt_too_long_in_linked_template"] += 1
        else:
            kept.append((row, text, prompt, response, seen))
    kept = subset(kept, dataset.sample, settings.seed, split)
    if not kept:
        reasons = ", ".join(f"{name} {count}" for name, count in dropped.items())
        raise UserError(
            f"data.{split}: every row was dropped ({reasons}); "
            f"raise data.max_prompt (now {settings.max_prompt})"
        )
    for *_, seen in kept:
        notes += seen
    with open(folder / f"{split}.jsonl", "w", encoding="utf-8") as file:
        for row, text, *_ in kept:
            record = {
                "id": row.id,
                "instruction": row.instruction,
                "input": row.input,
                "prompt": text,
                "response": row.outputs[0],
                "references": list(row.outputs),
            }
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    parts = [(prompt, response) for *_, prompt, response, _ in kept]
    tokens, lengths = [t for p, r in parts for t in p + r], [(len(p), len(r)) for p, r in parts]
    np.save(folder / f"{split}.tokens.npy", np.asarray(tokens, dtype=np.int32))
    np.save(folder / f"{split}.lengths.npy", np.asarray(lengths, dtype=np.int32))
    return {
        "source": source_of(dataset),
        "read": len(rows),
        "kept": len(kept),
        "dropped": dict(dropped),
        "sampled_from": len(rows) - sum(dropped.values()),
        "boundary_merged": notes["boundary_merged"],
        "response_cut": notes["response_cut"],
        "eos_inside": notes["eos_inside"],
        "eos_in_prompt": sum(holds_end(row, prompt, tokenizer, chat) for row, _, prompt, *_ in kept),
        **({"rendered_otherwise": rendered_otherwise(kept, tokenizer, where)} if chat else {}),
        "duplicates": count_and_first(duplicates([row for row, *_ in kept])),
        "prompt_tokens": statistics([len(prompt) for prompt, _ in parts]),
        "response_tokens": statistics([len(response) for _, response in parts]),
        "tokens_sha256": sha256(folder / f"{split}.tokens.npy"),
        "rows_sha256": sha256(folder / f"{split}.jsonl"),
    }


def rendered_otherwise(
    kept: Sequence[tuple[Row, str, Any, Any, Any]], tokenizer: PreTrainedTokenizerBase, where: str
) -> int:
    """Rows whose answer the template itself writes in another way than prompt, stripped answer and end."""
    return sum(
        not rendered(
            tokenizer, [*messages_of(row), answer_of(row)], f"{where} row {row.id}", prompt=False
        ).startswith(f"{text}{row.outputs[0].strip()}{tokenizer.eos_token}")
        for row, text, *_ in kept
    )


def _write_corpus(
    folder: Path,
    texts: list[str],
    corpus: Dataset,
    length: int,
    tokenizer: PreTrainedTokenizerBase,
    end: int,
) -> dict[str, Any]:
    """Documents with an `end` each, cut into chunks; a last one of fewer than `SHORTEST` is left out."""
    tokens: list[int] = []
    for text in texts:
        tokens += [*tokenizer.encode(text, add_special_tokens=False), end]
    lengths = [min(length, len(tokens) - first) for first in range(0, len(tokens), length)]
    if lengths[-1] < SHORTEST:
        lengths.pop()
    if not lengths:
        raise UserError(
            f"data.corpus ({source_of(corpus)}): fewer than {SHORTEST} tokens of text; give it more"
        )
    np.save(folder / "corpus.tokens.npy", np.asarray(tokens[: sum(lengths)], dtype=np.int32))
    np.save(folder / "corpus.lengths.npy", np.asarray(lengths, dtype=np.int32))
    return {
        "source": source_of(corpus),
        "documents": len(texts),
        "chunks": len(lengths),
        "tokens": sum(lengths),
        "tokens_sha256": sha256(folder / "corpus.tokens.npy"),
        "text_sha256": hash_of(*texts),
    }


def subset(items: list[Any], count: int, seed: int, name: str) -> list[Any]:
    """A seeded subset of `count` items in their original order (0 or too many: all).

    `name` makes the subsets of several sets independent under one seed.
    """
    if not count or count >= len(items):
        return items
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    # An array, because a list may be rounded.
    generator = np.random.Generator(np.random.Philox(key=np.array([seed % 2**64, key], dtype=np.uint64)))
    chosen = generator.permutation(len(items))[:count]
    return [items[i] for i in sorted(chosen)]


def refuse_overlap(
    train: Sequence[Row], evaluation: Sequence[Row], train_name: str, evaluation_name: str
) -> None:
    """Raises UserError if a training row has the same instruction and input as a row of an evaluation set."""
    places = {row.key: row.id for row in train}
    shared = [(places[row.key], row.id) for row in evaluation if row.key in places]
    if shared:
        raise UserError(
            f"{evaluation_name}: {len(shared)} of its rows are training rows too, e.g. row {shared[0][1]} is "
            f"row {shared[0][0]} of {train_name}; remove them from one of the two"
        )


def duplicates(rows: Sequence[Row]) -> list[int]:
    """Ids of rows that repeat an earlier row of the same set."""
    seen: set[tuple[str, str]] = set()
    repeated = []
    for row in rows:
        if row.key in seen:
            repeated.append(row.id)
        seen.add(row.key)
    return repeated


def statistics(lengths: Sequence[int]) -> dict[str, float]:
    """Minimum, median, mean, 95th percentile, maximum and total of token counts."""
    values = np.asarray(lengths)
    return {
        "min": int(values.min()),
        "median": float(np.median(values)),
        "mean": round(float(values.mean()), 1),
        "p95": float(np.percentile(values, 95)),
        "max": int(values.max()),
        "total": int(values.sum()),
    }


def count_and_first(ids: list[int]) -> dict[str, Any]:
    return {"count": len(ids), "first_ids": ids[:NAMED]}


def source_of(dataset: Dataset) -> str:
    kept = [f"{column}={value}" for column, value in (dataset.where or {}).items()]
    return " ".join(
        filter(None, [dataset.source, dataset.path, dataset.subset, dataset.split, dataset.revision, *kept])
    )
