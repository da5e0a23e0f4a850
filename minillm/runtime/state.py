"""What a checkpoint holds next to DeepSpeed's files: plain values in one safetensors file, never a pickle.

Reading one runs no code.  Tensors and arrays are the file's tensors; all else is JSON in its header.
"""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save

from minillm.errors import UserError
from minillm.readers import parse_json

HEADER = "state"
TENSOR, ARRAY = "$tensor", "$array"


def write(path: Path, value: Any) -> str:
    """Write a value made of dicts with text keys, lists, text, numbers, booleans, None, tensors and arrays.

    Returns the file's SHA-256 in hex.  Tuples come back as lists.  Raises OSError if the disk is full,
    TypeError for any other type.
    """
    tensors: dict[str, torch.Tensor] = {}
    header = json.dumps(_plain(value, tensors))
    # Not save_file, whose error for a full disk is no OSError.
    data = save(tensors, {HEADER: header})
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def read(path: Path) -> Any:
    """What `write` wrote, the tensors on the CPU.  Raises UserError if the file is something else."""
    again = "delete this checkpoint to resume from the one before"
    try:
        with safe_open(path, "pt") as file:
            header = (file.metadata() or {}).get(HEADER, "")
        tensors = load(path.read_bytes())
    except (SafetensorError, FileNotFoundError) as error:
        raise UserError(f"{path}: no state of a run ({error}); {again}") from None
    return _whole(parse_json(header, path, again), tensors)


def _plain(part: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """`part` as JSON takes it; its tensors and arrays go into `tensors`, by number."""
    if isinstance(part, torch.Tensor | np.ndarray):
        name = str(len(tensors))
        kind, values = TENSOR, part
        if isinstance(values, np.ndarray):
            kind, values = ARRAY, torch.from_numpy(values.copy())
        # A copy: safetensors refuses views of one storage, such as the rows of a batch.
        tensors[name] = values.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {kind: name}
    if isinstance(part, dict):
        if wrong := [key for key in part if not isinstance(key, str) or key.startswith("$")]:
            raise TypeError(f"a state's keys are text without $ at the start, not {wrong[0]!r}")
        return {key: _plain(inner, tensors) for key, inner in part.items()}
    if isinstance(part, list | tuple):
        return [_plain(inner, tensors) for inner in part]
    return part


def _whole(part: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """What `_plain` was given."""
    if isinstance(part, list):
        return [_whole(inner, tensors) for inner in part]
    if not isinstance(part, dict):
        return part
    if TENSOR in part:
        return tensors[part[TENSOR]]
    if ARRAY in part:
        return tensors[part[ARRAY]].numpy()
    return {key: _whole(inner, tensors) for key, inner in part.items()}


def random_states() -> dict[str, Any]:
    """The states of all random number generators of this process."""
    kind, words, place, has_gauss, gauss = np.random.get_state()
    states = {
        "torch": torch.get_rng_state(),
        "numpy": [kind, words, int(place), int(has_gauss), float(gauss)],
        "python": random.getstate(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_random_states(states: dict[str, Any]) -> None:
    """Continue with what `random_states` returned."""
    torch.set_rng_state(states["torch"])
    np.random.set_state(tuple(states["numpy"]))
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
