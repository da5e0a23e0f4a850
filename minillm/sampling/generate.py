"""Stage `generate`: responses of a model to a test set, with all sampling seeds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minillm.config.launch import Launch
from minillm.config.sampling import Sampling
from minillm.config.stage_settings import GenerateSettings
from minillm.data.sources import read_tests
from minillm.data.tokenizers import vocabulary_size
from minillm.errors import UserError
from minillm.files import identity, sha256, stage_key, whole_file, without_unset, write_json
from minillm.models.loading import decode, load_model, load_tokenizer, special_tokens
from minillm.models.served import read_served
from minillm.readers import Kind, are_tokens, read_json_lines
from minillm.runtime.processes import World, start
from minillm.sampling.answerer import Answer, Answerer, Request
from minillm.sampling.sample import How, Response, as_they_end, check_room, uniforms
from minillm.sampling.server_backend import Server
from minillm.sampling.vllm_backend import Vllm

AGAIN = "remove this file; the answers in it are sampled again"
# Keys of a line of a journal.
ENTRY: dict[str, Kind] = {"key": list, "response": str, "response_tokens": list, "finished": bool}

# Keys of a test set's row that a line of responses has too; only those of chat templates have messages.
SHARED = ("id", "dataset", "prompt", "messages", "references", "options")


def load_answerer(
    folder: Path, precision: str, sampling: Sampling, launch: Launch, world: World, journal: Path
) -> PreTrainedModel | Answerer:
    """What answers for the model in `folder`: the model itself, vLLM with its weights, or a server.

    Raises UserError if it cannot be loaded; vLLM and a server are only started or asked when they answer.
    `journal`: that of the answers, next to which vLLM's copy of the weights may lie.
    """
    served = read_served(folder)
    if served is not None:
        return Server(served, load_tokenizer(folder), launch)
    if sampling.backend == "vllm":
        scratch = journal.with_name(f"{journal.name}-vllm{world.rank}")
        return Vllm(folder, precision, world, launch.vllm_memory, scratch)
    return load_model(folder, precision, world.device)


def answer_all(
    model: PreTrainedModel | Answerer,
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
    prompts = [q.prompt for q in questions]
    if isinstance(model, Answerer):
        model.check(prompts, sampling)
    else:
        check_room(model, prompts, sampling)
    my_journal.parent.mkdir(parents=True, exist_ok=True)
    done = _read_journal(my_journal)
    left = [q for q in mine if json.dumps(q.key) not in done]
    bar = tqdm(
        total=len(mine), initial=len(mine) - len(left), unit="row", disable=None if world.rank == 0 else True
    )
    answers: Iterable[tuple[Request, Answer | Response]]
    if isinstance(model, Answerer):
        answers = model.answers(left, sampling, eos, vocabulary)
    else:
        answers = _sampled(model, left, sampling, launch, eos, pad, vocabulary)
    with open(my_journal, "a", encoding="utf-8") as file:
        for question, response in answers:
            entry = _entry(tokenizer, response)
            file.write(json.dumps({"key": question.key, **entry}) + "\n")
            file.flush()
            done[json.dumps(question.key)] = entry
            bar.update()
    bar.close()
    if isinstance(model, Answerer):
        model.close()
    every = {key: entry for part in world.gather(done) for key, entry in part.items()}
    missing = len(questions) - len(every)
    assert missing == 0, f"{missing} of {len(questions)} questions without an answer"
    return (
        [every[json.dumps(q.key)] for q in sorted(questions, key=lambda q: q.key)]
        if world.rank == 0
        else None
    )


def _sampled(
    model: PreTrainedModel,
    requests: Sequence[Request],
    sampling: Sampling,
    launch: Launch,
    eos: int,
    pad: int,
    vocabulary: int,
) -> Iterator[tuple[Request, Response]]:
    """Each request with the model's response, as soon as it ends."""
    how = How(
        sampling, 0, 0, [eos], pad, vocabulary,
        batch=launch.eval_batch, budget=launch.eval_tokens, graphs=launch.cuda_graphs,
    )  # fmt: skip

    def numbers(items: Sequence[int]) -> np.ndarray:
        asked = [requests[i] for i in items]
        return np.concatenate([uniforms(q.seed, q.step, [q.row], sampling.max_tokens) for q in asked])

    for item, response in as_they_end(model, [q.prompt for q in requests], numbers, how):
        yield requests[item], response


def _entry(tokenizer: PreTrainedTokenizerBase, response: Answer | Response) -> dict[str, Any]:
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


def answered_by(answerer: PreTrainedModel | Answerer) -> dict[str, Any]:
    """What the record of answers says of another program that gave them; nothing of a model."""
    return {"answered_by": answerer.identity()} if isinstance(answerer, Answerer) else {}


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
    loaded = load_answerer(model, settings.precision, settings.sampling, launch, world, journal)
    answers = answer_all(loaded, tokenizer, questions, settings.sampling, launch, world, journal)
    if answers is not None:
        by_id = {row["id"]: row for row in rows}
        with whole_file(out) as partial, open(partial, "w", encoding="utf-8") as file:
            for question, answer in zip(sorted(questions, key=lambda q: q.key), answers, strict=True):
                row = by_id[question.row]
                shared = {key: row[key] for key in SHARED if key in row}
                file.write(json.dumps({**shared, **answer, "seed": question.seed}, ensure_ascii=False) + "\n")
        meta = {
            "model": inputs["model"],
            "test": inputs["test"],
            "dataset": rows[0]["dataset"],
            "rows": len(rows),
            "seeds": list(settings.seeds),
            "sampling": without_unset(dataclasses.asdict(settings.sampling)),
            "precision": settings.precision,
            **answered_by(loaded),
            "content": sha256(out),
        }
        write_json(out.with_suffix(".meta.json"), meta)
        remove_journals(journal)
    world.barrier()
