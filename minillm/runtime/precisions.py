"""Whether a device can train in a precision, and whether it is slow at it."""

from __future__ import annotations

from typing import Any

import torch

from minillm.errors import UserError


def check(precision: str, accelerator: Any) -> None:
    """Raise UserError if DeepSpeed cannot train in `precision` here (bf16 on old GPUs, fp16 on CPUs)."""
    can = {"fp32": True, "bf16": accelerator.is_bf16_supported(), "fp16": accelerator.is_fp16_supported()}
    if not can[precision]:
        others = " or ".join(name for name in ("bf16", "fp16", "fp32") if can[name])
        raise UserError(f"precision: {precision} cannot be trained on this device; choose {others}")


def remark(precision: str, device: torch.device) -> str:
    """A warning before hours are spent on bf16 on an x86 CPU without instructions for it.

    There torch still multiplies bf16, but more slowly than float32 (docs/performance.md).  Returns '' on all
    other processors.
    """
    if precision != "bf16" or device.type != "cpu":
        return ""
    has = torch.cpu.get_capabilities()
    if has.get("architecture") != "x86_64" or has.get("avx512_bf16") or has.get("amx_bf16"):
        return ""
    return (
        "precision: this processor has no instructions for bf16 (AVX512-BF16, AMX) and is several "
        "times slower in it than in fp32"
    )
