"""The product with the output matrix, in half precision without the rounding of what all logits share.

A softmax does not see a number that is added to all logits of a token; rounding does.  Trained GPT-2 has
logits around -96, where bf16 has steps of 0.5, so that log-probabilities would be off by a tenth of a nat.
On a GPU the product comes in float32.  Elsewhere an estimate of the token's mean logit is subtracted before
rounding: any number will do, as long as all of the token's logits get the same one, so losses and gradients
stay exact.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)
# Rows of the matrix of which the mean is estimated.
ROWS = 4096
# A token has so many logits, or a multiple, if the matrix has rows to spare: a GPU's fast kernels need rows
# that begin at multiples of 16 bytes.
ALIGNED = 64


def mean_row(weight: Tensor, vocabulary: int) -> Tensor | None:
    """(width,): its product with a hidden state is about the mean logit.  None if logits are not rounded."""
    if weight.dtype not in HALF:
        return None
    rows = weight.detach()[:vocabulary]
    return rows[:: max(1, vocabulary // ROWS)].mean(0, dtype=torch.float32).to(weight.dtype)


def minus_mean(hidden: Tensor, mean: Tensor) -> Tensor:
    """(tokens, 1): minus the estimated mean logit; no gradient, since that of a sum over a softmax is 0."""
    return -(hidden.detach() @ mean).unsqueeze(-1)


def half(hidden: Tensor, weight: Tensor, bias: Tensor | None, mean: Tensor) -> Tensor:
    """Logits minus a number for each token, rounded once; with a bias in float32."""
    product = torch.addmm(minus_mean(hidden, mean), hidden, weight.t())
    return product if bias is None else product.float() + bias.float()


def in_float32(hidden: Tensor, weight: Tensor, bias: Tensor | None, vocabulary: int) -> Tensor:
    """Logits in float32 from operands in half precision, on a GPU; no gradient."""
    rows = min(len(weight), -(-vocabulary // ALIGNED) * ALIGNED)
    product = _mm(hidden, weight[:rows].t())[:, :vocabulary]
    return product if bias is None else product + bias[:vocabulary].float()


def is_wide(hidden: Tensor, weight: Tensor) -> bool:
    """Whether `in_float32` can be used: not where autograd needs the product's own gradient."""
    differentiated = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    return weight.dtype in HALF and not differentiated and _has_wide(hidden.device)


def _mm(a: Tensor, b: Tensor) -> Tensor:
    product: Tensor = torch.mm(a, b, out_dtype=torch.float32)  # type: ignore[call-overload]
    return product


@functools.cache
def _has_wide(device: torch.device) -> bool:
    """Whether torch has this product here: since 2.8, on GPUs only."""
    if device.type != "cuda":
        return False
    try:
        _mm(*torch.zeros(2, 16, 16, dtype=torch.bfloat16, device=device))
    except (RuntimeError, TypeError):
        return False
    return True
