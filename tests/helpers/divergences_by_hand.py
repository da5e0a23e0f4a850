"""Divergences of two vectors of probabilities, and their derivatives by the logits of the first: numpy only.

Each returns (value, derivative by the logits z of q = softmax(z)).  Derivatives by q are the textbooks'.
"""

from __future__ import annotations

import numpy as np


def by_logits(q, by_q):
    """sum_v dD/dq_v dq_v/dz: q (g - <q, g>)."""
    return q * (by_q - q @ by_q)


def score(q, y):
    """The derivative of log q(y)."""
    e = -q.copy()
    e[y] += 1
    return e


def top(x, k):
    """The k largest entries, as a mask."""
    kept = np.zeros(len(x), dtype=bool)
    kept[sorted(range(len(x)), key=lambda v: -x[v])[:k]] = True
    return kept


def entropy(p):
    return -sum(x * np.log(x) for x in p)


def reverse_kl(q, p):
    """KL(q | p)."""
    return (q * np.log(q / p)).sum(), by_logits(q, np.log(q / p) + 1)


def forward_kl(q, p, kept=None):
    """KL(p | q), or its terms of the entries `kept`."""
    kept = np.ones(len(q), dtype=bool) if kept is None else kept
    return (p * np.log(p / q))[kept].sum(), by_logits(q, np.where(kept, -p / q, 0.0))


def cross_entropy(q, y):
    return -np.log(q[y]), -score(q, y)


def jensen_shannon(q, p, beta):
    """beta KL(p | m) + (1 - beta) KL(q | m), m = beta p + (1 - beta) q."""
    m = beta * p + (1 - beta) * q
    value = beta * (p * np.log(p / m)).sum() + (1 - beta) * (q * np.log(q / m)).sum()
    return value, by_logits(q, (1 - beta) * np.log(q / m))


def skew_forward_kl(q, p, alpha):
    """KL(p | alpha p + (1 - alpha) q)."""
    m = alpha * p + (1 - alpha) * q
    return (p * np.log(p / m)).sum(), by_logits(q, -(1 - alpha) * p / m)


def skew_reverse_kl(q, p, alpha):
    """KL(q | alpha q + (1 - alpha) p)."""
    m = alpha * q + (1 - alpha) * p
    return (q * np.log(q / m)).sum(), by_logits(q, np.log(q / m) + 1 - alpha * q / m)


def total_variation(q, p):
    return np.abs(q - p).sum() / 2, by_logits(q, np.where(q > p, 0.5, -0.5))


def alpha_beta(q, p, a, b):
    """(value, derivative by q) of ABKD's divergence."""
    terms = p**a * q**b - a / (a + b) * p ** (a + b) - b / (a + b) * q ** (a + b)
    return -terms.sum() / (a * b), (q ** (a + b - 1) - p**a * q ** (b - 1)) / a


def reverse_kl_inside(q, p, kept):
    """KL(q_S | p_S) of the two distributions given that the entry is in S."""
    a, b = (np.where(kept, x, 0.0) / x[kept].sum() for x in (q, p))
    ratio = np.log(np.where(kept, a, 1.0) / np.where(kept, b, 1.0))
    value = (a * ratio).sum()
    # log a is log q minus a constant of S, so its logits are those of q in S.
    return value, a * (ratio - value)


def weighted_scores(q, p, kept):
    """The policy gradient sum_S w sg(log q/p) grad log q, w = q/q(S), of the value sum_S w (log q/p)^2 / 2.

    The published losses have only the gradient: the reward is a constant.
    """
    if not kept.any():
        return 0.0, np.zeros_like(q)
    value, derivative = 0.0, np.zeros_like(q)
    for v in np.flatnonzero(kept):
        w, ratio = q[v] / q[kept].sum(), np.log(q[v] / p[v])
        value += w * ratio**2 / 2
        derivative += w * ratio * score(q, v)
    return value, derivative


def sampled_score(q, p, y):
    """The policy gradient -sg(r) grad log q(y) with r = log p(y)/q(y), of the value r^2 / 2."""
    r = np.log(p[y] / q[y])
    return r**2 / 2, -r * score(q, y)


def surrogate(token, advantage, clip=None, case=None):
    """PPO's -min(A ratio, A clip(ratio)), ratio = q(y)/q_old(y); without `clip` -A ratio."""
    ratio = token.q[token.y] / np.exp(token.old)
    derivative = -advantage * ratio * score(token.q, token.y)
    if clip is None:
        return -advantage * ratio, derivative
    clipped = min(max(ratio, 1 - clip), 1 + clip)
    if case("clipped", advantage * clipped < advantage * ratio):
        return -advantage * clipped, 0.0 * derivative
    return -advantage * ratio, derivative
