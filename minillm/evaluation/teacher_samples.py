"""Stage `samples`: a teacher's responses to each prompt of a test set, drawn once for all its students."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minillm.config.launch import Launch
from minillm.config.measurements.exposure_bias import SamplesSettings
from minillm.data.prepare import subset
from minillm.data.sources import read_tests
from minillm.errors import UserError
from minillm.files import check_record, identity, sha256, stage_key, whole_file, without_unset, write_json
from minillm.models.loading import load_tokenizer
from minillm.readers import Kind, all_are, are_tokens, read_json_lines, read_object
from minillm.runtime.processes import World, start
from minillm.sampling.answerer import Answerer
from minillm.sampling.generate import Request, answer_all, answered_by, load_answerer, remove_journals

AGAIN = "remove it and draw the samples again"
ROW: dict[str, Kind] = {"id": int, "prompt_tokens": list, "responses": list, "finished": list}
META: dict[str, Kind] = {"model": str, "dataset": str, "rows": int, "settings": dict}


@dataclass(frozen=True)
class Sampled:
    """One prompt and its responses, as token ids (with the EOS if a response is finished)."""

    id: int
    prompt: np.ndarray
    responses: list[np.ndarray]
    finished: list[bool]


def draw_samples(
    model: PreTrainedModel | Answerer,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Mapping[int, np.ndarray],
    settings: SamplesSettings,
    launch: Launch,
    world: World,
    journal: Path,
) -> list[Sampled]:
    """Responses to `prompts` (id -> token ids), sorted by id, on every rank.

    Response k of a prompt is drawn from (seed, k, id): with the same random numbers under two models, so that
    differences between their samples are due to the models.
    """
    questions = [
        Request((id_, number), id_, settings.seed, prompt, step=number)
        for id_, prompt in prompts.items()
        for number in range(settings.responses)
    ]
    answers = world.gather(
        answer_all(model, tokenizer, questions, settings.sampling, launch, world, journal)
    )[0]
    samples = []
    for i, id_ in enumerate(sorted(prompts)):
        part = answers[i * settings.responses : (i + 1) * settings.responses]
        tokens = [np.asarray(answer["response_tokens"], dtype=np.int32) for answer in part]
        samples.append(Sampled(id_, prompts[id_], tokens, [answer["finished"] for answer in part]))
    return samples


def run_stage(settings: SamplesSettings, launch: Launch, *, test: Path, model: Path, out: Path) -> None:
    """Write samples of `model` for (a seeded subset of) `test`: one prompt per line, and FILE.meta.json."""
    rows = read_tests(test)
    world = start(0, launch.patience)
    tokenizer = load_tokenizer(model)
    inputs = {"test": identity(test), "model": identity(model)}
    raw = dataclasses.asdict(settings)
    journal = out.with_name(f".{out.name}.{stage_key(raw, inputs)}")
    chosen = subset(rows, settings.prompts, settings.seed, "samples")
    prompts = {row["id"]: np.asarray(row["prompt_tokens"], dtype=np.int32) for row in chosen}
    loaded = load_answerer(model, settings.precision, settings.sampling, launch, world, journal)
    samples = draw_samples(loaded, tokenizer, prompts, settings, launch, world, journal)
    if world.rank == 0:
        with whole_file(out) as partial, open(partial, "w", encoding="utf-8") as file:
            for entry in samples:
                tokens = {
                    "prompt_tokens": entry.prompt.tolist(),
                    "responses": [r.tolist() for r in entry.responses],
                }
                file.write(json.dumps({"id": entry.id, **tokens, "finished": entry.finished}) + "\n")
        meta = {
            **inputs,
            "dataset": rows[0]["dataset"],
            "rows": len(samples),
            "settings": without_unset(raw),
            **answered_by(loaded),
            "content": sha256(out),
        }
        write_json(out.with_suffix(".meta.json"), meta)
        remove_journals(journal)
    world.barrier()


def read_samples(path: Path, settings: SamplesSettings) -> tuple[dict[str, Any], list[Sampled]]:
    """The meta file and the samples; UserError if one is missing, damaged, or not drawn with `settings`."""
    absent = "no such file; run the samples stage first"
    meta = read_object(path.with_suffix(".meta.json"), META, absent, AGAIN)
    if without_unset(meta["settings"]) != without_unset(dataclasses.asdict(settings)):
        raise UserError(f"{path}: drawn with other settings ({meta['settings']}); {AGAIN}")
    samples = []
    for number, row in read_json_lines(path, ROW, absent, AGAIN):
        prompt, responses, finished = row["prompt_tokens"], row["responses"], row["finished"]
        if not prompt or not are_tokens(prompt) or not all(r and are_tokens(r) for r in responses):
            raise UserError(f"{path}:{number}: a prompt or response is not a list of token ids; {AGAIN}")
        if not len(responses) == len(finished) == settings.responses or not all_are(finished, bool):
            raise UserError(f"{path}:{number}: not {settings.responses} responses; {AGAIN}")
        tokens = [np.asarray(response, dtype=np.int32) for response in responses]
        samples.append(Sampled(row["id"], np.asarray(prompt, dtype=np.int32), tokens, finished))
    if len(samples) != meta["rows"] or len({sample.id for sample in samples}) < len(samples):
        raise UserError(
            f"{path}: {len(samples)} prompts, but its meta file says {meta['rows']}, or an id twice; {AGAIN}"
        )
    check_record(meta, path.with_suffix(".meta.json"), AGAIN)
    if "content" in meta and meta["content"] != sha256(path):
        raise UserError(f"{path}: not the samples that its meta file describes, or changed; {AGAIN}")
    return meta, samples
