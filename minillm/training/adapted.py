"""Models with adapters in a training stage: whom the student shares its base with, and the merged model.

A stage trains the student's adapter on its base model.  Its output is the merged model, which every later
stage loads like any other, and next to it the adapter, which on-policy training goes on with.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from minillm.config.adapter import Adapter
from minillm.config.launch import Launch
from minillm.data.batching import collate
from minillm.errors import UserError
from minillm.files import PROVENANCE
from minillm.models.adapters import ADAPTER, add_adapter, load_adapter, merged, name_base, twin
from minillm.models.head import response_logits
from minillm.models.loading import load_model, save_model, special_tokens
from minillm.readers import read_object
from minillm.runtime.load_once import load_once
from minillm.runtime.processes import World
from minillm.training.dev_set import Dev

# Dev rows whose logits are compared before and after merging, and tokens of each response.
ROWS, TOKENS = 4, 32
# Difference of logits that is rounding (models/adapters.py): of weights, which are rounded once more, and of
# all layers' sums.
TOLERANCE = {"fp32": 1e-3, "bf16": 0.1, "fp16": 0.02}


@dataclass(frozen=True)
class Base:
    """The base model of a student with an adapter.

    content: its hash.  bare: itself, on the student's weights in memory; None if they are sharded, so that
    another model on it reads them again.
    """

    folder: Path
    content: str
    bare: PreTrainedModel | None


def with_adapter(
    student: PreTrainedModel,
    adapter: Adapter,
    seed: int,
    base: tuple[Path, str],
    launch: Launch,
    world: World,
    init: Path | None = None,
) -> Base:
    """Put the student's adapter into `student`, which holds its base model (`base`: folder, hash).

    A new one, or the one in `init` to go on with.  Raises UserError if that is of another base or shape.
    """
    sharded = launch.zero == 3 or (launch.shard_teacher and world.size > 1)
    shared = Base(*base, None if sharded else twin(student))
    if init is None:
        add_adapter(student, adapter, seed)
        return shared
    record = _record(init)
    earlier, ours = record["settings"].get("adapter"), json.loads(json.dumps(dataclasses.asdict(adapter)))
    if earlier != ours or record["inputs"].get("base") != shared.content:
        raise UserError(
            f"{init}: its adapter is {earlier}, trained on the base {record['inputs'].get('base')}; here it "
            f"is {ours} on {shared.content} ({shared.folder}); make it again"
        )
    load_adapter(student, init / ADAPTER)
    return shared


def load_frozen(
    folder: Path, precision: str, world: World, sharded: bool, base: Base | None
) -> PreTrainedModel:
    """The model in `folder`, which is not trained; every rank must call.

    If its base model is the student's (`base`), it is that with its own adapter, or none; in memory only the
    adapter is its own.  Raises UserError if it cannot be loaded.
    """
    if base is None:
        return load_once(folder, precision, world, sharded)
    record = _record(folder)
    adapted = (folder / ADAPTER).is_dir()
    content = record["inputs"].get("base") if adapted else record["content"]
    if content != base.content:
        return load_once(folder, precision, world, sharded)
    model = twin(base.bare) if base.bare else load_once(base.folder, precision, world, sharded)
    if adapted:
        load_adapter(model, folder / ADAPTER)
    return model


def merge(folder: Path, base: Path, precision: str, dev: Dev) -> None:
    """Write the model that the adapter in `folder` makes of `base` into `folder`, with the tokenizer.

    Raises UserError if its logits are not those of base and adapter apart.
    """
    pad = special_tokens(dev.tokenizer)[1]
    batch = collate([(prompt, response[:TOKENS]) for prompt, response in dev.examples[:ROWS]], pad)

    def logits(model: PreTrainedModel) -> Tensor:
        return response_logits(model, batch, dev.vocabulary)

    model = merged(load_model(base, precision), folder / ADAPTER, logits, TOLERANCE[precision])
    save_model(model, dev.tokenizer, folder)
    source = _record(base)["settings"].get("model")
    if isinstance(source, dict) and source.get("source") == "hub":
        name_base(folder / ADAPTER, source["path"], source.get("revision") or None)


def _record(folder: Path) -> Mapping[str, Any]:
    kinds = {"content": str, "settings": dict, "inputs": dict}
    return read_object(folder / PROVENANCE, kinds, "no such file", "make the model again")
