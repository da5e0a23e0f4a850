"""A run's folder with one distilled student, as its stages leave it, of tiny random models."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from embedded_data import DATA
from transformers import GPT2Config, GPT2LMHeadModel

from minillm.config import layout
from minillm.config.stage_settings import DataSettings
from minillm.config.strict import parse
from minillm.data.prepare import run_stage as prepare
from minillm.evaluation.rouge import run_stage as rouge
from minillm.files import identity, sha256, write_json
from minillm.models.loading import load_tokenizer, save_model
from minillm.runtime import provenance

WEIGHTS = "small/kd/big/seed10"
SEEDS = {10: "yes no", 20: "yes"}


def model(folder: Path, tokenizer: Any, seed: int, settings: dict, inputs: dict) -> Path:
    """A random model of one block as a stage leaves it; returns its folder."""
    torch.manual_seed(seed)
    end = tokenizer.eos_token_id
    config = GPT2Config(
        n_embd=16,
        n_layer=1,
        n_head=2,
        n_positions=64,
        vocab_size=len(tokenizer),
        bos_token_id=end,
        eos_token_id=end,
        initializer_range=0.5,
    )
    folder.mkdir(parents=True)
    save_model(GPT2LMHeadModel(config), tokenizer, folder)
    (folder / "metrics.jsonl").write_text('{"step": 4, "loss": 1.5}\n')
    provenance.write(folder, settings, inputs, {"steps": 4, "hosts": ["node7"], "world_size": 1})
    return folder


def make_run(run: Path) -> Path:
    """results/demo: data, a teacher from a folder under a licence, a student from the hub; the student."""
    settings = parse(DataSettings, DATA, "test")
    data = run / layout.training_data("letters")
    prepare(settings, out=data)
    path = run / layout.settings_file("data/letters")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(dataclasses.asdict(settings)))
    source = run.parent / "elsewhere/published-teacher"
    source.mkdir(parents=True)
    (source / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    tokenizer = load_tokenizer(data / "tokenizer")
    from_folder = {"source": "folder", "path": str(source)}
    from_hub = {"source": "hub", "path": "OWNER/NAME", "revision": "abc123"}
    models = run / layout.model("")
    big = model(models / "big/base", tokenizer, 1, {"stage": "base", "model": from_folder}, {})
    small = model(models / "small/base", tokenizer, 2, {"stage": "base", "model": from_hub}, {})
    inputs = {"data": identity(data), "base": identity(small), "teacher": identity(big)}
    kd = {"stage": "kd", "model": "small", "teacher": "big", "seed": 10, "training": {"lr": 1e-3}}
    student = model(models / WEIGHTS, tokenizer, 3, kd, inputs)
    measure(run, identity(student))
    return student


def measure(run: Path, content: str) -> Path:
    """Responses of the student to one test set and their ROUGE-L; `content`: hash of the weights."""
    answers = run / layout.generations(WEIGHTS, "easy")
    answers.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {"id": i, "seed": seed, "response": response, "references": ["yes"], "finished": True}
        for seed, response in SEEDS.items()
        for i in range(2)
    ]
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    meta = {"model": content, "dataset": "easy", "rows": 2, "seeds": [*SEEDS], "sampling": {"top_k": 0}}
    write_json(run / layout.meta(layout.generations(WEIGHTS, "easy")), {**meta, "content": sha256(answers)})
    out = run / layout.metric("rouge", WEIGHTS, "easy")
    rouge(generations=answers, out=out)
    return out
