"""The loss of every method of the catalogue that is a policy gradient of tokens, written from its source.

As catalogue_formulas.py; rewards and weights are constants.
"""

from __future__ import annotations

import math

import numpy as np
from divergences_by_hand import (
    cross_entropy,
    forward_kl,
    reverse_kl,
    sampled_score,
    score,
    surrogate,
    top,
    weighted_scores,
)


def weighted_mean(b, token):
    """The mean over the mini-batch's tokens; `token(x)` returns (weight, (value, derivative))."""
    count = sum(len(response) for response in b.samples)
    for response in b.samples:
        for x in response:
            weight, (value, derivative) = token(x)
            yield x, weight * value / count, weight * derivative / count


def reward(x):
    """log p(y)/q_old(y), as recorded."""
    return x.theirs - x.old


# --- MiniLLM
def minillm(b):
    """MiniLLM (arXiv 2306.08543), Eq. 3 to 7 and Algorithm 1, a sum over tokens and a mean over responses.

    Single: w KL(q | p).  Long: -R min(ratio, clip(ratio)), R the mean of the rewards that follow, ratio =
    q / (0.2 p + 0.8 q_old), w the same of the old student.  Plain text: its cross-entropy.
    """
    n = len(b.samples)
    for response in b.samples:
        for x in response:
            mixed = 0.2 * math.exp(x.theirs) + 0.8 * math.exp(x.old)
            weight, ratio = math.exp(x.old) / mixed, x.q[x.y] / mixed
            after = [reward(later) for later in response[x.t + 1 :]]
            advantage = sum(after) / max(1, len(after))
            value, derivative = reverse_kl(x.q, x.p)
            value, derivative = weight * value, weight * derivative
            # Of the two bounds only the upper one is ever the smaller value.
            value -= advantage * min(ratio, 1 + 0.2)
            if not b.case("clipped", ratio > 1 + 0.2):
                derivative = derivative - advantage * ratio * score(x.q, x.y)
            yield x, value / n, derivative / n
    for chunk in b.plain:
        for x in chunk:
            value, derivative = cross_entropy(x.q, x.y)
            yield x, value / len(b.plain), derivative / len(b.plain)


# --- the sampled token
def thinking_machines_opd(b):
    """Thinking Machines, On-Policy Distillation: advantage log p/q of the token, importance sampling."""
    return weighted_mean(b, lambda x: (1, surrogate(x, reward(x))))


def vopd(b):
    """vOPD (arXiv 2605.07865): A = r + KL(q | p), the negative reverse KL as the value of the position."""
    return weighted_mean(b, lambda x: (1, surrogate(x, reward(x) + x.kl)))


def vopd_top_100(b):
    """vOPD (arXiv 2605.07865): its baseline over the student's top 100, both renormalised."""

    def token(x):
        kept = top(x.q, b.k(100))
        q, p = x.q[kept] / x.q[kept].sum(), x.p[kept] / x.p[kept].sum()
        return 1, surrogate(x, reward(x) + sum(q * np.log(q / p)))

    return weighted_mean(b, token)


def reopold(b):
    """REOPOLD (arXiv 2603.11137), Eq. 4, 7, 8: reward max(r, log 0.2/0.8), clip 0.2, its mask of the phase.

    First r >= the floor, from half of the collections on the half of the tokens with the highest entropy; a
    mean over what is kept.
    """
    floor = math.log(0.2 / 0.8)
    entropies = sorted(x.h for response in b.collection for x in response)
    median = np.median(entropies)

    def keep(x):
        if b.step < 40:
            return b.case("kept", reward(x) >= floor)
        return b.case("kept", x.h >= median)

    every = [x for response in b.samples for x in response]
    kept = [x for x in every if keep(x)]
    for x in kept:
        value, derivative = surrogate(x, max(reward(x), floor), 0.2, b.case)
        yield x, value / len(kept), derivative / len(kept)


def sod(b):
    """SOD (arXiv 2605.07725), Eq. 6 and 7: min(prod (d_u + e)/(d_u+1 + e), 1.2), for blocks of 8 tokens."""
    e = 1e-6

    def token(x):
        response = next(r for r in b.samples if r[0].row == x.row)
        steps = [response[i : i + 8] for i in range(0, len(response), 8)]
        d = [sum(abs(reward(y)) for y in step) / len(step) for step in steps]
        product = 1.0
        for u in range(x.t // 8):
            product *= (d[u] + e) / (d[u + 1] + e)
        if x.t >= 8:
            b.case("a later block weighs less", product < 1)
        return min(product, 1.2), sampled_score(x.q, x.p, x.y)

    return weighted_mean(b, token)


def lightning_opd(b):
    """Lightning OPD (arXiv 2604.13010): advantage log p - log q on cached texts."""
    return weighted_mean(b, lambda x: (1, sampled_score(x.q, x.p, x.y)))


# --- a set of tokens
def rethinking_opd(b):
    """Rethinking OPD (arXiv 2604.13016), compute_distillation_reward, only_stu and student_p, top 16."""
    return weighted_mean(b, lambda x: (1, weighted_scores(x.q, x.p, top(x.q, b.k(16)))))


def rethinking_opd_overlap(b):
    """Rethinking OPD (arXiv 2604.13016), compute_distillation_reward, intersection and student_p, top 16."""

    def token(x):
        kept = top(x.q, b.k(16)) & top(x.p, b.k(16))
        return 1, weighted_scores(x.q, x.p, kept)

    return weighted_mean(b, token)


def prune_opd(b):
    """Prune-OPD (arXiv 2605.07804), apply_prune_opd_to_scores: 0.5 + max(0, 1 - 0.01 n) times the above.

    n counts, up to and with the token, where less than 0.7 of the top 16 of both are the same; of the student
    that drew.
    """

    def disagree(x):
        k = min(b.k(16), len(x.p))
        return b.case("disagree", (top(x.first, k) & top(x.p, k)).sum() / k < 0.7)

    counted = {}
    for response in b.samples:
        n = 0
        for x in response:
            n += disagree(x)
            counted[id(x)] = n
    return weighted_mean(
        b,
        lambda x: (
            0.5 + max(0, 1 - 0.01 * counted[id(x)]),
            weighted_scores(x.q, x.p, top(x.q, b.k(16))),
        ),
    )


# --- weights of tokens, and two losses
def iw_opd(b):
    """IW-OPD (arXiv 2606.22600), Algorithm 1: w = 1 + 0.5 (1 - D_<t / D_<T), D the sum of |r|."""

    def token(x):
        response = next(r for r in b.samples if r[0].row == x.row)
        drift = [abs(reward(y)) for y in response]
        whole = sum(drift[:-1])
        share = sum(drift[: x.t]) / whole if whole else 0.0
        return 1 + 0.5 * (1 - share), sampled_score(x.q, x.p, x.y)

    return weighted_mean(b, token)


def iw_opd_first_30(b):
    """IW-OPD (arXiv 2606.22600), its comparison by position: the first 30% of a response."""
    return weighted_mean(
        b, lambda x: (int(b.case("kept", x.t < math.ceil(0.3 * x.n))), sampled_score(x.q, x.p, x.y))
    )


def tip(b):
    """TIP (arXiv 2604.14084), Eq. 2 to 5: the half with the highest h + d - hd, and their mean.

    Scaled from 0 to 1 over the collection, h up to its 98th percentile.
    """
    every = [x for response in b.collection for x in response]
    cap = np.quantile([x.h for x in every], 0.98)
    least, most = min(x.h for x in every), min(cap, max(x.h for x in every))
    low, high = min(x.kl for x in every), max(x.kl for x in every)

    def or_(x):
        h, d = (min(x.h, cap) - least) / (most - least), (x.kl - low) / (high - low)
        return 1 - (1 - h) * (1 - d)

    kept = []
    for response in b.samples:
        kept += sorted(response, key=or_, reverse=True)[: math.ceil(len(response) / 2)]
    for x in kept:
        value, derivative = reverse_kl(x.q, x.p)
        yield x, value / len(kept), derivative / len(kept)


def aopd(b):
    """AOPD (arXiv 2605.06387), Eq. 10: the policy gradient where A > 0, else KL(p | q) on the top 16 of p."""

    def token(x):
        if b.case("positive", reward(x) > 0):
            return 1, sampled_score(x.q, x.p, x.y)
        return 1, forward_kl(x.q, x.p, top(x.p, b.k(16)))

    b.k(16)
    return weighted_mean(b, token)


def eopd(b):
    """EOPD (arXiv 2603.07079): the clipped policy gradient, and KL(p | q) on the top 16 where H(p) > 0.8."""
    b.k(16)

    def token(x):
        value, derivative = surrogate(x, reward(x), 0.2, b.case)
        if b.case("uncertain", x.h_teacher > 0.8):
            more = forward_kl(x.q, x.p, top(x.p, b.k(16)))
            value, derivative = value + more[0], derivative + more[1]
        return 1, (value, derivative)

    return weighted_mean(b, token)


POLICY_FORMULAS = {
    "minillm": minillm,
    "thinking-machines-opd": thinking_machines_opd,
    "vopd": vopd,
    "vopd-top-100": vopd_top_100,
    "reopold": reopold,
    "sod": sod,
    "lightning-opd": lightning_opd,
    "rethinking-opd": rethinking_opd,
    "rethinking-opd-overlap": rethinking_opd_overlap,
    "prune-opd": prune_opd,
    "iw-opd": iw_opd,
    "iw-opd-first-30": iw_opd_first_30,
    "tip": tip,
    "aopd": aopd,
    "eopd": eopd,
}
