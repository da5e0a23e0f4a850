"""The mathematics of MiniLLM: divergences, returns and the two losses.  Only pure functions of tensors.

Shapes: logits (batch, time, vocab); log-probabilities, rewards, advantages and masks (batch, time).  A mask
is 1 on response tokens, including the EOS that ends them, in any padding layout.  p is the teacher, q the
student; student arguments come first.  Everything is computed in float32 (float64 stays float64).  Nothing is
detached, except that the losses take old log-probabilities, advantages and weights as constants, and where a
divergence is said to have constants.  Equation numbers are the paper's (docs/method.md).

With `normalised=True` a divergence takes log-probabilities instead of logits, perhaps of only some of the
tokens (token_sets.py): it is then the sum of the terms of these; -inf for both marks an entry that is absent.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Logarithm of the largest ratio: far above any that occurs, and its square, in a gradient's norm, is finite.
LARGEST = 40.0
# Stands for the logarithm of 0 where -inf would make gradients NaN.
FLOOR = -1e30


def _full(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _log_softmax(
    student_logits: Tensor, teacher_logits: Tensor, normalised: bool = False
) -> tuple[Tensor, Tensor]:
    if student_logits.shape[-1] != teacher_logits.shape[-1]:
        raise ValueError(
            f"vocabularies differ: student {student_logits.shape[-1]}, teacher {teacher_logits.shape[-1]}; "
            "truncate both to the shared range"
        )
    if normalised:
        return _full(student_logits), _full(teacher_logits)
    return _full(student_logits).log_softmax(-1), _full(teacher_logits).log_softmax(-1)


def kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """KL(a || b) of log-probabilities over the last axis; a term with a = 0 is 0, even if b is 0 too."""
    gap = (log_a - log_b).masked_fill(log_a == -torch.inf, 0.0)
    return (log_a.exp() * gap).sum(-1)


def forward_kl(student_logits: Tensor, teacher_logits: Tensor, *, normalised: bool = False) -> Tensor:
    """KL(p || q) of each token, shape (batch, time): the word-level KD baseline."""
    q, p = _log_softmax(student_logits, teacher_logits, normalised)
    return kl(p, q)


def reverse_kl(student_logits: Tensor, teacher_logits: Tensor, *, normalised: bool = False) -> Tensor:
    """KL(q || p) of each token, shape (batch, time).

    Minus the expectation of the reward r_t in Eq. 3, summed over the vocabulary.
    """
    q, p = _log_softmax(student_logits, teacher_logits, normalised)
    return kl(q, p)


def _mixture(log_a: Tensor, log_b: Tensor, share: float) -> Tensor:
    """log(share a + (1 - share) b); finite floors keep the gradient finite where a and b are both 0."""
    # Created on the device: sending a number to a GPU waits for it.
    mix = log_a.new_full((), share)
    return torch.logaddexp(mix.log() + log_a.clamp(min=FLOOR), torch.log1p(-mix) + log_b.clamp(min=FLOOR))


def jensen_shannon(
    student_logits: Tensor, teacher_logits: Tensor, beta: float = 0.5, *, normalised: bool = False
) -> Tensor:
    """beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q, of each token, shape (batch, time).

    The generalised Jensen-Shannon divergence of GKD (arXiv 2306.13649), with its convention for the ends,
    where the divergence itself is 0: forward KL at beta = 0, reverse KL at beta = 1.
    """
    q, p = _log_softmax(student_logits, teacher_logits, normalised)
    if beta == 0:
        return kl(p, q)
    if beta == 1:
        return kl(q, p)
    m = _mixture(p, q, beta)
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


def skew_forward_kl(
    student_logits: Tensor, teacher_logits: Tensor, alpha: float = 0.1, *, normalised: bool = False
) -> Tensor:
    """KL(p || alpha p + (1 - alpha) q) of each token, shape (batch, time); at most -log alpha.

    From DistiLLM (arXiv 2402.03898).
    """
    q, p = _log_softmax(student_logits, teacher_logits, normalised)
    return kl(p, _mixture(p, q, alpha))


def skew_reverse_kl(
    student_logits: Tensor, teacher_logits: Tensor, alpha: float = 0.1, *, normalised: bool = False
) -> Tensor:
    """KL(q || alpha q + (1 - alpha) p) of each token, shape (batch, time)."""
    q, p = _log_softmax(student_logits, teacher_logits, normalised)
    return kl(q, _mixture(q, p, alpha))


def total_variation(student_logits: Tensor, teacher_logits: Tensor, *, normalised: bool = False) -> Tensor:
    """Half the L1 distance between the two distributions of each token, shape (batch, time); in [0, 1]."""
    q, p = _log_softmax(student_logits, teacher_logits, normalised)
    return 0.5 * (q.exp() - p.exp()).abs().sum(-1)


def alpha_beta(
    student_logits: Tensor,
    teacher_logits: Tensor,
    alpha: float = 0.2,
    beta: float = 0.7,
    *,
    normalised: bool = False,
) -> Tensor:
    """The alpha-beta divergence of p from q of each token, shape (batch, time); alpha, beta >= 0.

    -1/(a b) sum_v [p^a q^b - a/(a+b) p^(a+b) - b/(a+b) q^(a+b)], the loss of ABKD (arXiv 2505.04560); where a
    parameter is 0, the limit (Cichocki, Cruces and Amari 2011): forward KL at (1, 0), reverse KL at (0, 1),
    half the sum of squared log-ratios at (0, 0).
    """
    q, p = _log_softmax(student_logits, teacher_logits, normalised)
    if alpha == 0 and beta == 0:
        gap = (q - p).masked_fill(q == -torch.inf, 0.0)
        return 0.5 * (gap**2).sum(-1)
    if alpha == 0 or beta == 0:
        first, second, power = (p, q, alpha) if beta == 0 else (q, p, beta)
        gap = (first - second).masked_fill(first == -torch.inf, 0.0)
        a, b = (power * first).exp(), (power * second).exp()
        return (a * power * gap - a + b).sum(-1) / power**2
    both = alpha + beta
    cross = (alpha * p + beta * q).exp()
    own = alpha * (both * p).exp() + beta * (both * q).exp()
    return (own / both - cross).sum(-1) / (alpha * beta)


def token_wise_kl(student_logits: Tensor, teacher_logits: Tensor, *, normalised: bool = False) -> Tensor:
    """sum_v [s_v p_v log(p_v/q_v) + (1 - s_v) q_v log(q_v/p_v)] of each token, shape (batch, time).

    ToDi (arXiv 2505.16297): each vocabulary entry has its own share of forward and reverse KL, s_v =
    sigmoid(log(p_v/q_v)), a constant as in its code (criterions/various_divergence.py, compute_ToDi).
    """
    q, p = _log_softmax(student_logits, teacher_logits, normalised)
    gap = (p - q).masked_fill((p == -torch.inf) & (q == -torch.inf), 0.0)
    share = torch.sigmoid(gap).detach()
    forward = p.exp() * gap.masked_fill(p == -torch.inf, 0.0)
    reverse = q.exp() * gap.masked_fill(q == -torch.inf, 0.0)
    return (share * forward - (1 - share) * reverse).sum(-1)


def squared_log_ratio(
    student_logits: Tensor, teacher_logits: Tensor, weight: str = "student", *, normalised: bool = False
) -> Tensor:
    """sum_v w_v (log q_v - log p_v)^2 / 2 of each token, shape (batch, time); the weights are constants.

    w is proportional to q ("student"), p ("teacher") or 1 ("none"), and its sum is 1.  Its gradient,
    sum_v w_v (log q_v - log p_v) grad log q_v, is that of a policy gradient whose action is each entry and
    whose reward is its log-ratio, as on-policy distillation on top-k tokens has it (arXiv 2604.13016).  By q
    and over the whole vocabulary that is the gradient of the reverse KL.  Raises ValueError for any other
    weight.
    """
    q, p = _log_softmax(student_logits, teacher_logits, normalised)
    if weight not in ("student", "teacher", "none"):
        raise ValueError(f"weight must be 'student', 'teacher' or 'none', not {weight!r}")
    by = {"student": q, "teacher": p, "none": torch.zeros_like(q)}[weight].detach()
    # 0 everywhere if no entry is present.
    weights = by.masked_fill(q == -torch.inf, -torch.inf).softmax(-1).nan_to_num(0.0)
    gap = (q - p).masked_fill(weights == 0, 0.0)
    return 0.5 * (weights * gap**2).sum(-1)


def moving_target(student_logits: Tensor, teacher_logits: Tensor, t: Tensor | float) -> Tensor:
    """log softmax((1 - t) z_q + t z_p), constant in the student, shape (batch, time, vocab).

    TAID's intermediate teacher (arXiv 2501.16937): the student at t = 0, the teacher at t = 1.
    """
    q, p = _log_softmax(student_logits.detach(), teacher_logits)
    return _renormalised((1 - t) * q.clamp(min=FLOOR) + t * p.clamp(min=FLOOR))


def extrapolated(teacher_logits: Tensor, initial_logits: Tensor, coefficient: float) -> Tensor:
    """log softmax(c z_p + (1 - c) z_0), z_0 the initial student's, shape (batch, time, vocab).

    The reverse KL to it is, up to a constant, what G-OPD (arXiv 2602.12125) maximises at each position with
    the sign changed: E_q[c log(p/q_0)] - KL(q || q_0).
    """
    p, initial = _log_softmax(teacher_logits, initial_logits)
    return _renormalised(coefficient * p.clamp(min=FLOOR) + (1 - coefficient) * initial.clamp(min=FLOOR))


def teacher_token(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """-log q(argmax p) of each token, shape (batch, time): cross-entropy to the teacher's likeliest token."""
    likeliest = teacher_logits.argmax(-1, keepdim=True)
    logits = _full(student_logits)
    return logits.logsumexp(-1) - logits.gather(-1, likeliest).squeeze(-1)


def assistant(student_logits: Tensor, teacher_logits: Tensor, alpha: float, share: float) -> Tensor:
    """Logarithm of the alpha-mixture of teacher (`share`) and student, shape (batch, time, vocab).

    r proportional to [share p^c + (1 - share) q^c]^(1/c), c = (1 - alpha)/2, and to p^share q^(1 - share) at
    alpha = 1: AMiD's assistant distribution (arXiv 2510.15982).  alpha = -1 is the mixture of the skewed
    divergences.  `share` is in (0, 1).
    """
    q, p = (x.clamp(min=FLOOR) for x in _log_softmax(student_logits, teacher_logits))
    power = (1 - alpha) / 2
    if power == 0:
        return _renormalised(share * p + (1 - share) * q)
    return _renormalised(_mixture(power * p, power * q, share) / power)


def _renormalised(logs: Tensor) -> Tensor:
    """log softmax, with -inf in place of what stems from FLOOR."""
    logs = logs.log_softmax(-1)
    return logs.masked_fill(logs < FLOOR / 1e9, -torch.inf)


def masked_mean(values: Tensor, mask: Tensor, *, denominator: Tensor | float | None = None) -> Tensor:
    """Mean over valid tokens; 0 for an empty mask.

    `denominator` is the number of valid tokens in the whole global batch if `values` are only part of it: the
    means of the parts then add up to the mean of the whole.
    """
    total = torch.where(mask.bool(), _full(values), 0.0).sum()
    if denominator is None:
        # Not in bf16, where a sum of ones stops growing at 256.
        denominator = mask.sum(dtype=total.dtype)
    if isinstance(denominator, Tensor):
        return total / denominator.to(total).clamp(min=1.0)
    return total / max(denominator, 1.0)


def token_rewards(
    student_logprobs: Tensor,
    teacher_logprobs: Tensor,
    mask: Tensor,
    *,
    scale: float = 1.0,
    clip: float | None = None,
    floor: float | None = None,
) -> Tensor:
    """r_t = (log p(y_t) - log q(y_t)) / scale, clipped to +-clip, 0 where masked (Eq. 2).

    Scale and clip are the released code's.  `floor` raises lower log-ratios to it, before the scale: with
    log(x / (1 - x)) that is REOPOLD's reward (arXiv 2603.11137, Eq. 7).
    """
    rewards = _full(teacher_logprobs) - _full(student_logprobs)
    if floor is not None:
        rewards = rewards.clamp(min=floor)
    rewards = rewards / scale
    if clip is not None:
        rewards = rewards.clamp(-clip, clip)
    return torch.where(mask.bool(), rewards, 0.0)


def returns(
    rewards: Tensor,
    mask: Tensor,
    *,
    gamma: float = 1.0,
    length_norm: bool = True,
    include_current: bool = False,
) -> Tensor:
    """R_{t+1}: the sum of the rewards of the *following* valid tokens (Eq. 3); 0 where masked.

    `length_norm` divides it by the number of these tokens (Eq. 6).  The discount `gamma` counts distances in
    valid tokens from the first summand, whose weight is 1.  `include_current` adds this token's reward as the
    first summand (R_t, as in the released code).  Eq. 6 prints T - t - 1, which is one less than its number
    of summands and 0 for the last token but one; the divisor here is the number of summands, at least 1.
    """
    rewards, valid = _full(rewards), mask.bool()
    # Discounted sum over the valid tokens after t.
    after = torch.zeros_like(rewards[:, 0])
    count = torch.zeros_like(after)
    columns = []
    for t in reversed(range(rewards.shape[1])):
        with_current = rewards[:, t] + gamma * after
        total, summands = (with_current, count + 1) if include_current else (after, count)
        if length_norm:
            total = total / summands.clamp(min=1.0)
        columns.append(torch.where(valid[:, t], total, 0.0))
        after = torch.where(valid[:, t], with_current, after)
        count = count + valid[:, t]
    return torch.stack(columns[::-1], dim=1)


def whiten(
    values: Tensor, mask: Tensor | None, *, eps: float = 1e-8, statistics: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """(values - mean) / sqrt(variance + eps) over valid tokens, with the biased variance; 0 where masked.

    `mask=None` means all positions.  `statistics` are (mean, variance) of the whole global mini-batch if
    `values` are only part of it.
    """
    valid = torch.ones_like(values, dtype=torch.bool) if mask is None else mask.bool()
    values = torch.where(valid, _full(values), 0.0)
    if statistics is None:
        mean = masked_mean(values, valid)
        statistics = mean, masked_mean((values - mean) ** 2, valid)
    mean, variance = statistics
    return torch.where(valid, (values - mean) * torch.rsqrt(variance + eps), 0.0)


def importance_weights(student_logprobs: Tensor, teacher_logprobs: Tensor, alpha: float) -> Tensor:
    """w_t = q / (alpha p + (1 - alpha) q) of each sampled token, at most 1 / (1 - alpha).

    The per-token approximation of Eq. 5.
    """
    q, p = _full(student_logprobs), _full(teacher_logprobs)
    return torch.exp(-_mixture(p - q, torch.zeros_like(q), alpha))


def sequence_weights(weights: Tensor, mask: Tensor) -> Tensor:
    """Eq. 5 without that approximation: the product of the per-token weights so far; 0 where masked."""
    logs = torch.where(mask.bool(), _full(weights), 1.0).log()
    return torch.where(mask.bool(), logs.cumsum(1).exp(), 0.0)


def policy_gradient_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    weights: Tensor | None = None,
    clip: float | None = 0.2,
    surrogate: str = "ppo",
    denominator: Tensor | float | None = None,
) -> Tensor:
    """The long term of Eq. 5 with the clipped ratio of Algorithm 1: a scalar, the masked mean over tokens.

    ratio = exp(logprobs - old_logprobs) * weights, which is q_theta / p~ if `weights` are the importance
    weights at sampling time.  surrogate "ppo" is max(-A ratio, -A clip(ratio)), "paper" is -A min(ratio,
    clip(ratio)): they differ for A < 0.  A ratio above exp(40) counts as exp(40), with no gradient.  Raises
    ValueError for any other surrogate.
    """
    # Where the ratio is not 0: masked positions may hold anything, and a weight of 0 has no logarithm.
    counted = mask.bool()
    exponent = _full(logprobs) - _full(old_logprobs).detach()
    if weights is not None:
        weights = _full(weights).detach()
        counted = counted & (weights > 0)
        # A single exponential: of two, the first can be infinite and the second 0.
        exponent = exponent + torch.where(counted, weights, 1.0).log()
    ratio = torch.where(counted, exponent, 0.0).clamp(max=LARGEST).exp() * counted
    clipped = ratio if clip is None else ratio.clamp(1.0 - clip, 1.0 + clip)
    advantages = torch.where(mask.bool(), _full(advantages).detach(), 0.0)
    if surrogate == "ppo":
        loss = torch.maximum(-advantages * ratio, -advantages * clipped)
    elif surrogate == "paper":
        loss = -advantages * torch.minimum(ratio, clipped)
    else:
        raise ValueError(f"surrogate must be 'ppo' or 'paper', not {surrogate!r}")
    return masked_mean(loss, mask, denominator=denominator)


def single_step_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    mask: Tensor | None,
    *,
    weights: Tensor | None = None,
    denominator: Tensor | float | None = None,
) -> Tensor:
    """The single-step term of Eq. 3 (with `weights`, of Eq. 5): the masked mean of the exact reverse KL.

    `mask=None` means that all tokens are valid, and saves two passes over the logits.
    """
    if mask is not None:
        # Masked before the softmax: a gradient of 0 behind the softmax of a NaN is NaN.
        absent = ~mask.bool().unsqueeze(-1)
        student_logits, teacher_logits = (
            x.masked_fill(absent, 0.0) for x in (student_logits, teacher_logits)
        )
    values = reverse_kl(student_logits, teacher_logits)
    valid = torch.ones_like(values) if mask is None else mask
    if weights is not None:
        values = values * torch.where(valid.bool(), weights.detach(), 0.0)
    return masked_mean(values, valid, denominator=denominator)
