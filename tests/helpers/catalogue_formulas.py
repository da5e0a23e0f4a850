"""The loss of every method of the catalogue that compares distributions, written from its source.

Each is a generator of (token, its value in the loss, the derivative of that by the token's logits), from a
`catalogue_case.Batch`.  FORMULAS has these and those of catalogue_policy_formulas.py by name.
"""

from __future__ import annotations

import functools
import sys

import numpy as np
from catalogue_case import METHODS, Case, differences, settings_of, wide
from catalogue_policy_formulas import POLICY_FORMULAS
from divergences_by_hand import (
    alpha_beta,
    by_logits,
    cross_entropy,
    forward_kl,
    jensen_shannon,
    reverse_kl,
    reverse_kl_inside,
    score,
    skew_forward_kl,
    skew_reverse_kl,
    top,
    total_variation,
)


def mean(responses, divergence):
    """The mean over the tokens of `divergence(token)`, a pair."""
    count = sum(len(response) for response in responses)
    for response in responses:
        for x in response:
            value, derivative = divergence(x)
            yield x, value / count, derivative / count


# --- whole divergences
def on_policy_reverse_kl(b):
    """GKD (arXiv 2306.13649), Section 3: L_OD with D = KL(student | teacher) on the student's outputs."""
    yield from mean(b.samples, lambda x: reverse_kl(x.q, x.p))


def on_policy_forward_kl(b):
    """GKD (arXiv 2306.13649), Section 3: L_OD with D = KL(teacher | student) on the student's outputs."""
    yield from mean(b.samples, lambda x: forward_kl(x.q, x.p))


def supervised_kd(b):
    """GKD (arXiv 2306.13649), Section 3: L_SD, KL(teacher | student) on the gold answers."""
    yield from mean(b.samples, lambda x: forward_kl(x.q, x.p))


def gkd(b):
    """GKD (arXiv 2306.13649), Algorithm 1 with the generalised JSD, beta 0.5."""
    yield from mean(b.samples, lambda x: jensen_shannon(x.q, x.p, 0.5))


def imitkd(b):
    """ImitKD (arXiv 2009.07253), Algorithm 1: the whole cross-entropy to the teacher, less its entropy."""

    def token(x):
        value = -(x.p * np.log(x.q)).sum() + (x.p * np.log(x.p)).sum()
        return value, x.q - x.p

    yield from mean(b.samples, token)


def distillm(b):
    """DistiLLM (arXiv 2402.03898), Section 3.1: SKL, KL(p | a p + (1 - a) q), a 0.1."""
    yield from mean(b.samples, lambda x: skew_forward_kl(x.q, x.p, 0.1))


def distillm_srkl(b):
    """DistiLLM (arXiv 2402.03898), Section 3.1: SRKL, KL(q | (1 - a) p + a q), a 0.1."""
    yield from mean(b.samples, lambda x: skew_reverse_kl(x.q, x.p, 0.1))


def f_distill_tvd(b):
    """f-DISTILL (arXiv 2307.15190), TVD distilling: half the sum of |q - p| at each step."""
    yield from mean(b.samples, lambda x: total_variation(x.q, x.p))


def abkd(b):
    """ABKD (arXiv 2505.04560), the definition of the divergence, at (0.2, 0.7)."""

    def token(x):
        value, by_q = alpha_beta(x.q, x.p, 0.2, 0.7)
        return value, by_logits(x.q, by_q)

    yield from mean(b.samples, token)


def taid(b):
    """TAID (arXiv 2501.16937), Section 3: KL(p_t | q), p_t = softmax((1 - t) sg z_q + t z_p)."""

    def token(x):
        target = x.q ** (1 - b.target) * x.p**b.target
        return forward_kl(x.q, target / target.sum())

    yield from mean(b.samples, token)


def todi(b):
    """ToDi (arXiv 2505.16297), compute_ToDi: entry by entry, s = sigmoid(log p/q) a constant."""

    def token(x):
        value, by_q = 0.0, np.zeros_like(x.q)
        for v, (q, p) in enumerate(zip(x.q, x.p, strict=True)):
            s = 1 / (1 + q / p)
            value += s * p * np.log(p / q) + (1 - s) * q * np.log(q / p)
            by_q[v] = -s * p / q + (1 - s) * (np.log(q / p) + 1)
        return value, by_logits(x.q, by_q)

    yield from mean(b.samples, token)


def amid(b):
    """AMiD (arXiv 2510.15982): D_AB(p, r) at (0.2, 0.7), r the 0-mixture (0.1 sqrt p + 0.9 sqrt q)^2 / Z."""

    def token(x):
        root = 0.1 * np.sqrt(x.p) + 0.9 * np.sqrt(x.q)
        r = root**2 / (root**2).sum()
        value, by_r = alpha_beta(r, x.p, 0.2, 0.7)
        by_root = 2 * root * (by_r - r @ by_r) / (root**2).sum()
        return value, by_logits(x.q, by_root * 0.45 / np.sqrt(x.q))

    yield from mean(b.samples, token)


# --- a set of entries, and another sampler
def revisiting_opd(b):
    """Revisiting OPD (arXiv 2603.25562): teacher top-K local support matching, K 32, both renormalised."""
    yield from mean(b.samples, lambda x: reverse_kl_inside(x.q, x.p, top(x.p, b.k(32))))


def skd(b):
    """SKD (arXiv 2410.11325), Algorithm 1: here KL(p | q), on texts that its sampler (K 25) has drawn."""
    b.k(25)
    yield from mean(b.samples, lambda x: forward_kl(x.q, x.p))


def npd(b):
    """NPD (arXiv 2605.05940): cross-entropy of the older student's text, and KL(p | q) on the top 16 of p."""

    def token(x):
        one, two = forward_kl(x.q, x.p, top(x.p, b.k(16))), cross_entropy(x.q, x.y)
        return one[0] + two[0], one[1] + two[1]

    yield from mean(b.samples, token)


# --- anchors
def stable_opd(b):
    """StableOPD (arXiv 2604.08527): KL(q | p) + CE(gold answer) + 0.1 KL(q | q_init)."""

    def token(x):
        one, two = reverse_kl(x.q, x.p), reverse_kl(x.q, x.first)
        return one[0] + 0.1 * two[0], one[1] + 0.1 * two[1]

    yield from mean(b.samples, token)
    yield from mean(b.gold, lambda x: cross_entropy(x.q, x.y))


def exopd(b):
    """G-OPD (arXiv 2602.12125): min KL(q | q_0) - 1.25 E_q[log p/q_0] at each position, lambda 1.25.

    In the package it is KL(q | r), r = p^1.25 q_0^-0.25 / Z: log Z more, a constant.
    """

    def token(x):
        rewards = 1.25 * np.log(x.p / x.first)
        value = (x.q * np.log(x.q / x.first)).sum() - x.q @ rewards
        log_z = np.log((x.p**1.25 * x.first**-0.25).sum())
        return value + log_z, by_logits(x.q, np.log(x.q / x.first) + 1 - rewards)

    yield from mean(b.samples, token)


def tgpo_half(b):
    """TGPO (arXiv 2605.13230): w CE(the teacher's next token), w from 1 to 0 by step 200; and KL(q | p)."""
    w = max(0.0, 1 - b.step / 200)

    def token(x):
        one, two = reverse_kl(x.q, x.p), cross_entropy(x.q, max(range(len(x.p)), key=lambda v: x.p[v]))
        return one[0] + w * two[0], one[1] + w * two[1]

    yield from mean(b.samples, token)


# --- who teaches: p is of the student's own weights, shown another prompt
def sdft(b):
    """SDFT (arXiv 2601.19897), Algorithm 1: KL(q(.|x) | the mean student's q(.|x, demonstration))."""
    yield from mean(b.samples, lambda x: reverse_kl(x.q, x.p))


def sdpo(b):
    """SDPO (arXiv 2601.20802): self-distillation on the student's top 100, here both renormalised."""
    yield from mean(b.samples, lambda x: reverse_kl_inside(x.q, x.p, top(x.q, b.k(100))))


def opsd(b):
    """OPSD (arXiv 2601.18734): KL(q(.|x) | the initial student's q(.|x, gold answer))."""
    yield from mean(b.samples, lambda x: reverse_kl(x.q, x.p))


# --- texts of the teacher or of the data
def distillm_2(b):
    """DistiLLM-2 (arXiv 2503.07067), kd_loss: ((2 - b) SKL(teacher's) + b SRKL(student's)) / 2, here b 1.

    Over all tokens of both, as the entry says.
    """
    count = sum(len(response) for response in b.samples + b.texts)
    for x in (x for response in b.samples for x in response):
        value, derivative = skew_reverse_kl(x.q, x.p, 0.1)
        yield x, value / count, derivative / count
    for x in (x for response in b.texts for x in response):
        value, derivative = skew_forward_kl(x.q, x.p, 0.1)
        yield x, value / count, derivative / count


def hpd(b):
    """HPD (arXiv 2604.20244), train/hpd.py, compute_hpd_loss; y' is the inverse transform of a number."""
    count = sum(len(response) for response in b.gold)
    for response in b.gold:
        for x, number in zip(response, b.draws[x_row(response)], strict=True):
            other = int(np.searchsorted(np.cumsum(x.q), number * x.q.sum(), side="right"))
            k1, k2 = (x.q[v] * np.log(x.p[v] / x.q[v]) for v in (x.y, other))
            adv1, adv2 = k1, min(k2, 0.0)
            if b.case("the teacher likes the token", k1 > 0):
                adv1 += x.p[x.y]
                if b.case("and not the drawn one", k2 < 0):
                    adv1 += x.p[x.y]
            value, derivative = -adv1 * np.log(x.q[x.y]), -adv1 * score(x.q, x.y)
            if b.case("two tokens", other != x.y):
                value, derivative = value - adv2 * np.log(x.q[other]), derivative - adv2 * score(x.q, other)
            yield x, value / count, derivative / count


def x_row(response):
    """The row of a response."""
    return response[0].row[1]


def kd(b):
    """MiniLLM (arXiv 2306.08543), its baseline of word-level KD: half CE, half KL(p | q), on gold answers."""

    def token(x):
        one, two = cross_entropy(x.q, x.y), forward_kl(x.q, x.p)
        return (one[0] + two[0]) / 2, (one[1] + two[1]) / 2

    yield from mean(b.gold, token)


def seqkd(b):
    """SeqKD (arXiv 1606.07947), Section 3.2: the teacher's text as the target."""
    yield from mean(b.texts, lambda x: cross_entropy(x.q, x.y))


FORMULAS = POLICY_FORMULAS | {
    "on-policy-reverse-kl": on_policy_reverse_kl,
    "on-policy-forward-kl": on_policy_forward_kl,
    "supervised-kd": supervised_kd,
    "gkd": gkd,
    "imitkd": imitkd,
    "distillm": distillm,
    "distillm-srkl": distillm_srkl,
    "f-distill-tvd": f_distill_tvd,
    "abkd": abkd,
    "taid": taid,
    "todi": todi,
    "amid": amid,
    "revisiting-opd": revisiting_opd,
    "skd": skd,
    "npd": npd,
    "stable-opd": stable_opd,
    "exopd": exopd,
    "tgpo-half": tgpo_half,
    "sdft": sdft,
    "sdpo": sdpo,
    "opsd": opsd,
    "distillm-2": distillm_2,
    "hpd": hpd,
    "kd": kd,
    "seqkd": seqkd,
}


@functools.cache
def compared(name, two, k):
    """(difference of the losses, largest of the gradients, largest gradient, the batch) of one case."""
    case = Case(name, two, k)
    value, gradient, batch = case.by_hand(FORMULAS[name])
    return (*differences(case.found(), (value, gradient)), batch)


def main():
    """The table: what each formula is from, and how far the package is from it."""
    print("| method | written from | loss, one prompt | gradient | loss, two prompts | gradient |")
    print("|:--|:--|--:|--:|--:|--:|")
    for name in METHODS:
        source = FORMULAS[name].__doc__.split("\n")[0]
        sizes = (0, 3) if wide(settings_of(name)) else (0,)
        cells = []
        for two in (False, True):
            found = [compared(name, two, k) for k in sizes]
            cells += [f"{max(x[i] for x in found):.0e}" for i in (0, 1)]
        print(f"| {name} | {source} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
