"""Stage `generate`: responses of a model to a test set, with all sampling seeds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minillm.config.sections import Launch, Sampling
from minillm.config.stage_settings import GenerateSettings
from minillm.data.sources import read_tests
from minillm.data.tokenizers import vocabulary_size
from minillm.errors import UserError
from minillm.files import identity, sha256, stage_key, whole_file, write_json
from minillm.models.loading import decode, load_model, load_tokenizer, special_tokens
from minillm.readers import Kind, are_tokens, read_json_lines
from minillm.runtime.processes import World, start
from minillm.sampling.sample import How, Response, as_they_end, check_room, uniforms

AGAIN = "remove this file; the answers in it are sampled again"
# Keys of a line of a journal.
ENTRY: dict[str, Kind] = {"key": list, "response": str, "response_tokens": list, "finished": bool}


@dataclass(frozen=True)
class Request:
    """One row to answer with one seed: `key` identifies it within the job and sorts the results.

    Its random numbers come from (`seed`, `step`, `row`).
    """

    key: tuple[Any, ...]
    row: int
    seed: int
    prompt: np.ndarray
    step: int = 0


def answer_all(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Request],
    sampling: Sampling,
    launch: Launch,
    world: World,
    journal: Path,
) -> list[dict[str, Any]] | None:
    """Answers to all questions, in the order of their keys, on rank 0 (None elsewhere).

    Each rank writes finished answers to its own `journal` file as it goes, so that an interrupted job resumes
    from there.
    """
    (eos, pad), vocabulary = special_tokens(tokenizer), vocabulary_size(tokenizer)
    mine = sorted(questions, key=lambda q: q.key)[world.rank :: world.size]
    my_journal = journal.with_name(f"{journal.name}.{world.rank}of{world.size}")
    check_room(model, [q.prompt for q in questions], sampling)
    my_journal.parent.mkdir(parents=True, exist_ok=True)
    done = _read_journal(my_journal)
    left = [q for q in mine if json.dumps(q.key) not in done]
    bar = tqdm(
        total=len(mine), initial=len(mine) - len(left), unit="row", disable=None if world.rank == 0 else True
    )
    how = How(
        sampling, 0, 0, [eos], pad, vocabulary,
        batch=launch.eval_batch, budget=launch.eval_tokens, graphs=launch.cuda_graphs,
    )  # fmt: skip

    def numbers(items: Sequence[int]) -> np.ndarray:
        asked = [left[i] for i in items]
        return np.concatenate([uniforms(q.seed, q.step, [q.row], sampling.max_tokens) for q in asked])

    with open(my_journal, "a", encoding="utf-8") as file:
        for item, response in as_they_end(model, [q.prompt for q in left], numbers, how):
            entry = _entry(tokenizer, response)
            file.write(json.dumps({"key": left[item].key, **entry}) + "\n")
            file.flush()
            done[json.dumps(left[item].key)] = entry
            bar.update()
    bar.close()
    every = {key: entry for part in world.gather(done) for key, entry in part.items()}
    missing = len(questions) - len(every)
    assert missing == 0, f"{missing} of {len(questions)} questions without an answer"
    return (
        [every[json.dumps(q.key)] for q in sorted(questions, key=lambda q: q.key)]
        if world.rank == 0
        else None
    )


def _entry(tokenizer: PreTrainedTokenizerBase, response: Response) -> dict[str, Any]:
    return {
        "response": decode(tokenizer, response.tokens),
        "response_tokens": response.tokens.tolist(),
        "finished": response.finished,
    }


def _read_journal(path: Path) -> dict[str, dict[str, Any]]:
    """Finished answers; a last line that a kill cut short is removed, from the file too.

    Raises UserError if another line is damaged.
    """
    if not path.exists():
        return {}
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; {AGAIN}") from None
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        path.write_bytes(whole)
    if not whole:
        return {}
    done = {}
    for number, entry in read_json_lines(path, ENTRY, again=AGAIN):
        if not are_tokens(entry["response_tokens"]):
            raise UserError(f"{path}:{number}: 'response_tokens' is not a list of token ids; {AGAIN}")
        done[json.dumps(entry.pop("key"))] = entry
    return done


def remove_journals(journal: Path) -> None:
    """Delete the journals that all processes of a finished job have written."""
    for path in journal.parent.glob(f"{journal.name}.*of*"):
        path.unlink()


def run_stage(settings: GenerateSettings, launch: Launch, *, test: Path, model: Path, out: Path) -> None:
    """Responses of `model` to every row of `test` with every seed, and FILE.meta.json.

    As JSON lines, sorted by (seed, id).
    """
    rows = read_tests(test)
    world = start(0, launch.patience)
    tokenizer = load_tokenizer(model)
    inputs = {"test": identity(test), "model": identity(model)}
    journal = out.with_name(f".{out.name}.{stage_key(dataclasses.asdict(settings), inputs)}")
    questions = [
        Request((seed, row["id"]), row["id"], seed, np.asarray(row["prompt_tokens"]))
        for seed in settings.seeds
        for row in rows
    ]
    loaded = load_model(model, settings.precision, world.device)
    answers = answer_all(loaded, tokenizer, questions, settings.sampling, launch, world, journal)
    if answers is not None:
        by_id = {row["id"]: row for row in rows}
        with whole_file(out) as partial, open(partial, "w", encoding="utf-8") as file:
            for question, answer in zip(sorted(questions, key=lambda q: q.key), answers, strict=True):
                row = by_id[question.row]
                shared = {key: row[key] for key in ("id", "dataset", "prompt", "references")}
                file.write(json.dumps({**shared, **answer, "seed": question.seed}, ensure_ascii=False) + "\n")
        meta = {
            "model": inputs["model"],
            "test": inputs["test"],
            "dataset": rows[0]["dataset"],
            "rows": len(rows),
            "seeds": list(settings.seeds),
            "sampling": dataclasses.asdict(settings.sampling),
            "precision": settings.precision,
            "content": sha256(out),
        }
        write_json(out.with_suffix(".meta.json"), meta)
        remove_journals(journal)
    world.barrier()
