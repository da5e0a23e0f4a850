"""Anchors of the on-policy loss: gold answers, extrapolation from the initial student, the teacher's token.

Loss and gradient of a mini-batch by hand, with prompts and responses of different lengths that end early.
"""

import dataclasses

import numpy as np
import pytest
import torch
from onpolicy_case import COUNT, EOS, OneProcess, Prompts, gradient, settings, task
from parts_case import batch, by_hand, chosen, softmax
from teaching_case import GOLD, ByHand, cross_entropy, differ, numbers
from tiny_models import make
from torch.testing import assert_close

from minillm import objectives
from minillm.config.launch import Launch
from minillm.config.objective_parts import Signal, Taid, Term, TokenWeights
from minillm.config.onpolicy import OnPolicy, check_on_policy
from minillm.config.strict import parse
from minillm.config.teaching import Gold
from minillm.errors import UserError
from minillm.training.rollout_losses import micro_batches, shares
from minillm.training.rollouts import Memory, collect_rollouts

SAMPLED = Signal(tokens="sampled")


def first_student():
    return make("llama", 3).double()


def of(settings_, **changes):
    """(student, teacher, rollouts with gold answers, task with an initial student)."""
    student, teacher, made = batch(settings_)
    lengths = {len(r) for r in made.responses}
    assert len(lengths) > 2 and min(lengths) < settings_.max_tokens, "padding, and responses that end early"
    work = dataclasses.replace(task(teacher, settings_), anchor=first_student())
    return student, teacher, dataclasses.replace(made, gold=GOLD, **changes), work


# --- gold answers
@pytest.mark.parametrize("normaliser", ["tokens", "sequences"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_gold_answers_are_learned_next_to_samples(normaliser, temperature):
    """StableOPD: reverse KL on samples, cross-entropy on gold answers, reverse KL to the initial student."""
    made = chosen(
        "reverse_kl", normaliser=normaliser, temperature=temperature, gold=Gold(coefficient=0.4), init_kl=0.2
    )
    student, teacher, samples, work = of(made)
    hand = ByHand(student)
    tokens, golds = (sum(map(len, x)) for x in (samples.responses, GOLD))
    by_tokens = normaliser == "tokens"
    for prompt, response, gold in zip(samples.prompts, samples.responses, GOLD, strict=True):
        z_p, z_0 = (numbers(model, prompt, response) / temperature for model in (teacher, work.anchor))

        def kls(z, t, z_p=z_p, z_0=z_0):
            # The temperature divides the derivative too.
            one, two = (by_hand("reverse_kl", z / temperature, other[t], 0) for other in (z_p, z_0))
            return one[0] + 0.2 * two[0], (one[1] + 0.2 * two[1]) / temperature

        hand.add(prompt, response, kls, 1 / (tokens if by_tokens else COUNT))
        hand.add(
            prompt,
            gold,
            lambda z, t, gold=gold: cross_entropy(z, gold[t]),
            0.4 / (golds if by_tokens else COUNT),
        )
    for launch in (Launch(micro_batch=3 * COUNT), Launch(micro_batch=3), Launch(micro_tokens=40)):
        hand.check(gradient(student, samples, work, launch))


def test_gold_answers_stand_next_to_minillm_and_plain_text():
    """What they add is the same, whatever else is in the loss; padding of either kind changes nothing."""
    without = settings("paper", lm_kd_ratio=0.5)
    student, teacher, samples, _ = of(without)
    added = []
    for base in (without, chosen("forward_kl")):
        with_gold = dataclasses.replace(base, gold=Gold(coefficient=0.5), normaliser="tokens")
        base = dataclasses.replace(base, normaliser="tokens")
        for pad, launch in ((EOS, Launch(micro_batch=3)), (7, Launch(micro_batch=40))):
            a, b = (gradient(student, samples, task(teacher, s, pad), launch) for s in (base, with_gold))
            added.append((b[0] - a[0], {name: b[1][name] - a[1][name] for name in a[1]}))
    for value, found in added[1:]:
        assert value == pytest.approx(added[0][0], abs=1e-9) and value > 0.1
        # The layers below compute norms in float32, in which gradients do not add up.
        for name in ("model.norm.weight", "lm_head.weight"):
            assert_close(found[name], added[0][1][name], atol=1e-8, rtol=1e-8)


def test_a_collection_has_the_gold_answers_of_its_rows():
    student, teacher, *_ = of(chosen("reverse_kl"))
    for base, there in ((chosen("reverse_kl", gold=Gold()), True), (chosen("reverse_kl"), False)):
        engine = OneProcess(student, Launch())
        engine.model = student
        work = task(teacher, base)
        made = collect_rollouts(engine, teacher, Prompts(), work.dev, base, Memory(1.0), 0, 3)
        assert (made.gold is not None) == there
        for id_, gold in zip(made.ids, made.gold or [], strict=False):
            assert gold.tolist() == Prompts().response(id_ - 100).tolist()


def test_logged_terms_sum_to_the_loss():
    made = chosen("reverse_kl", gold=Gold(coefficient=2.0))
    student, _, samples, work = of(made)
    parts, loss = micro_batches(OneProcess(student, Launch(micro_batch=5)), work, samples, list(range(COUNT)))
    sums = [loss(part) for part in parts]
    gold = sum(terms["gold"] for _, terms in sums if "gold" in terms)
    kl = sum(terms["reverse_kl"] for _, terms in sums if "reverse_kl" in terms)
    assert sum(value for value, _ in sums).item() == pytest.approx((gold + kl).item(), abs=1e-9)


# --- extrapolation
def target(z_p, z_0, coefficient):
    """p^c p_0^(1 - c), normalised, as a power of probabilities."""
    raw = softmax(z_p) ** coefficient * softmax(z_0) ** (1 - coefficient)
    return raw / raw.sum()


@pytest.mark.parametrize("coefficient", [0.5, 1.25, 2.0])
@pytest.mark.parametrize("name", ["reverse_kl", "forward_kl", "alpha_beta", "squared_log_ratio"])
def test_the_target_is_extrapolated(name, coefficient):
    made = chosen(name, extrapolate=coefficient)
    student, teacher, samples, work = of(made)
    hand, count = ByHand(student), sum(map(len, samples.responses))
    for prompt, response in zip(samples.prompts, samples.responses, strict=True):
        z_p, z_0 = (numbers(model, prompt, response) for model in (teacher, work.anchor))
        hand.add(
            prompt,
            response,
            lambda z, t, z_p=z_p, z_0=z_0: by_hand(name, z, np.log(target(z_p[t], z_0[t], coefficient)), 0),
            1 / count,
        )
    hand.check(gradient(student, samples, work, Launch(micro_batch=3)))


@pytest.mark.parametrize("coefficient", [0.5, 1.25])
def test_the_gradient_is_that_of_the_published_objective(coefficient):
    """E_q[c log(p/q_0) - KL(q || q_0)] by finite differences of the logits, with the sign changed."""
    rng = np.random.default_rng(0)
    z, z_p, z_0 = rng.normal(size=(3, 7))

    def published(z):
        q, p, q_0 = softmax(z), softmax(z_p), softmax(z_0)
        return (q * coefficient * np.log(p / q_0)).sum() - (q * np.log(q / q_0)).sum()

    step = 1e-6
    derivatives = [(published(z + step * e) - published(z - step * e)) / (2 * step) for e in np.eye(7)]
    logits = torch.from_numpy(z)[None].requires_grad_()
    aim = objectives.extrapolated(torch.from_numpy(z_p)[None], torch.from_numpy(z_0)[None], coefficient)
    objectives.reverse_kl(logits, aim).sum().backward()
    assert logits.grad[0].numpy() == pytest.approx(-np.array(derivatives), abs=1e-8)


@pytest.mark.parametrize("coefficient", [0.5, 1.25])
def test_the_sampled_token_has_the_constant_of_the_target_as_baseline(coefficient):
    """Its advantage is the published one minus log Z of its position, which no expectation sees."""
    made = chosen("squared_log_ratio", extrapolate=coefficient, signal=SAMPLED)
    student, teacher, samples, work = of(made)
    hand, count = ByHand(student), sum(map(len, samples.responses))
    for prompt, response in zip(samples.prompts, samples.responses, strict=True):
        z_p, z_0 = (numbers(model, prompt, response) for model in (teacher, work.anchor))

        def token(z, t, z_p=z_p, z_0=z_0, response=response):
            q, p, q_0, y = softmax(z), softmax(z_p[t]), softmax(z_0[t]), response[t]
            log_z = np.log((p**coefficient * q_0 ** (1 - coefficient)).sum())
            advantage = coefficient * np.log(p / q_0) - np.log(q / q_0) - log_z
            # The mean of the gradient is the same without the constant.
            score = np.eye(len(q)) - q
            with_it, without = ((q * a) @ score for a in (advantage, advantage + log_z))
            assert np.abs(with_it - without).max() < 1e-12 and abs(log_z) > 1e-3
            return 0.5 * advantage[y] ** 2, -advantage[y] * score[y]

        hand.add(prompt, response, token, 1 / count)
    hand.check(gradient(student, samples, work, Launch(micro_batch=3)))


def test_extrapolation_with_other_parts():
    """A set of the target's entries, TAID's moving target towards it, and a guard of its own."""
    base = chosen("reverse_kl", extrapolate=1.5)
    student, teacher, samples, work = of(base)
    count = sum(map(len, samples.responses))

    def token(more, t_target=None):
        def at_tokens(z, t, z_p, z_0):
            return by_hand("reverse_kl", z, np.log(target(z_p[t], z_0[t], 1.5)), 0, target=t_target, **more)

        return at_tokens

    signal = Signal(tokens="teacher_topk", top_k=3)
    for changes, by, t in (
        ({"signal": signal}, token({"tokens": "teacher_topk", "k": 3}), None),
        ({"taid": Taid()}, token({}, 0.4), 0.4),
    ):
        hand = ByHand(student)
        for prompt, response in zip(samples.prompts, samples.responses, strict=True):
            z_p, z_0 = (numbers(model, prompt, response) for model in (teacher, work.anchor))
            hand.add(prompt, response, lambda z, k, a=z_p, b=z_0, by=by: by(z, k, a, b), 1 / count)
        changed = dataclasses.replace(work, settings=dataclasses.replace(base, **changes))
        hand.check(gradient(student, samples, changed, Launch(micro_batch=3), target=t))


def test_without_extrapolation_the_initial_student_is_only_read_for_the_guard():
    """A coefficient near 1 is the teacher; a guard of 0 adds nothing."""
    student, teacher, samples, work = of(chosen("reverse_kl", extrapolate=1.0 + 1e-9))
    plain = gradient(student, samples, task(teacher, chosen("reverse_kl")))
    found = gradient(student, samples, work)
    assert found[0] == pytest.approx(plain[0], abs=1e-7) and differ(found[1], plain[1]) < 1e-7
    parts, loss = micro_batches(OneProcess(student, Launch(micro_batch=99)), work, samples, [0, 1])
    assert "init_kl" not in loss(parts[0])[1]


# --- the teacher's next token
@pytest.mark.parametrize("step", [0, 3, 10, 11])
def test_the_teachers_token_fades(step):
    made = chosen(
        "reverse_kl",
        also=(
            Term("teacher_token", coefficient=0.3, until=10),
            Term("forward_kl", coefficient=0.5),
            Term("teacher_token", token_weights=TokenWeights(first=0.5)),
        ),
    )
    student, teacher, samples, work = of(made)
    hand, count = ByHand(student), sum(map(len, samples.responses))
    left = max(0.0, 1 - step / 10)
    assert shares(made, step) == [left, 1.0, 1.0]
    for prompt, response in zip(samples.prompts, samples.responses, strict=True):
        z_p = numbers(teacher, prompt, response)

        def token(z, t, z_p=z_p, response=response):
            likeliest = max(range(len(z)), key=lambda v: (z_p[t][v], -v))
            parts = [(1.0, by_hand("reverse_kl", z, z_p[t], 0)), (0.5, by_hand("forward_kl", z, z_p[t], 0))]
            factor = 0.3 * left + (1.0 if t < 0.5 * len(response) else 0.0)
            parts.append((factor, cross_entropy(z, likeliest)))
            return sum(w * value for w, (value, _) in parts), sum(w * by for w, (_, by) in parts)

        hand.add(prompt, response, token, 1 / count)
    for launch in (Launch(micro_batch=99), Launch(micro_batch=3)):
        student.zero_grad()
        engine = OneProcess(student, launch, step=step)
        parts, loss = micro_batches(engine, work, samples, list(range(COUNT)))
        total = torch.stack([loss(part)[0] for part in parts]).sum()
        total.backward()
        hand.check((total.item(), {n: p.grad for n, p in student.named_parameters() if p.grad is not None}))


def test_the_teachers_token_as_the_objective():
    made = chosen("teacher_token")
    student, teacher, samples, work = of(made)
    hand, count = ByHand(student), sum(map(len, samples.responses))
    for prompt, response in zip(samples.prompts, samples.responses, strict=True):
        z_p = numbers(teacher, prompt, response)
        hand.add(prompt, response, lambda z, t, z_p=z_p: cross_entropy(z, int(np.argmax(z_p[t]))), 1 / count)
    hand.check(gradient(student, samples, work, Launch(micro_batch=3)))


# --- refusals
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"extrapolate": 1.0}, "x: m.extrapolate: at 1 the target is the teacher itself; leave it out"),
        (
            {"objective": "minillm", "extrapolate": 1.25},
            "x: m.extrapolate: the long term's rewards are the teacher's own; choose another objective",
        ),
        (
            {"also": [{"objective": "teacher_token", "signal": {"tokens": "teacher_topk", "top_k": 2}}]},
            "x: m.also.0.signal: 'teacher_token' has a single entry, the teacher's; leave it out",
        ),
        (
            {"objective": "teacher_token", "taid": {}},
            "x: m.taid: 'teacher_token' takes the teacher's likeliest token as it is; leave it out",
        ),
    ],
)
def test_what_means_nothing_is_refused(changes, said):
    made = parse(OnPolicy, {"objective": "reverse_kl", "alpha": 0.0, **changes}, "x", "m")
    with pytest.raises(UserError) as caught:
        check_on_policy(made, "x", "m")
    assert str(caught.value) == said
