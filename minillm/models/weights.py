"""A model's weights from a folder, the hub or a GGUF file: all of them and nothing else, or one line.

transformers makes up what is missing, leaves out what it does not know and casts whole numbers, with a
warning at most.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from minillm.errors import UserError
from minillm.models.checks import in_one_line, some
from minillm.readers import checked, read_json

# What old versions stored with the weights and models now make themselves: masks, positions, frequencies.
BUFFERS = (
    *("attn.bias", "attention.bias", "masked_bias", "causal_mask", "position_ids", "inv_freq"),
    "decoder.version",
)
WHOLE = ("torch.int", "torch.uint", "torch.bool")


def read_model(
    source: str | Path,
    dtype: torch.dtype,
    where: object,
    device: torch.device | None = None,
    **options: Any,
) -> PreTrainedModel:
    """The model in a folder or hub repository `source`, in evaluation mode, on `device` (default: the CPU).

    `options` are those of `from_pretrained` that say where it is (`revision`, `local_files_only`).  Raises
    UserError, one line that begins with `where`: names of tensors that are missing, unknown or of another
    shape or type, and what is not a plain model of transformers.  Only then are weights read, once.
    """
    with _one_line(where):
        config = _configuration(source, where, options)
        types = _tensor_types(source, where, options)
        _check_configuration(config, len(types), where)
        # Shapes and names only: without it, a config.json of another model costs minutes of random weights.
        model, found = _from_pretrained(source, dtype, device_map="meta", **options)
        _check_names(type(model), found, where)
        _check_types(model, types, where)
        # Straight to a GPU: by way of the host they would take its memory, once for each process.
        gpu = {"device_map": {"": device}} if device is not None and device.type != "cpu" else {}
        model, found = _from_pretrained(source, dtype, **gpu, **options)
        _check_names(type(model), found, where)
    return model


def read_gguf(path: Path) -> PreTrainedModel:
    """The model in a GGUF file, dequantised to fp32.  Raises UserError as `read_model` does."""
    if not path.is_file():
        raise UserError(f"{path}: no such GGUF file")
    with _one_line(path):
        model, found = _from_pretrained(path.parent, torch.float32, gguf_file=path.name)
        _check_names(type(model), found, path)
    # The weights are dequantised by now, but transformers marks the model as quantised and will not save it.
    model.__dict__["hf_quantizer"] = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model


@contextmanager
def _one_line(where: object) -> Iterator[None]:
    """Whatever a library raises becomes one line, without the many that transformers logs before it."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # A damaged file, a missing package or a hub without a network raise many kinds of exceptions.
        kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
        raise UserError(
            f"{where}: cannot load this model ({kind}{in_one_line(error)}); copy or download it again"
        ) from None
    finally:
        transformers_logging.set_verbosity(level)


def _from_pretrained(source: str | Path, dtype: torch.dtype, **options: Any) -> tuple[Any, dict[str, Any]]:
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        source,
        dtype=dtype,
        output_loading_info=True,
        # Reported by name below, instead of an error that names none.
        ignore_mismatched_sizes=True,
        # Never somebody else's code, and of a pickle only its tensors.
        trust_remote_code=False,
        weights_only=True,
        **options,
    )
    return loaded[0], loaded[1]


def _file(source: str | Path, name: str, options: dict[str, Any]) -> str | None:
    """Where a file of a folder or of the hub's cache is (downloaded if need be); None if there is none."""
    if isinstance(source, Path):
        return str(source / name) if (source / name).is_file() else None
    found: str | None = cached_file(source, name, _raise_exceptions_for_missing_entries=False, **options)
    return found


def _configuration(source: str | Path, where: object, options: dict[str, Any]) -> dict[str, Any]:
    """The raw config.json; UserError if there is none, or only an adapter."""
    if _file(source, "adapter_config.json", options):
        raise UserError(
            f"{where}: an adapter (adapter_config.json), not a model; merge it into its model and save that "
            "(peft: model.merge_and_unload().save_pretrained(FOLDER))"
        )
    path = _file(source, "config.json", options)
    if path is None:
        place = "check the path or make it again" if isinstance(source, Path) else "check name and revision"
        raise UserError(f"{where}: no model here (config.json is missing); {place}, or fetch it again")
    return checked(read_json(path), {}, path)


def _check_configuration(config: dict[str, Any], tensors: int, where: object) -> None:
    """UserError if this is not the configuration of a plain model of transformers with so many tensors."""
    if quantised := config.get("quantization_config"):
        method = quantised.get("quant_method") if isinstance(quantised, dict) else None
        raise UserError(
            f"{where}: a quantised model ({method or 'quantization_config'}), which cannot be trained; take "
            "the one that it was made of, or save it dequantised (model.dequantize().save_pretrained(FOLDER))"
        )
    kind = config.get("model_type")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        if config.get("auto_map"):
            raise UserError(
                f"{where}: a model with code of its own (auto_map in config.json), which is never run; take "
                "a version of it for a model type of transformers"
            )
        raise UserError(
            f"{where}: the model_type of config.json, {kind!r}, is not a causal language model that "
            "transformers knows; check it, or take another model"
        )
    for key in ("num_hidden_layers", "n_layer", "n_layers", "num_layers"):
        # Even without weights, so many layers would take long to make.
        if isinstance(layers := config.get(key), int) and layers > tensors:
            raise UserError(
                f"{where}: {key} of config.json is {layers}, but there are only {tensors} tensors of "
                "weights; take the config.json that belongs to them"
            )


def _tensor_types(source: str | Path, where: object, options: dict[str, Any]) -> dict[str, str]:
    """The type of each tensor in the files of weights, by name, from their headers."""

    for name in ("model.safetensors", "pytorch_model.bin"):
        # As transformers does: one file before several, safetensors before pickles.
        if single := _file(source, name, options):
            return _header(Path(single), where)
        if index := _file(source, f"{name}.index.json", options):
            again = "copy or download it again"
            shards = checked(read_json(index), {"weight_map": dict}, index, again)["weight_map"].values()
            types: dict[str, str] = {}
            for shard in sorted(set(map(str, shards))):
                if (path := _file(source, shard, options)) is None:
                    raise UserError(f"{where}: {shard} is missing, which {Path(index).name} names; {again}")
                types |= _header(Path(path), where)
            return types
    raise UserError(f"{where}: a model folder without weights (*.safetensors); copy or download it again")


def _header(path: Path, where: object) -> dict[str, str]:
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            return {name: _type_of(file.get_slice(name).get_dtype()) for name in file.keys()}  # noqa: SIM118
    try:
        tensors = torch.load(path, map_location="meta", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:
        raise UserError(
            f"{where}: {path.name} is damaged, or a pickle that holds more than tensors and could run code "
            f"({type(error).__name__}); take a version in safetensors"
        ) from None
    return {name: str(value.dtype) for name, value in tensors.items() if isinstance(value, torch.Tensor)}


def _type_of(name: str) -> str:
    """torch's name of a type in safetensors: F32, BF16, I64, U8, BOOL ..."""
    return "torch." + {"I": "int", "U": "uint", "B": "bool"}.get(name[0] if name != "BF16" else "F", "float")


def _check_names(kind: type, found: dict[str, Any], where: object) -> None:
    """UserError if tensors are missing, unknown or of another shape; names, and how many."""
    missing = set(found["missing_keys"])
    unknown = {name for name in found["unexpected_keys"] if not name.endswith(BUFFERS)}
    shapes = {
        f"{name} is {'x'.join(map(str, there))} and not {'x'.join(map(str, wanted))}"
        for name, there, wanted in found["mismatched_keys"]
    }
    kinds = {"missing": missing, "unknown": unknown, "of another shape": shapes}
    parts = [f"{len(names)} {what} ({some(names)})" for what, names in kinds.items() if names]
    if parts:
        advice = "config.json and weights do not belong together, or a file is missing; copy it again"
        if wrapper := _wrapper(missing, unknown):
            advice = f"all names begin with '{wrapper}'; save the model inside of that wrapper"
        raise UserError(
            f"{where}: the tensors are not those of a {kind.__name__}: {', '.join(parts)}; {advice}"
        )


def _wrapper(missing: set[str], unknown: set[str]) -> str:
    """What names have in front of those that are missing, such as "module."; "" if nothing."""
    if not missing or not unknown:
        return ""
    name = min(missing)
    fronts = [there.removesuffix(name) for there in unknown if there.endswith(f".{name}")]
    return next((front for front in fronts if {front + name for name in missing} <= unknown), "")


def _check_types(model: PreTrainedModel, types: dict[str, str], where: object) -> None:
    """UserError if a weight is stored as whole numbers, which would be cast."""
    buffers = {name for name, _ in model.named_buffers()}
    buffers |= {name.removeprefix(f"{model.base_model_prefix}.") for name in buffers}
    whole = [
        f"{name}: {kind.removeprefix('torch.')}"
        for name, kind in types.items()
        if kind.startswith(WHOLE) and name not in buffers and not name.endswith(BUFFERS)
    ]
    if whole:
        raise UserError(
            f"{where}: {len(whole)} tensors hold whole numbers ({some(whole)}), which are not weights of a "
            "trained model; take one that is not quantised"
        )
