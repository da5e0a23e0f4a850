"""What a device makes of a precision: whether it can train in it, and whether it is slow at it."""

from __future__ import annotations

from typing import Any

import torch

from minillm.errors import UserError


def check(precision: str, accelerator: Any) -> None:
    """Raises UserError where DeepSpeed cannot train in `precision` on this device (bf16 on old cards, fp16 on the CPU)."""
    can = {"fp32": True, "bf16": accelerator.is_bf16_supported(), "fp16": accelerator.is_fp16_supported()}
    if not can[precision]:
        others = " or ".join(name for name in ("bf16", "fp16", "fp32") if can[name])
        raise UserError(f"precision: {precision} cannot be trained on this device; choose {others}")


def remark(precision: str, device: torch.device) -> str:
    """What the user should know before hours are spent: bf16 on an x86 processor without instructions for it.  Otherwise "".

    There torch multiplies it all the same, slower than float32 (docs/performance.md).  Of other processors nothing is said.
    """
    if precision != "bf16" or device.type != "cpu":
        return ""
    has = torch.cpu.get_capabilities()
    if has.get("architecture") != "x86_64" or has.get("avx512_bf16") or has.get("amx_bf16"):
        return ""
    return "precision: this processor has no instructions for bf16 (AVX512-BF16, AMX) and is several times as slow in it as in fp32"
