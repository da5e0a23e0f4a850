"""Models and tokenizers as files: load, check, convert, prune, save."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from minillm.config import sections
from minillm.data.sources import resolve_path
from minillm.data.tokenizers import check_same_tokens, vocabulary_size
from minillm.errors import UserError
from minillm.files import SERVED
from minillm.models.checks import check_model, in_one_line
from minillm.models.weights import read_gguf, read_model

transformers_logging.disable_progress_bar()

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a data or model folder, as saved there by the data stage (EOS and PAD are set).

    Raises UserError if there is none: transformers would make up an empty one.
    """
    if not (folder / "tokenizer.json").is_file():
        raise UserError(
            f"{folder}: no tokenizer here (tokenizer.json is missing); check the path or make it again"
        )
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        # Just a malformed tokenizer.json raises several kinds.
        raise UserError(
            f"{folder}: cannot load this tokenizer ({in_one_line(error)}); copy it again"
        ) from None
    return tokenizer


def load_model(folder: Path, precision: str, device: torch.device | None = None) -> PreTrainedModel:
    """The model in a folder of ours, in `precision`, in evaluation mode, on `device` (default: the CPU).

    Raises UserError if the folder is missing, holds no weights or cannot be loaded.
    """
    if (folder / SERVED).is_file():
        raise UserError(f"{folder}: a server ({SERVED}), without weights; it can only answer prompts")
    model = read_model(folder, DTYPES[precision], folder, device, local_files_only=True)
    check_model(model, folder)
    return nn.Module.to(model, device).eval() if device else model.eval()


@contextmanager
def attention(models: Sequence[PreTrainedModel], name: str) -> Iterator[None]:
    """Inside, attention is computed by transformers' implementation `name` ("sdpa", "eager").

    "auto" changes nothing.  Implementations differ by rounding.  Raises UserError if a model does not have
    this one.
    """
    before = [model.config._attn_implementation for model in models]
    try:
        for model in models if name != "auto" else ():
            _set_attention(model, name)
        yield
    finally:
        for model, usual in zip(models, before, strict=True):
            if model.config._attn_implementation != usual:
                model.set_attn_implementation(usual)


def _set_attention(model: PreTrainedModel, name: str) -> None:
    try:
        model.set_attn_implementation(name)
    except Exception as error:
        # Several kinds of exceptions.
        raise UserError(f"launch.attention: {in_one_line(error)}") from None
    # transformers only warns if it does not know how to change it.
    if model.config._attn_implementation != name:
        raise UserError(
            f"launch.attention: {type(model).__name__} cannot be set to '{name}'; leave it at auto"
        )


def without_dropout(model: PreTrainedModel) -> None:
    """Set every dropout rate to 0.

    transformers recomputes activations only in training mode, which would bring dropout with it.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def base_model(
    spec: sections.Model, tokenizer: PreTrainedTokenizerBase, seed: int, parent: Path | None
) -> PreTrainedModel:
    """The base model that `spec` describes, in fp32 and before any training of ours.

    Raises UserError if it cannot be loaded or made, or its vocabulary does not match the tokenizer.
    """
    if spec.source == "scratch":
        model = _scratch(spec, tokenizer, seed)
    elif spec.source == "pruned":
        assert parent is not None
        model = prune(load_model(parent, "fp32"), spec.layers)
    elif spec.source == "gguf":
        model = read_gguf(resolve_path(spec.path, "models.path"))
    elif spec.source == "folder":
        model = load_model(resolve_path(spec.path, "models.path"), "fp32")
    else:
        where = f"models.path: '{spec.path}' of the hub"
        model = read_model(spec.path, torch.float32, where, revision=spec.revision or "main")
    if spec.source in ("scratch", "gguf", "hub"):
        check_model(model, spec.path or "models.architecture")
    check_vocabulary(model, tokenizer, spec.path or spec.source)
    return model


def _scratch(spec: sections.Model, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    arguments = {
        "vocab_size": vocabulary_size(tokenizer),
        "bos_token_id": tokenizer.eos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **spec.architecture,
    }
    torch.manual_seed(seed)
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**arguments), dtype=torch.float32
        )
    except Exception as error:
        # Whatever a configuration class makes of wrong values.
        raise UserError(f"models.architecture: {in_one_line(error)}") from None
    _check_keys(model, spec.architecture)
    return model


def _check_keys(model: PreTrainedModel, architecture: dict[str, Any]) -> None:
    """UserError for a key that this kind of model does not have: its class keeps it and never reads it."""
    kind = type(model.config)
    known = {field.name for field in dataclasses.fields(kind)} | set(kind.attribute_map)
    sources = [
        inspect.getsource(sys.modules[c.__module__])
        for c in (*kind.__mro__, type(model))
        if "transformers" in c.__module__
    ]
    for key in architecture:
        # Keys of older versions are no fields, but translated, or read from what is not a field.
        if key in known or key not in vars(model.config) or hasattr(kind, key):
            continue
        if not any(f"config.{key}" in source or f'"{key}"' in source for source in sources):
            near = difflib.get_close_matches(key, known, 3)
            hint = f"did you mean {' or '.join(near)}?" if near else "see its class in transformers"
            raise UserError(f"models.architecture.{key}: no such key of a {kind.model_type} model; {hint}")


def _place_of_blocks(model: PreTrainedModel) -> tuple[nn.Module, str]:
    """The module that holds a model's decoder blocks, and its attribute's name; UserError if not found."""
    decoder: nn.Module = model.base_model
    for holder in (decoder, getattr(decoder, "decoder", None)):
        for name in ("layers", "h"):
            if isinstance(getattr(holder, name, None), nn.ModuleList):
                return cast(nn.Module, holder), name
    raise UserError(f"models.layers: cannot find the layers of a {type(model).__name__}; not supported")


def decoder_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder blocks of a model, first to last; UserError if they are not found."""
    holder, name = _place_of_blocks(model)
    return cast(nn.ModuleList, getattr(holder, name))


def prune(model: PreTrainedModel, layers: tuple[int, ...]) -> PreTrainedModel:
    """`model` with only the chosen decoder layers, in the given order (depth pruning).

    Raises UserError for a layer that it does not have or that is named twice, and if its layers are not
    found.
    """
    decoder, name = _place_of_blocks(model)
    blocks = decoder_blocks(model)
    if max(layers) >= len(blocks):
        raise UserError(
            f"models.layers: layer {max(layers)} does not exist, the parent has 0 to {len(blocks) - 1}"
        )
    if len(set(layers)) < len(layers):
        raise UserError(f"models.layers: {list(layers)} names a layer twice; name each once")
    kept = nn.ModuleList(blocks[i] for i in layers)
    for index, block in enumerate(kept):
        for part in block.modules():
            # Where the KV cache files this layer.
            if hasattr(part, "layer_idx"):
                part.__dict__["layer_idx"] = index
    setattr(decoder, name, kept)
    model.config.num_hidden_layers = len(layers)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[i] for i in layers]
    return model


@contextmanager
def only_layers(model: PreTrainedModel, layers: tuple[int, ...]) -> Iterator[None]:
    """`prune`, until the block ends: the model is what it was afterwards, without a copy of any weight."""
    decoder, name = _place_of_blocks(model)
    blocks, kinds = decoder_blocks(model), getattr(model.config, "layer_types", None)
    places = {part: part.layer_idx for part in blocks.modules() if hasattr(part, "layer_idx")}
    prune(model, layers)
    try:
        yield
    finally:
        setattr(decoder, name, blocks)
        for part, place in places.items():
            part.__dict__["layer_idx"] = place
        model.config.num_hidden_layers = len(blocks)
        if kinds:
            model.config.layer_types = kinds


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """Raises UserError if the model has fewer output rows than the tokenizer has tokens.

    More rows are padding, which is never used.
    """
    rows, ids = model.get_output_embeddings().weight.shape[0], vocabulary_size(tokenizer)
    if rows < ids:
        raise UserError(
            f"{where}: the model knows {rows} tokens and its tokenizer {ids}; they do not belong together"
        )


def check_same_tokenizer(a: Path, b: Path) -> int:
    """The vocabulary size that two folders share; UserError if their tokenizers differ in any token."""
    return check_same_tokens(load_tokenizer(a), load_tokenizer(b), a, b)


def decode(tokenizer: PreTrainedTokenizerBase, tokens: np.ndarray) -> str:
    """Text of a response, without special tokens."""
    text = tokenizer.decode(tokens.tolist(), skip_special_tokens=True)
    assert isinstance(text, str)
    return text


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """(eos, pad) ids."""
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    assert isinstance(eos, int)
    return eos, pad if isinstance(pad, int) else eos


def end_with(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let transformers end the model's answers by the EOS of `tokenizer`, wherever the folder is loaded."""
    end = special_tokens(tokenizer)[0]
    model.config.eos_token_id = end
    if model.generation_config is not None:
        model.generation_config.eos_token_id = end


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    state: dict[str, Any] | None = None,
) -> None:
    """Save weights (safetensors), configuration and tokenizer to `folder`.

    `state` replaces the weights (gathered from ZeRO-3).
    """
    model.save_pretrained(folder, state_dict=state)
    tokenizer.save_pretrained(folder)
