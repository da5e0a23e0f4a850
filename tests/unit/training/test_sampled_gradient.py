"""Policy gradients of the sampled token, with baselines, floors, masks and further terms, by hand.

Loops over lists and numpy on probabilities: the published losses written out from their sources.
"""

import dataclasses
import math

import numpy as np
import pytest
import torch
from onpolicy_case import COUNT, EOS, WHOLE, OneProcess, gradient, pair, rollouts, settings, task
from parts_case import by_hand, drawn, entries, expected, softmax
from torch.testing import assert_close

from minillm.config.launch import Launch
from minillm.config.objective_parts import Signal, Term, TokenWeights
from minillm.config.onpolicy import check_on_policy
from minillm.errors import UserError
from minillm.training.divergences import top_k_baseline
from minillm.training.rollout_losses import micro_batches
from minillm.training.token_weights import token_weights

# Thinking Machines' on-policy distillation: the token's own log-ratio, nothing that follows.
SAMPLED = {
    "alpha": 0.0,
    "single_step": False,
    "include_current": True,
    "gamma": 0.0,
    "length_norm": False,
    "whiten": "none",
    "clip": 0.0,
    "lm_coef": 0.0,
}
FLOOR = math.log(0.2 / 0.8)
TOP = Term(
    "forward_kl", signal=Signal("teacher_topk", 4), token_weights=TokenWeights(teacher_entropy_above=2)
)
METHODS = {
    "opd": {},
    "opd with a clip": {"clip": 0.2},
    "vopd": {"advantage": "centred", "include_current": False},
    "vopd on the top 3": {"advantage": "centred", "include_current": False, "baseline_top_k": 3},
    "vopd on all, in the loss": {"advantage": "centred", "include_current": False, "baseline_top_k": 99},
    "scaled": {"advantage": "centred", "baseline_top_k": 3, "reward_scale": 0.5},
    "with weights": {
        "advantage": "centred",
        "baseline_top_k": 3,
        "token_weights": TokenWeights(discount=0.7),
    },
    "floor": {"reward_floor": 0.45},
    "reopold, first phase": {
        "clip": 0.2,
        "reward_floor": 0.45,
        "token_weights": TokenWeights(log_ratio_at_least=math.log(0.45 / 0.55), normalise=True),
    },
    "reopold, second phase": {
        "clip": 0.2,
        "reward_floor": 0.45,
        "token_weights": TokenWeights(most_uncertain=0.5, normalise=True),
    },
    "eopd": {"clip": 0.2, "also": (TOP,)},
    "npd": {
        "also": (Term("cross_entropy", coefficient=0.5), Term("forward_kl", signal=Signal("teacher_topk", 4)))
    },
}


def chosen(**more):
    return settings("default", **SAMPLED | more)


def samples():
    student, teacher, made = drawn(0.0)
    values = torch.rand(made.mask.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return student, teacher, dataclasses.replace(made, teacher_entropy=(1.5 + values) * made.mask)


def baseline(q, p, k):
    """sum over the student's k likeliest of q' log(q'/p'), both renormalised there."""
    kept = entries("student_topk", k, q, p, None)
    q, p = q[kept] / q[kept].sum(), p[kept] / p[kept].sum()
    return float((q * np.log(q / p)).sum())


def weights_by_hand(made, s):
    """Weights of the objective's tokens, by place."""
    w, every = s.token_weights, {}
    rows = [(i, t) for i, response in enumerate(made.responses) for t in range(len(response))]
    entropies = sorted(made.entropy[place].item() for place in rows)
    for i, t in rows:
        weight = 1.0
        if w is not None:
            weight *= w.discount**t
            if w.log_ratio_at_least is not None:
                ratio = (made.teacher_logprobs - made.student_logprobs)[i, t].item()
                weight *= ratio >= w.log_ratio_at_least
            if w.most_uncertain is not None:
                weight *= made.entropy[i, t].item() >= np.quantile(entropies, 1 - w.most_uncertain)
        every[i, t] = weight
    if w is not None and w.normalise:
        mean = sum(every.values()) / len(every)
        every = {place: weight / mean for place, weight in every.items()}
    return every


def token_of(made, s):
    """The loss of a token and its derivative by the logits, by place."""
    weights = weights_by_hand(made, s)

    def token(z_q, z_p, y, place):
        q, p = softmax(z_q), softmax(z_p)
        old, theirs = made.student_logprobs[place].item(), made.teacher_logprobs[place].item()
        reward = theirs - old
        if s.reward_floor is not None:
            reward = max(reward, math.log(s.reward_floor / (1 - s.reward_floor)))
        if s.advantage == "centred":
            reward += (
                made.reverse_kl[place].item()
                if s.baseline_top_k is None
                else baseline(q, p, s.baseline_top_k)
            )
        advantage = reward / s.reward_scale * weights[place]
        ratio = q[y] / math.exp(old)
        clipped = min(max(ratio, 1 - s.clip), 1 + s.clip) if s.clip else ratio
        value = -min(advantage * ratio, advantage * clipped)
        derivative = np.zeros_like(q)
        if advantage * ratio <= advantage * clipped:
            derivative = -advantage * ratio * (np.eye(len(q))[y] - q)
        for term in s.also or ():
            more = by_hand_term(term, z_q, z_p, y, made.teacher_entropy[place].item())
            value, derivative = value + more[0], derivative + more[1]
        return value, derivative

    return token


def by_hand_term(term, z_q, z_p, y, entropy):
    if term.token_weights is not None and entropy <= term.token_weights.teacher_entropy_above:
        return 0.0, 0.0
    if term.objective == "cross_entropy":
        q = softmax(z_q)
        return -term.coefficient * math.log(q[y]), term.coefficient * (q - np.eye(len(q))[y])
    return by_hand(term.objective, z_q, z_p, y, term.signal.tokens, term.signal.top_k)


@pytest.mark.parametrize("name", METHODS)
def test_the_loss_and_its_gradient(name):
    """However the batch is split."""
    s = chosen(**METHODS[name])
    check_on_policy(s, "config", "variants.x.settings")
    student, teacher, made = samples()
    lengths = {len(response) for response in made.responses}
    assert len(lengths) > 2 and min(lengths) < s.max_tokens, "padding, and responses that end early"
    ratios = (made.teacher_logprobs - made.student_logprobs)[made.mask.bool()]
    if s.reward_floor is not None:
        assert 0.1 < (ratios < math.log(s.reward_floor / (1 - s.reward_floor))).double().mean() < 0.9
    value, derivatives = expected(student, teacher, made, s, token_of(made, s))
    assert max(derivative.abs().max() for derivative in derivatives.values()) > 1e-6
    for launch in (Launch(micro_batch=3), Launch(micro_batch=1)):
        found = gradient(student, made, task(teacher, s), launch)
        assert found[0] == pytest.approx(value, abs=1e-8)
        for parameter, derivative in derivatives.items():
            assert_close(found[1][parameter], derivative, atol=1e-8, rtol=1e-8)


def test_the_baseline_on_all_entries_is_the_recorded_one():
    """At the student that drew the samples."""
    student, teacher = pair()
    made = rollouts(student, teacher, chosen())
    for name in ("vopd", "vopd on all, in the loss"):
        assert chosen(**METHODS[name]).teacher_scores == (name != "vopd")
    first, second = (
        gradient(student, made, task(teacher, chosen(**METHODS[name])))
        for name in ("vopd", "vopd on all, in the loss")
    )
    assert first[0] == pytest.approx(second[0], abs=1e-6)
    for name, values in first[1].items():
        assert_close(second[1][name], values, atol=1e-6, rtol=1e-5)


def test_the_baseline_is_a_constant():
    z_q, z_p = torch.randn(2, 6, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = top_k_baseline(chosen(**METHODS["vopd on the top 3"]), z_q.requires_grad_(), z_p)
    right = [
        baseline(softmax(a), softmax(b), 3) for a, b in zip(z_q.detach().numpy(), z_p.numpy(), strict=True)
    ]
    assert not found.requires_grad and found.tolist() == pytest.approx(right, abs=1e-12)


def test_a_teacher_that_is_the_student():
    """Reward and baseline are 0."""
    student, _, made = samples()
    made = dataclasses.replace(made, teacher_logprobs=made.student_logprobs)
    loss, found = gradient(student, made, task(student, chosen(**METHODS["vopd on the top 3"])))
    assert abs(loss) < 1e-12 and max(x.abs().max() for x in found.values()) < 1e-12


def weigh(made, progress=0.0, **keys):
    return token_weights(made, TokenWeights(**keys), eos=EOS, special=frozenset(), progress=progress)


def test_the_mask_of_reopold_switches():
    _, _, made = samples()
    keys = {"log_ratio_at_least": FLOOR / 4, "most_uncertain": 0.3}
    both, first, second = weigh(made, **keys), *(weigh(made, **{k: v}) for k, v in keys.items())
    assert torch.equal(both, first * second)
    for progress, right in ((0.0, first), (0.49, first), (0.5, second), (0.99, second)):
        assert torch.equal(weigh(made, progress, **keys, switch=0.5), right), progress
    assert not torch.equal(first, second)


def test_a_run_switches_after_its_share_of_collections():
    s = settings("default", **SAMPLED, collections=4, inner_epochs=3, token_weights=TokenWeights(
        log_ratio_at_least=FLOOR / 4, most_uncertain=0.3, switch=0.5))  # fmt: skip
    student, teacher, made = samples()
    factors = []
    for step in range(12):
        engine = OneProcess(student, WHOLE, step=step)
        _, loss = micro_batches(engine, task(teacher, s), made, list(range(COUNT)))
        factors.append(loss.func.__self__.factors[0])
    assert s.steps == 12
    assert all(torch.equal(x, weigh(made, log_ratio_at_least=FLOOR / 4)) for x in factors[:6])
    assert all(torch.equal(x, weigh(made, most_uncertain=0.3)) for x in factors[6:])


@pytest.mark.parametrize("block", [1, 2, 5, 100])
def test_blocks_that_have_drifted_weigh_less(block):
    _, _, made = samples()
    found = weigh(made, drift=0.2, drift_block=block)
    below = 0
    for i, response in enumerate(made.responses):
        gaps = [
            abs(made.teacher_logprobs[i, t].item() - made.student_logprobs[i, t].item())
            for t in range(len(response))
        ]
        steps = [gaps[t : t + block] for t in range(0, len(gaps), block)]
        d = [sum(step) / len(step) for step in steps]
        product, right = 1.0, []
        for k, step in enumerate(steps):
            if k:
                product *= (d[k - 1] + 1e-6) / (d[k] + 1e-6)
            right += [min(product, 1.2)] * len(step)
        assert found[i, : len(response)].tolist() == pytest.approx(right, rel=1e-9)
        assert (found[i, len(response) :] == 0).all()
        below += sum(weight < 1 for weight in right)
    assert (below > 0) == (block < 100)


def test_the_mean_over_responses_of_means_over_tokens():
    s = settings("default", objective="reverse_kl", alpha=0.0, lm_coef=0.0, normaliser="sequences",
                 token_weights=TokenWeights(per_response=True))  # fmt: skip
    student, teacher, made = samples()
    tokens = sum(map(len, made.responses))

    def token(z_q, z_p, y, place):
        value, derivative = by_hand("reverse_kl", z_q, z_p, y)
        scale = tokens / len(made.responses) / len(made.responses[place[0]])
        return value * scale, derivative * scale

    value, derivatives = expected(student, teacher, made, s, token)
    loss, found = gradient(student, made, task(teacher, s), Launch(micro_batch=3))
    assert loss == pytest.approx(value, abs=1e-8)
    for name, derivative in derivatives.items():
        assert_close(found[name], derivative, atol=1e-8, rtol=1e-8)


REFUSED = {
    "baseline_top_k: only advantage 'centred'": {"baseline_top_k": 3},
    "baseline_top_k: a single entry": METHODS["vopd"] | {"baseline_top_k": 1},
    "baseline_top_k: it is made with the loss": METHODS["vopd"] | {"baseline_top_k": 3, "whiten": "tokens"},
    "baseline_top_k: it is that of a sum": METHODS["vopd"] | {"baseline_top_k": 3, "length_norm": True},
    "reward_floor: 'expected' takes": {
        "reward_floor": 0.2, "advantage": "expected", "include_current": False
    },
    "reward_floor: only objective 'minillm'": {"reward_floor": 0.2, "objective": "reverse_kl"},
    "objective: 'cross_entropy' is a term": {"objective": "cross_entropy"},
    "also.0.signal: 'cross_entropy' is of": {
        "also": (Term("cross_entropy", signal=Signal("teacher_topk", 3)),)
    },
    "token_weights.switch: it is from": {"token_weights": TokenWeights(switch=0.5, most_uncertain=0.5)},
    "token_weights.drift: needs drift_block": {"token_weights": TokenWeights(drift=0.2)},
    "token_weights.per_response: the loss is": {"token_weights": TokenWeights(per_response=True)},
    "token_weights: log-ratios, reverse KL": {
        "objective": "reverse_kl", "student_share": 0.5, "token_weights": TokenWeights(most_uncertain=0.5)
    },
}  # fmt: skip


@pytest.mark.parametrize("text", REFUSED)
def test_what_means_nothing_is_refused(text):
    with pytest.raises(UserError) as error:
        check_on_policy(chosen(**REFUSED[text]), "config", "stages.minillm")
    assert str(error.value).startswith(f"config: stages.minillm.{text}") and "\n" not in str(error.value)
