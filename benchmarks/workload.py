"""Models and data of a measurement, made from a Shape through the package's public entry points.

Weights and tokens are random: time and memory do not depend on their values.  Both sides of a comparison get
models with the same weights, the same prompts and the same plain text.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.shapes import Shape, Size, real_lengths
from benchmarks.stops import silence
from minillm.config.launch import Launch
from minillm.config.onpolicy import OnPolicy
from minillm.config.presets import PRESETS
from minillm.data.rows import Corpus, Rows
from minillm.models.loading import DTYPES
from minillm.runtime.engine import Engine
from minillm.runtime.processes import World

# Token ids; texts are drawn from FIRST up.
EOS, PAD, FIRST = 0, 1, 2


@dataclass(frozen=True)
class Data:
    """A data folder's rows and plain text.

    `stops` are the response lengths to force, by prompt length (each length occurs once).
    """

    rows: Rows
    corpus: Corpus
    tokenizer: PreTrainedTokenizerFast
    stops: dict[int, int]


def tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """The word "t7" is token 7, and so on; the names of EOS and PAD are not part of any other."""
    words = {"<eos>": EOS, "<pad>": PAD} | {f"t{i}": i for i in range(FIRST, vocabulary)}
    backend = Tokenizer(models.WordLevel(words, unk_token="t2"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>", padding_side="left"
    )


def make_model(size: Size, shape: Shape, seed: int) -> PreTrainedModel:
    """A random GPT-2 in float32, in evaluation mode, that never draws EOS by itself."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=shape.vocabulary,
        n_positions=max(shape.width, shape.text),
        n_embd=size.width,
        n_layer=size.layers,
        n_head=max(1, size.width // 64),
        bos_token_id=EOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    model = GPT2LMHeadModel(config).eval()
    silence(model, EOS)
    return model


def make_data(shape: Shape, folder: Path, seed: int = 0) -> Data:
    """Rows and plain text of random tokens, written and read back in the data stage's format."""
    generator = np.random.default_rng(seed)
    if shape.real:
        prompts, responses = real_lengths(shape.batch, (shape.prompt, shape.response), seed)
    else:
        prompts, responses = [shape.prompt] * shape.batch, [shape.response] * shape.batch
    folder.mkdir(parents=True, exist_ok=True)

    def write(name: str, lengths: Sequence[int], values: Any) -> None:
        np.save(
            folder / f"{name}.tokens.npy",
            generator.integers(FIRST, shape.vocabulary, sum(lengths)).astype(np.int32),
        )
        np.save(folder / f"{name}.lengths.npy", np.asarray(values, dtype=np.int32))

    pairs = list(zip(prompts, responses, strict=True))
    write("train", [p + r for p, r in pairs], pairs)
    write("corpus", [shape.text] * shape.batch, [shape.text] * shape.batch)
    texts = {"instruction": "", "input": "", "prompt": "", "response": "", "references": []}
    rows = "".join(json.dumps({"id": i, **texts}) + "\n" for i in range(shape.batch))
    (folder / "train.jsonl").write_text(rows, encoding="utf-8")
    stops = {p: r for p, r in pairs if r < shape.response} if shape.real else {}
    return Data(Rows.open(folder, "train"), Corpus.open(folder), tokenizer(shape.vocabulary), stops)


def settings(shape: Shape, **changes: Any) -> OnPolicy:
    """The preset `released` at the shape's size; `changes` are keys of OnPolicy."""
    size = {
        "semantics": "released",
        "rollouts": shape.batch,
        "batch": shape.batch,
        "inner_epochs": shape.inner_epochs,
        "max_tokens": shape.response,
        "warmup": 0,
        "collections": 1000,
    }
    return OnPolicy(**(PRESETS["released"] | size | changes))


class Setting:
    """What both sides share: the processes, the precision, the weights of both models."""

    def __init__(self, shape: Shape, precision: str, world: World, compiled: bool = False) -> None:
        self.shape, self.precision, self.world, self.compiled = shape, precision, world, compiled
        self._folder = tempfile.TemporaryDirectory()
        self.folder = Path(self._folder.name)
        self.teacher = nn.Module.to(make_model(shape.teacher, shape, 2), world.device, DTYPES[precision])

    def make(self, shape: Shape | None = None) -> Data:
        """Data of the setting's shape, or of another shape for the same models."""
        shape = shape or self.shape
        return make_data(
            shape, self.folder / f"data-{shape.prompt}-{shape.response}-{shape.text}-{shape.real}"
        )

    def engine(self, name: str, chosen: OnPolicy, steps: int = 100_000, compiled: bool = False) -> Engine:
        """A new student under DeepSpeed, with the teacher that all share."""
        # As many as the reference computes at once.
        tokens = self.shape.micro_batch * max(self.shape.width, self.shape.text)
        rows = max(32, self.shape.batch)
        # On a CPU blocks are only compiled with eager attention.
        attention = "eager" if compiled and self.world.device.type == "cpu" else "auto"
        launch = Launch(
            zero=1,
            micro_batch=tokens,
            micro_tokens=tokens,
            eval_batch=rows,
            compile=compiled,
            attention=attention,
        )
        student = make_model(self.shape.student, self.shape, 1)
        engine = Engine(student, chosen, launch, self.world, self.precision, self.folder / name, steps)
        engine.frozen(self.teacher)
        return engine
