"""The model that a stage trains or shards, loaded where it will be used and in the precision of the run."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from minillm.errors import UserError
from minillm.models.loading import DTYPES, load_model
from minillm.runtime.processes import World


def load_once(folder: Path, precision: str, world: World, sharded: bool) -> PreTrainedModel:
    """The model in `folder` in `precision`, straight to this rank's device; every rank must call.

    For training too: DeepSpeed makes the float32 weights of the optimizer from those in the computing
    precision.  If DeepSpeed shards it (`sharded`), only rank 0 reads it: the others get room for the weights,
    which DeepSpeed sends before it shards them, and the output matrix.  Raises UserError on every rank if it
    cannot be loaded.
    """
    if not sharded or world.size == 1:
        return load_model(folder, precision, world.device)
    loaded: list[PreTrainedModel] = []
    problem = ""
    if world.rank == 0:
        try:
            loaded.append(load_model(folder, precision, world.device))
        except UserError as error:
            problem = str(error)
    if problem := world.gather(problem)[0]:
        raise UserError(problem)
    model = loaded[0] if loaded else empty(folder, precision, world.device)
    theirs = world.gather(dict(model.named_buffers()) if loaded else {})[0]
    for name, values in model.named_buffers():
        values.copy_(theirs[name])
    # Also used outside forward passes (models/head.py).
    head = model.get_output_embeddings()
    for weight in head.parameters():
        dist.broadcast(weight.data, 0)
    return model


def empty(folder: Path, precision: str, device: torch.device) -> PreTrainedModel:
    """The model in `folder` without the values of its weights; a CPU's memory is not touched."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    with init_empty_weights(include_buffers=False):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=DTYPES[precision])
    model.tie_weights()
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False, remove_duplicate=False):
            if id(weight) not in made:
                room = torch.empty_like(weight, device=device)
                made[id(weight)] = nn.Parameter(room, requires_grad=weight.requires_grad)
            setattr(module, name, made[id(weight)])
    return nn.Module.to(model, device).eval()
