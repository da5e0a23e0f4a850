"""A model's sizes from its shape alone: its class is made on fake tensors, so nothing is loaded."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from minillm.config import layout
from minillm.config.adapter import Adapter
from minillm.config.experiment import Experiment
from minillm.config.strict import parse
from minillm.errors import UserError
from minillm.models.adapters import adapter_weights, add_adapter
from minillm.models.checks import in_one_line
from minillm.models.loading import decoder_blocks
from minillm.readers import read_json

# Key of a pruned model's shape: how many layers of its parent it has.
KEPT = "kept_layers"
# Key of the shape of a model that is trained by an adapter: the adapter's settings.
ADAPTER = "adapter"
# Dropout inside attention, by its names in the configurations of transformers.
ATTENTION_DROPOUT = ("attn_pdrop", "attention_dropout")


@dataclass(frozen=True)
class Size:
    """Numbers of a model, counted on its own class; `shape` makes it again (JSON, so that it can be a key).

    matrices: numbers of the linear weights of all blocks, what a token is multiplied by; frozen: of those,
    the ones that are not trained since an adapter is; last: the blocks' last ones.  trained: all numbers that
    are; decaying: of those, weights with two dimensions and more, the optimizer's larger group.
    attention: features of all heads together.  cache: numbers that the KV cache holds of a token, all layers.
    """

    shape: str
    parameters: int
    trained: int
    decaying: int
    matrices: int
    frozen: int
    last: int
    vocabulary: int
    width: int
    layers: int
    attention: int
    cache: int

    @property
    def head(self) -> int:
        """Numbers of the output matrix."""
        return self.vocabulary * self.width


def build(shape: str, layers: int = 0, fused_dropout: bool = False) -> PreTrainedModel:
    """The model of a shape, with random weights (inside FakeTensorMode without any), with `layers` blocks.

    With `fused_dropout` attention has none of its own, since a GPU's kernels keep no mask of it.
    """
    config = _configuration(shape, layers)
    for name in ATTENTION_DROPOUT if fused_dropout else ():
        if getattr(config, name, None):
            setattr(config, name, 0.0)
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    except Exception as error:
        raise UserError(f"shapes: {in_one_line(error)} ({shape})") from None
    if adapter := json.loads(shape).get(ADAPTER):
        # torch refuses to move fake weights, which are where they belong.
        with mock.patch.object(nn.Module, "to", lambda module, *_, **__: module):
            add_adapter(model, parse(Adapter, adapter, "models", "adapter"), 0)
    return model


def _configuration(shape: str, layers: int = 0) -> Any:
    arguments = json.loads(shape)
    kept = arguments.pop(KEPT, 0)
    arguments.pop(ADAPTER, None)
    layers = layers or kept
    try:
        config = AutoConfig.for_model(**arguments)
        if layers:
            config.num_hidden_layers = layers
        for name in ("layer_types", "attention_layers"):
            if layers and getattr(config, name, None):
                setattr(config, name, getattr(config, name)[:layers])
    except Exception as error:
        raise UserError(f"shapes: {in_one_line(error)} ({shape})") from None
    return config


@functools.cache
def size_of(shape: str) -> Size:
    """The sizes of a shape; UserError if transformers makes no model of it.

    One block and two are made: the others are like them.
    """
    config: Any = _configuration(shape)
    layers = config.num_hidden_layers
    with FakeTensorMode():
        one, two = _counts(build(shape, 1)), _counts(build(shape, 2))
    heads = config.num_attention_heads
    head_width = getattr(config, "head_dim", None) or config.hidden_size // heads
    cached = getattr(config, "num_key_value_heads", None) or heads
    every = {name: one[name] + (layers - 1) * (two[name] - one[name]) for name in one}
    return Size(
        shape, **every, layers=layers, attention=heads * head_width, cache=2 * cached * head_width * layers
    )


def _counts(model: PreTrainedModel) -> dict[str, int]:
    blocks = decoder_blocks(model)
    rows, width = model.get_output_embeddings().weight.shape
    own = {id(weight) for weight in adapter_weights(model).values()}
    matrices = [[p for p in block.parameters() if p.ndim > 1] for block in blocks]
    trained = [p for p in model.parameters() if p.requires_grad]
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained": sum(p.numel() for p in trained),
        "decaying": sum(p.numel() for p in trained if p.ndim > 1),
        "matrices": sum(p.numel() for of_block in matrices for p in of_block),
        "frozen": sum(p.numel() for of_block in matrices for p in of_block if not p.requires_grad),
        "last": sum([p.numel() for p in of_block if id(p) not in own][-1] for of_block in matrices),
        "vocabulary": int(rows),
        "width": int(width),
    }


def text_of(shape: Mapping[str, Any]) -> str:
    """A shape as text, the same for equal ones."""
    return json.dumps(dict(shape), sort_keys=True)


def adapted(shape: str, adapter: Adapter | None) -> str:
    """The shape of a model while it is trained by `adapter`, if it is."""
    if adapter is None:
        return shape
    return text_of({**json.loads(shape), ADAPTER: dataclasses.asdict(adapter)})


def shape_of(config: Experiment, name: str, root: Path = Path()) -> str:
    """The shape of the model `name`: its own, its parent's with fewer layers, or that of a folder's files.

    Raises UserError if nothing says it.
    """
    spec = config.models[name]
    if spec.source == "scratch":
        vocabulary = config.tokenizers[spec.tokenizer].vocabulary
        return text_of({"vocab_size": vocabulary, **spec.architecture})
    if name in config.shapes:
        return text_of(config.shapes[name])
    if spec.source == "pruned":
        parent = json.loads(shape_of(config, spec.parent, root))
        return text_of({**parent, KEPT: len(spec.layers)})
    folders = [root / layout.run_folder(config.run) / layout.model(layout.base_weights(name))]
    folders += [Path(spec.path)] if spec.source == "folder" else []
    for folder in folders:
        if (folder / "config.json").is_file():
            found = read_json(folder / "config.json")
            return text_of({key: value for key, value in found.items() if value is not None})
    raise UserError(
        f"shapes.{name}: missing; nothing else says how large this model is before it is here: "
        "copy the keys of its config.json, model_type included"
    )


def bytes_of(precision: str) -> int:
    """Bytes of a number in a precision."""
    return 4 if precision == "fp32" else 2


def kind_of(precision: str) -> torch.dtype:
    """torch's type of a precision; half precisions have one size and, on a CPU, one that all kernels take."""
    return torch.float32 if precision == "fp32" else torch.bfloat16
