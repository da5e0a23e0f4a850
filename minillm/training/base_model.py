"""Stage `base`: a base model from scratch, a folder, the hub or a GGUF file, or pruned and healed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from minillm.config.launch import Launch
from minillm.config.sections import Model
from minillm.config.stage_settings import BaseSettings
from minillm.data.rows import Corpus, Example, Rows
from minillm.data.tokenizers import check_ids, own_tokenizer
from minillm.files import CHAT_TEMPLATE, identity, stage_key, whole_folder
from minillm.models.loading import DTYPES, base_model, end_with, load_tokenizer, save_model
from minillm.models.served import write_served
from minillm.runtime import provenance
from minillm.runtime.engine import Engine
from minillm.runtime.load_once import load_once
from minillm.runtime.processes import start
from minillm.runtime.schedule import count_steps
from minillm.training.dev_set import Dev
from minillm.training.export import export
from minillm.training.lengths import check_limits
from minillm.training.supervised import fit, plain_sequences
from minillm.training.teacher_answers import read_answers


def run_stage(
    settings: BaseSettings,
    launch: Launch,
    *,
    data: Path,
    out: Path,
    checkpoints: Path,
    parent: Path | None = None,
    pseudo: Path | None = None,
) -> None:
    """Write the base model to `out`.

    Scratch models are pre-trained and pruned ones healed first, as `settings.model.training` says; with
    `pseudo` also on a teacher's answers.  Raises UserError as `read_answers` does.
    """
    spec = settings.model
    tokenizer = load_tokenizer(data / "tokenizer")
    paths = {"data": data, "parent": parent, "pseudo": pseudo}
    inputs = {key: identity(path) for key, path in paths.items() if path}
    raw = dataclasses.asdict(settings)
    if spec.source == "server":
        with whole_folder(out) as partial:
            write_served(partial, spec)
            tokenizer.save_pretrained(partial)
            provenance.write(partial, raw, inputs, {"source": spec.path, "served_name": spec.served_name})
        return
    model = base_model(spec, tokenizer, settings.seed, parent)
    check_limits(model, data, spec.path or spec.source)
    if (data / CHAT_TEMPLATE).is_file():
        end_with(model, tokenizer)
    if spec.source != "scratch":
        compare_tokenizers(spec, tokenizer, parent)
    if spec.training is None:
        model = torch.nn.Module.to(model, DTYPES[settings.precision])
        with whole_folder(out) as partial:
            save_model(model, tokenizer, partial)
            provenance.write(
                partial, raw, inputs, {"seed": settings.seed, "source": spec.path, "revision": spec.revision}
            )
        return
    world = start(settings.seed, launch.patience)
    examples = plain_text_examples(data, with_rows=parent is not None, pseudo=pseudo)
    dev = Dev.open(data, spec.training.dev_rows, tokenizer, settings.sampling, launch, settings.seed)
    engine = Engine(
        model,
        spec.training,
        launch,
        world,
        settings.precision,
        checkpoints / f"base-{stage_key(raw, inputs)}",
        count_steps(len(examples), spec.training),
        out,
    )
    teacher = None
    if parent:
        teacher = engine.frozen(load_once(parent, settings.precision, world, launch.shard_teacher))
    history = fit(
        engine, examples, dev, spec.training, name="base", seed=settings.seed, teacher=teacher, rouge=False
    )
    export(engine, dev, history, {"lowest_loss": out}, raw, inputs, settings.seed)


def compare_tokenizers(spec: Model, run: PreTrainedTokenizerBase, parent: Path | None) -> None:
    """UserError if the model's own tokenizer gives other ids than the run's; a note if it has none.

    Checked here because the run's tokenizer goes into the model's folder: later stages see nothing else.
    """
    original = load_tokenizer(parent) if parent else own_tokenizer(spec)
    if original is None:
        print(
            f"{spec.path}: comes without a tokenizer; "
            "only the number of its tokens was compared with the run's"
        )
    else:
        check_ids(original, run, spec.path or str(parent))


def plain_text_examples(data: Path, with_rows: bool, pseudo: Path | None = None) -> list[Example]:
    """The pre-training corpus, each chunk's first token as context.

    `with_rows`, for healing, adds the training rows, prompt and response as one text; `pseudo` training
    prompts with a teacher's answers.
    """
    corpus = Corpus.open(data)
    chunks = [corpus.chunk(i) for i in range(len(corpus))]
    if with_rows:
        rows = Rows.open(data, "train")
        chunks += [np.concatenate([rows.prompt(i), rows.response(i)]) for i in range(len(rows))]
    if pseudo is not None:
        chunks += [np.concatenate(answered) for answered in read_answers(pseudo, data)["train"]]
    return plain_sequences(chunks)
