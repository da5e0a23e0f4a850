"""Low-rank adapters (LoRA, arXiv 2106.09685) by `peft`: put into a model, written, read and merged.

The layers go into the model itself, whose class and methods stay what they are: outside of this module only
its frozen weights tell that it has an adapter.  An adapter's folder has the form of peft, which loads it.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from minillm.config.adapter import Adapter
from minillm.errors import UserError
from minillm.models.checks import in_one_line, some
from minillm.models.loading import decoder_blocks
from minillm.readers import checked, read_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Where an adapter lies in the folder of the model that it was merged into.
ADAPTER = "adapter"
# peft's names: of the adapter inside of a model, and what files put before the names of modules.
NAME, PREFIX = "default", "base_model.model."


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise UserError(
            f"models.NAME.adapter: needs the package peft ({in_one_line(error)}); "
            "pip install 'peft>=0.21.2,<0.22'"
        ) from None
    return peft


def is_adapted(model: nn.Module) -> bool:
    """Whether the model has an adapter."""
    return hasattr(model, "peft_config")


def add_adapter(model: PreTrainedModel, adapter: Adapter, seed: int) -> None:
    """Freeze `model` and put a new adapter into it, the same for a seed on every device: A random, B zero.

    Raises UserError if a target is no linear layer of the decoder blocks.
    """
    kinds = targets_of(model, adapter.targets)
    config = _peft().LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=sorted(kinds),
        # The weights of GPT-2's layers are transposed.
        fan_in_fan_out=all(kinds.values()),
    )
    _inject(model, config, seed)


def _inject(model: PreTrainedModel, config: Any, seed: int = 0) -> None:
    # Of the base weights: peft makes adapters in float32.
    dtype = next(decoder_blocks(model).parameters()).dtype
    # New layers are drawn on the CPU; other generators are left alone.
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    _peft().inject_adapter_in_model(config, model, adapter_name=NAME)
    torch.set_rng_state(state)
    for weight in adapter_weights(model).values():
        weight.data = weight.data.to(dtype)
    # New layers are in training mode, whatever the model's: a frozen model would drop inputs.
    model.train(model.training)


def targets_of(model: PreTrainedModel, targets: tuple[str, ...]) -> dict[str, bool]:
    """The ends of module names that `targets` mean (all if empty) -> whether these are transposed (Conv1D).

    Raises UserError for one that no linear layer of the decoder blocks has, or that other layers have too.
    """
    blocks = {id(part) for part in decoder_blocks(model).modules()}
    linear = {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear | Conv1D)}
    inside = {name: isinstance(part, Conv1D) for name, part in linear.items() if id(part) in blocks}
    ends = {name.rpartition(".")[2] for name in inside}
    found = {}
    for target in targets or sorted(ends):
        matched = [name for name, _ in model.named_modules() if f".{name}".endswith(f".{target}")]
        if not matched or not inside.keys() >= set(matched):
            raise UserError(
                f"adapter.targets: '{target}' is not (only) a linear layer of the decoder blocks of a "
                f"{type(model).__name__}; those are {', '.join(sorted(ends))}"
            )
        found[target] = inside[matched[0]]
    return found


def adapter_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapter's weights by their names in the model; empty if it has none."""
    return {
        name: weight for name, weight in model.named_parameters() if f".{NAME}." in name and "lora_" in name
    }


def save_adapter(model: PreTrainedModel, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
    """Write the model's adapter in peft's form; `state` has its weights if the model does not (ZeRO-3)."""
    held = state if state is not None else adapter_weights(model)
    tensors = {_in_file(name): held[name].detach().cpu().contiguous() for name in adapter_weights(model)}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    configs: Any = model.peft_config
    # Sets, whose order would differ from process to process.
    values = {k: sorted(v) if isinstance(v, set) else v for k, v in configs[NAME].to_dict().items()}
    _write_config(folder, values)


def name_base(folder: Path, path: str, revision: str | None) -> None:
    """Write into the adapter's configuration which repository of the hub its base model is."""
    values = read_json(folder / CONFIG) | {"base_model_name_or_path": path, "revision": revision}
    _write_config(folder, values)


def _write_config(folder: Path, values: Mapping[str, Any]) -> None:
    (folder / CONFIG).write_text(json.dumps(values, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _in_file(name: str) -> str:
    return PREFIX + name.replace(f".{NAME}.", ".")


def load_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Freeze `model` and put the adapter in `folder` into it, its own weights not frozen.

    Raises UserError if there is none, or it is damaged or of another model.
    """
    again = "make the model again"
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder}: no adapter here ({CONFIG} or {WEIGHTS} is missing); {again}")
    checked(read_json(folder / CONFIG), {"r": int, "target_modules": list}, folder / CONFIG, again)
    try:
        config, tensors = _peft().LoraConfig.from_pretrained(folder), load_file(folder / WEIGHTS)
        _inject(model, config)
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{folder}: cannot load this adapter ({in_one_line(error)}); {again}") from None
    weights = {_in_file(name): weight for name, weight in adapter_weights(model).items()}
    wrong = weights.keys() ^ tensors.keys()
    wrong |= {name for name in weights.keys() & tensors.keys() if weights[name].shape != tensors[name].shape}
    if wrong:
        raise UserError(f"{folder}: not an adapter of this model ({some(wrong)}); {again}")
    if broken := {name for name, values in tensors.items() if not values.isfinite().all()}:
        raise UserError(f"{folder}: weights are not finite numbers ({some(broken)}); {again}")
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(tensors[name])


def twin(model: PreTrainedModel) -> PreTrainedModel:
    """The same model once more on the same weights in memory: only modules and buffers are copied."""
    shared: dict[int, Any] = {id(weight): weight for weight in model.parameters()}
    return copy.deepcopy(model, shared)


@torch.no_grad()
def merged(
    model: PreTrainedModel, folder: Path, logits: Callable[[PreTrainedModel], Tensor], tolerance: float
) -> PreTrainedModel:
    """`model` (which is changed) with the adapter in `folder` merged into its weights, both done by peft.

    Raises UserError unless its `logits`, (tokens, vocabulary), are those of model and adapter apart: a root
    mean square difference below `tolerance`, as a share of their standard deviation over the vocabulary.
    """
    # In the precision of the model, as it was trained, and not in float32.
    with warnings.catch_warnings():
        # Of names that peft still uses.
        warnings.simplefilter("ignore", FutureWarning)
        adapted = _peft().PeftModel.from_pretrained(model, folder, autocast_adapter_dtype=False)
    apart = _centred(logits(model.eval()))
    whole: PreTrainedModel = adapted.merge_and_unload()
    difference = _centred(logits(whole)) - apart
    share = float(difference.square().mean().sqrt() / apart.square().mean().sqrt())
    # Also not if it is NaN.
    if not share <= tolerance:
        raise UserError(
            f"{folder}: logits of the merged model differ by {share:.2g} of their spread from those of model "
            f"and adapter apart, more than {tolerance:g}: rounded weights lose what was trained; "
            "take another precision, or a larger lr"
        )
    return whole


def _centred(logits: Tensor) -> Tensor:
    """Without what all logits of a token share, which no softmax sees."""
    return logits.double() - logits.double().mean(-1, keepdim=True)
