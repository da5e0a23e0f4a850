"""Divergences, sets of entries, moving target and assistant: loss and gradient of a mini-batch by hand.

The batch has prompts and responses of different lengths, some of which end early, and plain text is off.
"""

import dataclasses
import json

import numpy as np
import pytest
import torch
from onpolicy_case import COUNT, Prompts, engine_of, gradient, settings, task
from parts_case import batch, by_hand, chosen, expected, with_assistant
from torch.testing import assert_close

from minillm import objectives
from minillm.config.launch import Launch
from minillm.config.objective_parts import AlphaBeta, Assistant, Signal, Taid
from minillm.token_sets import on_set
from minillm.training import onpolicy, run_state
from minillm.training.divergences import token_divergence
from minillm.training.moving_target import MovingTarget

NAMES = ("forward_kl", "reverse_kl", "alpha_beta", "token_wise_kl", "squared_log_ratio")
SETS = ("student_topk", "teacher_topk", "union", "intersection")


def check(settings_, token, target=None):
    """The loss and gradient of the batch under `settings_` are those by hand, to 1e-8."""
    student, teacher, made = batch(settings_)
    lengths = {len(response) for response in made.responses}
    assert len(lengths) > 2 and min(lengths) < settings_.max_tokens, "padding, and responses that end early"
    value, derivatives = expected(student, teacher, made, settings_, token)
    found = gradient(student, made, task(teacher, settings_), Launch(micro_batch=3), target=target)
    assert found[0] == pytest.approx(value, abs=1e-8)
    assert max(derivative.abs().max() for derivative in derivatives.values()) > 1e-6
    for name, derivative in derivatives.items():
        assert_close(found[1][name], derivative, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_divergences(name):
    check(chosen(name), lambda z_q, z_p, y, _: by_hand(name, z_q, z_p, y))


@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize("tokens", SETS)
@pytest.mark.parametrize("name", NAMES)
def test_sets_of_entries(name, tokens, renormalise):
    made = chosen(name, signal=Signal(tokens=tokens, top_k=3, renormalise=renormalise))
    check(made, lambda z_q, z_p, y, _: by_hand(name, z_q, z_p, y, tokens, 3, renormalise))


@pytest.mark.parametrize("weight", ["student", "teacher", "none"])
@pytest.mark.parametrize("tokens", ["all", "union", "sampled"])
def test_weights_of_entries(tokens, weight):
    k = 0 if tokens in ("all", "sampled") else 2
    made = chosen("squared_log_ratio", signal=Signal(tokens=tokens, top_k=k, weight=weight))
    check(
        made,
        lambda z_q, z_p, y, _: by_hand("squared_log_ratio", z_q, z_p, y, tokens, k, False, weight=weight),
    )


def test_the_exponents_of_the_alpha_beta_divergence():
    made = chosen("alpha_beta", alpha_beta=AlphaBeta(alpha=0.5, beta=0.25))
    check(made, lambda z_q, z_p, y, _: by_hand("alpha_beta", z_q, z_p, y, alpha=0.5, beta=0.25))


def test_a_set_in_the_single_step_term():
    """With its importance weights; the long term is as without."""
    base = settings("paper", normaliser="tokens", lm_coef=0.0)
    made = dataclasses.replace(base, signal=Signal(tokens="student_topk", top_k=3))
    without, signal = (dataclasses.replace(x, whiten="tokens") for x in (base, made))
    student, teacher, samples = batch(base)
    weights = objectives.importance_weights(samples.student_logprobs, samples.teacher_logprobs, base.alpha)

    def token(tokens, k):
        def weighted(z_q, z_p, y, place):
            value, derivative = by_hand("reverse_kl", z_q, z_p, y, tokens, k)
            return weights[place].item() * value, weights[place].item() * derivative

        return expected(student, teacher, samples, base, weighted)

    full, topk = token("all", 0), token("student_topk", 3)
    a, b = (gradient(student, samples, task(teacher, x)) for x in (without, signal))
    assert b[0] - a[0] == pytest.approx(topk[0] - full[0], abs=1e-8)
    # The layers below compute norms in float32, in which gradients do not add up.
    for name in ("model.norm.weight", "lm_head.weight"):
        assert_close(b[1][name] - a[1][name], topk[1][name] - full[1][name], atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("t", [0.1, 0.4, 1.0])
@pytest.mark.parametrize("name", ["forward_kl", "alpha_beta"])
def test_moving_target(name, t):
    made = chosen(name, taid=Taid())
    check(made, lambda z_q, z_p, y, _: by_hand(name, z_q, z_p, y, target=t), target=t)


@pytest.mark.parametrize("alpha", [-5.0, -1.0, 0.0, 1.0, 3.0])
@pytest.mark.parametrize(("replaces", "name"), [("student", "forward_kl"), ("teacher", "reverse_kl")])
def test_assistant(replaces, name, alpha):
    made = chosen(name, assistant=Assistant(replaces=replaces, alpha=alpha, share=0.3))
    check(made, lambda z_q, z_p, y, _: with_assistant(z_q, z_p, replaces, alpha, 0.3))


# --- what they have in common
def logits(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [2 * torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(2)]


def value_and_derivative(settings_, z_q, z_p, sampled=None, target=None):
    point = z_q.clone().requires_grad_()
    value = token_divergence(settings_, point, z_p, sampled, target)
    value.sum().backward()
    return value.detach(), point.grad


EVERY = [
    *(chosen(name) for name in NAMES),
    *(chosen(name) for name in ("jensen_shannon", "skew_forward_kl", "skew_reverse_kl", "total_variation")),
    chosen("alpha_beta", alpha_beta=AlphaBeta(alpha=1.0, beta=0.0)),
    chosen("squared_log_ratio", signal=Signal(weight="none")),
]


@pytest.mark.parametrize("settings_", EVERY, ids=lambda s: s.objective)
def test_the_set_of_all_entries_is_the_divergence_itself(settings_):
    """The whole vocabulary by name, and as the top k of as many entries as it has, or of more."""
    z_q, z_p = logits(6, 9)
    weight = settings_.signal.weight if settings_.signal else "student"
    expected_ = value_and_derivative(settings_, z_q, z_p)
    for tokens in ("all", *SETS):
        for renormalise in (False, True) if tokens != "all" else (False,):
            signal = Signal(
                tokens=tokens, top_k=0 if tokens == "all" else 20, renormalise=renormalise, weight=weight
            )
            found = value_and_derivative(dataclasses.replace(settings_, signal=signal), z_q, z_p)
            for a, b in zip(found, expected_, strict=True):
                assert_close(a, b, atol=1e-10, rtol=0)


@pytest.mark.parametrize("tokens", ["all", *SETS])
@pytest.mark.parametrize("settings_", EVERY, ids=lambda s: s.objective)
def test_a_teacher_that_is_the_student(settings_, tokens):
    """Loss and gradient are 0 but for the terms of a KL on part of the vocabulary.

    Those move probability out of the set (reverse) or into it (forward): the bias that docs/method.md names.
    """
    z, _ = logits(6, 9)
    q = z.softmax(-1)
    weight = settings_.signal.weight if settings_.signal else "student"
    top = q * torch.zeros_like(q).scatter(-1, q.topk(3).indices, 1.0)
    # The gradient of the set's probability.
    mass = top - q * top.sum(-1, keepdim=True)
    biased = {"reverse_kl": 1.0, "forward_kl": -1.0, "skew_forward_kl": -0.9, "skew_reverse_kl": 0.9}
    for renormalise in (False, True) if tokens != "all" else (False,):
        k = 0 if tokens == "all" else 3
        signal = Signal(tokens=tokens, top_k=k, renormalise=renormalise, weight=weight)
        value, derivative = value_and_derivative(dataclasses.replace(settings_, signal=signal), z, z.clone())
        assert value.abs().max() < 1e-12
        bias = 0.0 if k == 0 or renormalise else biased.get(settings_.objective, 0.0)
        if settings_.objective != "total_variation":
            # That one has no derivative there.
            assert_close(derivative, bias * mass, atol=1e-12, rtol=0)


def test_a_target_that_is_the_student():
    z_q, z_p = logits(6, 9)
    for z, t in ((z_q, 0.4), (z_p, 0.0)):
        at = torch.tensor(t, dtype=torch.float64)
        value, derivative = value_and_derivative(chosen("forward_kl", taid=Taid()), z_q, z, target=at)
        assert value.abs().max() < 1e-12 and derivative.abs().max() < 1e-12


def test_a_set_without_entries_is_no_signal():
    z_q = torch.tensor([[5.0, 4.0, 0.0, 0.0], [5.0, 0.0, 0.0, 4.0]], dtype=torch.float64)
    z_p = torch.tensor([[0.0, 0.0, 5.0, 4.0], [5.0, 0.0, 0.0, 3.0]], dtype=torch.float64)
    for settings_ in EVERY:
        for renormalise in (False, True):
            weight = settings_.signal.weight if settings_.signal else "student"
            signal = Signal(tokens="intersection", top_k=2, renormalise=renormalise, weight=weight)
            value, derivative = value_and_derivative(dataclasses.replace(settings_, signal=signal), z_q, z_p)
            assert value[0] == 0 and (derivative[0] == 0).all()
            assert value[1] != 0 and derivative.isfinite().all() and (derivative[1] != 0).any()


@pytest.mark.parametrize(
    "settings_",
    [
        *(dataclasses.replace(s, signal=Signal(tokens="union", top_k=3)) for s in EVERY),
        chosen("forward_kl", taid=Taid()),
        chosen("forward_kl", assistant=Assistant(alpha=3.0)),
    ],
    ids=lambda s: s.objective,
)
def test_a_shift_of_the_logits_is_ignored(settings_):
    z_q, z_p = logits(6, 9)
    t = torch.tensor(0.4) if settings_.taid else None
    found = value_and_derivative(settings_, z_q + 3.0, z_p - 7.0, target=t)
    for a, b in zip(found, value_and_derivative(settings_, z_q, z_p, target=t), strict=True):
        assert_close(a, b, atol=1e-10, rtol=0)


def test_the_sampled_token_is_an_unbiased_reverse_kl():
    """The mean over q of its gradient, and of the whole vocabulary's by q, is the reverse KL's."""
    z_q, z_p = logits(4, 9)
    sampled = chosen("squared_log_ratio", signal=Signal(tokens="sampled"))
    derivatives = [value_and_derivative(sampled, z_q, z_p, torch.full((4,), v))[1] for v in range(9)]
    mean = sum(z_q.softmax(-1)[:, v, None] * derivative for v, derivative in enumerate(derivatives))
    exact = value_and_derivative(chosen("reverse_kl"), z_q, z_p)
    assert_close(mean, exact[1], atol=1e-10, rtol=0)
    assert_close(value_and_derivative(chosen("squared_log_ratio"), z_q, z_p)[1], exact[1], atol=1e-10, rtol=0)
    # On the dev set, where no token is drawn.
    assert_close(value_and_derivative(sampled, z_q, z_p)[0], exact[0], atol=1e-12, rtol=0)


@pytest.mark.parametrize("share", [0.1, 0.6])
def test_assistants_of_other_methods(share):
    """At alpha = -1 DistiLLM's skewed divergences; at 1, and constant, TAID's target."""
    z_q, z_p = logits(5, 9)
    student = Assistant(replaces="student", alpha=-1.0, share=share)
    teacher = Assistant(replaces="teacher", alpha=-1.0, share=share)
    for settings_, same in (
        (chosen("forward_kl", assistant=student), chosen("skew_forward_kl", skew=share)),
        (chosen("reverse_kl", assistant=teacher), chosen("skew_reverse_kl", skew=1 - share)),
    ):
        for a, b in zip(
            value_and_derivative(settings_, z_q, z_p), value_and_derivative(same, z_q, z_p), strict=True
        ):
            assert_close(a, b, atol=1e-10, rtol=0)
    assert_close(
        objectives.assistant(z_q, z_p, 1.0, share),
        objectives.moving_target(z_q, z_p, share),
        atol=1e-10,
        rtol=0,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_at_extremes(dtype):
    """Logits of bf16's range, and an entry that neither can draw."""
    z_q = torch.tensor([[80.0, -80.0, 0.0, -torch.inf], [3e4, -3e4, 0.0, -torch.inf]], dtype=dtype)
    z_p = torch.tensor([[-80.0, 80.0, 0.0, -torch.inf], [-3e4, 3e4, 0.0, -torch.inf]], dtype=dtype)
    found = [dataclasses.replace(s, signal=Signal(tokens="union", top_k=4)) for s in EVERY]
    found += [chosen("forward_kl", assistant=Assistant(alpha=a)) for a in (-5.0, 0.5, 1.0, 3.0)]
    for settings_ in [*EVERY, *found]:
        value, derivative = value_and_derivative(settings_, z_q, z_p)
        assert value.isfinite().all() and derivative.isfinite().all(), settings_
    for t in (0.0, 0.4, 1.0):
        value, derivative = value_and_derivative(
            chosen("forward_kl", taid=Taid()), z_q, z_p, target=torch.tensor(t)
        )
        assert value.isfinite().all() and derivative.isfinite().all()


def test_unknown_sets_and_weights_are_refused():
    z_q, z_p = logits(2, 9)
    with pytest.raises(ValueError, match="tokens must be 'sampled' or one of student_topk"):
        on_set(z_q, z_p, "top", 3)
    with pytest.raises(ValueError, match="'sampled' needs the sampled tokens"):
        on_set(z_q, z_p, "sampled")
    with pytest.raises(ValueError, match="weight must be 'student', 'teacher' or 'none', not 'both'"):
        objectives.squared_log_ratio(z_q, z_p, "both")


# --- TAID's schedule
def test_the_target_moves_as_the_loss_falls():
    losses = [2.0, 1.0, 1.5, float("nan"), 0.75]
    target, t, momentum, last = MovingTarget.of(Taid(start=0.2, step=0.1, momentum=0.5), None), 0.2, 0.0, None
    for n, loss in enumerate(losses):
        target.move(loss, n / 10)
        if last is not None and loss == loss:
            momentum = 0.5 * momentum + 0.5 * (last - loss) / last
            t = max(0.2 + 0.8 * n / 10, t + 0.1 / (1 + np.exp(-momentum)) * (1 - t))
        last = loss if loss == loss else last
        assert target.t == pytest.approx(t, abs=1e-9)
    target.move(0.1, 1.0)
    assert target.t == 1.0
    linear = MovingTarget.of(Taid(start=0.2, end=0.6, adaptive=False), None)
    linear.move(1.0, 0.25)
    assert linear.t == pytest.approx(0.3)


def test_a_run_with_a_moving_target_resumes_exactly(tmp_path, monkeypatch):
    """Stopped in the middle of a collection: t, the log and the weights are those of one that was not."""
    launch = Launch(micro_batch=COUNT, log_every=1)
    more = {"objective": "forward_kl", "alpha": 0.0, "lm_coef": 0.0, "batch": 4, "inner_epochs": 2}
    monkeypatch.setattr(onpolicy, "evaluate", lambda *_: ({"dev_loss": 1.0, "dev_rouge": 0.0}, {}))

    def run(folder, stop=None):
        engine, teacher, made = engine_of(folder, "llama", launch, taid=Taid(step=0.3), **more)
        engine.steps = 8

        class Stopping(MovingTarget):
            def move(self, loss, progress):
                super().move(loss, progress)
                engine._stop = engine.step == stop

        monkeypatch.setattr(run_state, "MovingTarget", Stopping)
        onpolicy.train(engine, task(teacher, made), Prompts(), "taid")
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        weights = torch.cat([p.detach().flatten() for p in engine.model.parameters()])
        return weights, [line["target"] for line in lines if "target" in line]

    whole, targets = run(tmp_path / "whole")
    with pytest.raises(SystemExit):
        run(tmp_path / "parts", stop=3)
    resumed, again = run(tmp_path / "parts")
    assert torch.equal(whole, resumed) and targets == again
    assert len(targets) == 8 and targets[0] == 0.4 and 0.4 < targets[3] < targets[-1] <= 1.0
