"""The optimizer's parameter groups, and what DeepSpeed leaves to fix in its state."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel


def parameter_groups(model: PreTrainedModel, weight_decay: float) -> list[dict[str, Any]]:
    """The optimizer's groups: matrices, and biases and norms, which do not decay, as in the released code."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def fix_universal(optimizer: torch.optim.Optimizer, decays: list[float]) -> None:
    """Undo what DeepSpeed 0.19.8 does to a ZeRO-3 optimizer when it loads a universal checkpoint.

    All weights share one step counter, which each then advances; all groups get the first's weight decay.
    `decays` are those that the groups had.
    """
    for group, decay in zip(optimizer.param_groups, decays, strict=True):
        group["weight_decay"] = decay
    for weight, values in optimizer.state.items():
        # Fused AdamW reads the step on the weights' device, where the converter did not put it.
        if torch.is_tensor(values.get("step")):
            values["step"] = values["step"].to(weight.device, torch.float32, copy=True)
