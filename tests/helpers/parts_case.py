"""A small batch, and divergences of a token on sets with their gradients by the student's logits, by hand.

Numpy on probabilities: derivatives by log q are written out, then turned into those by the logits.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from onpolicy_case import VOCABULARY, pair, rollouts, settings


def chosen(objective, alpha=0.0, **more):
    return settings("default", objective=objective, alpha=alpha, lm_coef=0.0, **more)


@functools.cache
def drawn(alpha):
    student, teacher = pair()
    return student, teacher, rollouts(student, teacher, settings("default", alpha=alpha))


def batch(settings_):
    """(student, teacher, rollouts); samples depend only on alpha."""
    return drawn(settings_.alpha)


def expected(student, teacher, made, settings_, token):
    """(loss, gradient by parameter): `token` has a token's value and gradient by the logits, by hand."""
    student.zero_grad()
    count, total = sum(map(len, made.responses)), 0.0
    for row, (prompt, response) in enumerate(zip(made.prompts, made.responses, strict=True)):
        ids = torch.tensor([[*prompt.tolist(), *response.tolist()]])
        logits = student(ids).logits[0, len(prompt) - 1 : -1, :VOCABULARY]
        with torch.no_grad():
            theirs = teacher(ids).logits[0, len(prompt) - 1 : -1, :VOCABULARY]
        pairs = [
            token(z_q, z_p, int(y), (row, t))
            for t, (z_q, z_p, y) in enumerate(
                zip(logits.detach().numpy(), theirs.numpy(), response, strict=True)
            )
        ]
        total += sum(value for value, _ in pairs) / count
        logits.backward(torch.from_numpy(np.stack([derivative for _, derivative in pairs])) / count)
    return total, {n: p.grad.clone() for n, p in student.named_parameters() if p.grad is not None}


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def terms(name, q, p, alpha=0.2, beta=0.7, weight="student"):
    """(sum over the entries, its derivative by each log q)."""
    ratio = np.log(q / p)
    if name == "forward_kl":
        return -(p * ratio).sum(), -p
    if name in ("reverse_kl", "minillm"):
        return (q * ratio).sum(), q * (ratio + 1)
    if name == "alpha_beta":
        both = alpha + beta
        value = -(p**alpha * q**beta - alpha / both * p**both - beta / both * q**both) / (alpha * beta)
        return value.sum(), (q**both - p**alpha * q**beta) / alpha
    if name == "token_wise_kl":
        # p / (p + q) is the sigmoid of log p/q.
        s = p / (p + q)
        return (-s * p * ratio + (1 - s) * q * ratio).sum(), -s * p + (1 - s) * q * (ratio + 1)
    if name == "squared_log_ratio":
        w = {"student": q, "teacher": p, "none": np.ones_like(q)}[weight]
        w = w / w.sum()
        return 0.5 * (w * ratio**2).sum(), w * ratio
    raise KeyError(name)


def entries(tokens, k, q, p, sampled):
    """The set, sorted."""
    of_q, of_p = (set(np.argsort(-x, kind="stable")[:k].tolist()) for x in (q, p))
    sets = {
        "all": set(range(len(q))),
        "student_topk": of_q,
        "teacher_topk": of_p,
        "union": of_q | of_p,
        "intersection": of_q & of_p,
        "sampled": {sampled},
    }
    return sorted(sets[tokens])


def by_hand(name, z_q, z_p, sampled, tokens="all", k=0, renormalise=False, target=None, **more):
    """(value, gradient by the student's logits) of one token, from two vectors of logits."""
    q, p = softmax(z_q), softmax(z_p)
    if target is not None:
        p = softmax((1 - target) * z_q + target * z_p)
    chosen, gradient = entries(tokens, k, q, p, sampled), np.zeros_like(q)
    if not chosen:
        return 0.0, gradient
    if renormalise:
        inside, other = q[chosen] / q[chosen].sum(), p[chosen] / p[chosen].sum()
        value, derivative = terms(name, inside, other, **more)
        gradient[chosen] = derivative - inside * derivative.sum()
        return value, gradient
    value, derivative = terms(name, q[chosen], p[chosen], **more)
    gradient[chosen] = derivative
    return value, gradient - q * derivative.sum()


def with_assistant(z_q, z_p, replaces, alpha, share):
    """(KL, gradient by the student's logits) of AMiD: KL(p || r) or KL(q || r), r by powers and a sum."""
    q, p = softmax(z_q), softmax(z_p)
    if alpha == 1:
        raw, derivative = p**share * q ** (1 - share), np.full_like(q, 1 - share)
    else:
        c = (1 - alpha) / 2
        mean = share * p**c + (1 - share) * q**c
        # The derivative of log r by log q, before normalising: w of the paper's Prop. 3.5.
        raw, derivative = mean ** (1 / c), (1 - share) * q**c / mean
    r = raw / raw.sum()
    if replaces == "student":
        value, by_r, by_q = (p * np.log(p / r)).sum(), -p, np.zeros_like(q)
    else:
        value, by_r, by_q = (q * np.log(q / r)).sum(), -q, q * (np.log(q / r) + 1)
    by_q = by_q + derivative * (by_r - r * by_r.sum())
    return value, by_q - q * by_q.sum()
