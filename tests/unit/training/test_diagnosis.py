"""The diagnosis of dev answers against loops over tokens in float64 probabilities; no effect on training."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import defaultdict

import numpy as np
import pytest
import torch
from onpolicy_case import COUNT, EOS, PROMPTS, VOCABULARY, WHOLE, OneProcess, Prompts, settings, task
from onpolicy_case import Tokenizer as NoWords
from tiny_models import make

from minillm import objectives
from minillm.config.launch import Launch
from minillm.config.objective_parts import TokenWeights
from minillm.config.sections import Sampling
from minillm.counts import repetition
from minillm.data.teacher_prompts import TeacherPrompts
from minillm.runtime.processes import World, start
from minillm.training import dev_evaluation, diagnosis, onpolicy, rollouts
from minillm.training.credit import credit_summary
from minillm.training.dev_set import Dev, losses
from minillm.training.diagnosis import Diagnosis, groups, repeated

END = 2
THEIRS = [np.array([i % 7 + 1, 3, i % 5 + 1][: 1 + i % 3], dtype=np.int32) for i in range(COUNT)]
SHOWN = dict(zip(Prompts.ids, THEIRS, strict=True))
# One token, an early EOS, a repeated 4-gram, one response twice as long as the others.
ANSWERS = [
    [EOS],
    [4, 4, 4, 4, 4, 4, EOS],
    [1, 2, 3, 1, 2, 3, 1, 2, 3, 5],
    [7, EOS],
    [9, 8, 7, 6, 9, 8, 7, 6, 9, 8, 7, 6, 9, 8, 7, 6, 1, 2],
    [5, 6, 5],
    [10, 1, 10, 1, 10, 1],
    [3, 3, EOS],
]
EXAMPLES = [
    (prompt, np.array(tokens, dtype=np.int32)) for prompt, tokens in zip(PROMPTS, ANSWERS, strict=True)
]


class Words(NoWords):
    """As much of a tokenizer as ROUGE-L of answers asks for."""

    def decode(self, tokens, skip_special_tokens):
        return " ".join(f"w{t}" for t in tokens if t != EOS or not skip_special_tokens)

    def save_pretrained(self, folder):
        pass


def models(family="llama"):
    return make(family, 1).double(), make("gpt2", 2).double(), make(family, 3).double()


def dev_of(two_prompts=False, batch=3):
    records = [{"id": id_, "references": ["w1 w2"]} for id_ in Prompts.ids]
    shown = TeacherPrompts({"dev": SHOWN, "train": SHOWN}, (EOS, END)) if two_prompts else None
    return Dev(EXAMPLES, records, Words(), Sampling(max_tokens=12), VOCABULARY, batch, 0, teacher=shown)


def probabilities(model, prompt, response, temperature, swap=False):
    """(length, vocabulary) from a pass over the row alone."""
    with torch.no_grad():
        ids = torch.tensor([[*prompt.tolist(), *response.tolist()]])
        logits = model(ids).logits[0, len(prompt) - 1 : -1, :VOCABULARY].numpy() / temperature
    if swap:
        logits[:, [EOS, END]] = logits[:, [END, EOS]]
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def by_hand(student, teacher, initial, examples, two_prompts, temperature, k):
    """Every value by loops over the tokens."""
    values, again = defaultdict(list), []
    for i, (prompt, response) in enumerate(examples):
        p = probabilities(
            teacher, THEIRS[i] if two_prompts else prompt, response, temperature, swap=two_prompts
        )
        q, first = (probabilities(model, prompt, response, temperature) for model in (student, initial))
        grams = [tuple(response[j : j + 4]) for j in range(len(response) - 3)]
        again.append(sum(g in grams[:j] for j, g in enumerate(grams)) / len(grams) if grams else 0.0)
        for t, token in enumerate(response):
            reward = math.log(p[t, token] / q[t, token])
            quarter = next(n for n in range(1, 5) if t * 4 < n * len(response))
            values[f"dev_reward_{quarter}_of_4"].append(reward)
            seen = t >= 3 and any(
                tuple(response[j - 3 : j + 1]) == tuple(response[t - 3 : t + 1]) for j in range(3, t)
            )
            values["dev_reward_repeated" if seen else "dev_reward_other"].append(reward)
            h_q, h_p = (-sum(x * math.log(x) for x in law[t]) for law in (q, p))
            values["dev_entropy"].append(h_q)
            values["dev_teacher_entropy"].append(h_p)
            values["dev_entropy_gap"].append(abs(h_q - h_p))
            tops = [sorted(range(VOCABULARY), key=lambda v, law=law: -law[t, v])[:k] for law in (q, p)]
            shared = set(tops[0]) & set(tops[1])
            values["dev_overlap"].append(len(shared) / k)
            values["dev_overlap_mass"].append(sum(q[t, v] for v in shared))
            values["dev_teacher_overlap_mass"].append(sum(p[t, v] for v in shared))
            values["dev_init_kl"].append(
                sum(q[t, v] * math.log(q[t, v] / first[t, v]) for v in range(VOCABULARY))
            )
    return {name: sum(each) / len(each) for name, each in values.items()} | {
        "dev_repetition": sum(again) / len(again)
    }


def measured(student, teacher, initial, dev, temperature=1.0, world=None):
    world = world or World(0, 1, torch.device("cpu"))
    watch = Diagnosis(EXAMPLES, VOCABULARY, temperature, initial)
    losses(student, EXAMPLES, dev, world, teacher, {}, temperature, theirs=dev.theirs(EXAMPLES), watch=watch)
    return watch, watch.means(world)


@pytest.mark.parametrize("two_prompts", [False, True])
@pytest.mark.parametrize(("temperature", "k"), [(1.0, 3), (0.7, 5), (1.0, 16)])
def test_values_equal_loops_over_tokens(monkeypatch, two_prompts, temperature, k):
    monkeypatch.setattr(diagnosis, "TOP", k)
    student, teacher, initial = models()
    expected = by_hand(student, teacher, initial, EXAMPLES, two_prompts, temperature, min(k, VOCABULARY))
    for batch in (COUNT, 3, 1):
        _, found = measured(student, teacher, initial, dev_of(two_prompts, batch), temperature)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, abs=1e-9), name
    assert 0 < found["dev_overlap"] < 1 or k == 16
    # The whole vocabulary is in both sets.
    assert k < VOCABULARY or found["dev_overlap"] == 1 == pytest.approx(found["dev_overlap_mass"])


@pytest.mark.parametrize("response", ANSWERS)
def test_repeated_tokens_are_what_the_repetition_rate_counts(response):
    response = np.array(response)
    assert repeated(response).sum() == pytest.approx(repetition(response) * max(0, len(response) - 3))
    columns = groups(response)
    assert (columns[:, :4].sum(1) == 1).all() and (columns[:, 4:6].sum(1) == 1).all()


def test_a_group_without_tokens_has_no_mean():
    student, teacher, _ = models()
    examples = [(PROMPTS[0], np.array([1, 2, EOS]))]
    watch = Diagnosis(examples, VOCABULARY, 1.0, None)
    world = World(0, 1, torch.device("cpu"))
    losses(student, examples, dev_of(), world, teacher, watch=watch)
    found = watch.means(world)
    assert math.isnan(found["dev_reward_repeated"]) and "dev_init_kl" not in found
    assert math.isfinite(found["dev_reward_other"]) and found["dev_repetition"] == 0


@dataclasses.dataclass(frozen=True)
class Rank(World):
    """One of two processes, one after the other; the second sees what the first has sent."""

    sent: list = dataclasses.field(default_factory=list)

    def gather(self, value):
        self.sent.append(value)
        return self.sent[-2:] if self.rank else [value]


def test_two_processes_give_the_same(monkeypatch):
    monkeypatch.setattr(diagnosis, "TOP", 3)
    student, teacher, initial = models()
    _, expected = measured(student, teacher, initial, dev_of())
    sent, watches = [], []
    for rank in (0, 1):
        world = Rank(rank, 2, torch.device("cpu"), sent=[])
        watch = Diagnosis(EXAMPLES, VOCABULARY, 1.0, initial)
        losses(student, EXAMPLES, dev_of(), world, teacher, watch=watch)
        watches.append(watch)
    for rank, watch in enumerate(watches):
        found = watch.means(Rank(rank, 2, torch.device("cpu"), sent=sent))
    assert found == pytest.approx(expected, abs=1e-12)


def test_a_teacher_that_is_the_student():
    student, _, _ = models()
    _, found = measured(student, student, student, dev_of())
    assert found["dev_overlap"] == 1 and found["dev_overlap_mass"] == found["dev_teacher_overlap_mass"]
    assert found["dev_entropy"] == found["dev_teacher_entropy"] and found["dev_entropy_gap"] == 0
    assert found["dev_init_kl"] == pytest.approx(0, abs=1e-12)
    assert {found[name] for name in diagnosis.REWARDS} == {0.0}


def test_the_losses_themselves_are_the_same_to_the_last_bit():
    student, teacher, initial = (model.float() for model in models())
    world = World(0, 1, torch.device("cpu"))
    wanted = {"reverse_kl": objectives.reverse_kl, "forward_kl": objectives.forward_kl}
    watch = Diagnosis(EXAMPLES, VOCABULARY, 1.0, initial)
    with_it, without = (
        losses(student, EXAMPLES, dev_of(), world, teacher, wanted, watch=each) for each in (watch, None)
    )
    assert with_it == without and "dev_init_kl" in watch.means(world)


# --- effective samples
def collected(**changes):
    student, teacher, _ = models()
    chosen = settings("default", **changes)
    engine = OneProcess(student, WHOLE)
    engine.model = student
    made = rollouts.collect_rollouts(engine, teacher, Prompts(), dev_of(), chosen, rollouts.Memory(1.0), 0, 3)
    return made, chosen


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": "reverse_kl", "alpha": 0.0},
        {"objective": "reverse_kl", "token_weights": TokenWeights(discount=0.8)},
        {"objective": "minillm", "alpha": 0.3},
        {"objective": "minillm", "alpha": 0.3, "token_weights": TokenWeights(discount=0.8)},
        {"objective": "minillm", "importance": "none"},
    ],
)
def test_effective_samples_of_every_method(changes):
    made, chosen = collected(**changes)
    total, squares, count = 0.0, 0.0, 0
    for row, response in enumerate(made.responses):
        for t in range(len(response)):
            q, p = (math.exp(logs[row, t].item()) for logs in (made.student_logprobs, made.teacher_logprobs))
            weight = q / (0.3 * p + 0.7 * q) if chosen.objective == "minillm" else 1.0
            weight = weight if chosen.importance != "none" else 1.0
            weight *= 0.8**t if chosen.token_weights else 1.0
            total, squares, count = total + weight, squares + weight**2, count + 1
    found = credit_summary(made, chosen, NoWords())
    assert found["effective_samples"] == pytest.approx(total**2 / squares / count, rel=1e-5)
    assert ("reward" in found) == (chosen.objective == "minillm")
    plain = chosen.token_weights is None and (chosen.objective != "minillm" or chosen.importance == "none")
    assert (found["effective_samples"] == 1.0) == plain


# --- a whole training
def trained(folder, objective, **launch):
    """(log, weights, history) of two collections of two updates."""
    chosen = settings(
        "default", objective=objective, warmup=0, lr=1e-2, batch=COUNT // 2, collections=2, evaluations=2,
        lm_coef=0.0, alpha=0.0, inner_epochs=1, init_kl=0.1,
    )  # fmt: skip
    student, teacher, initial = (model.float() for model in models())
    values = Launch(micro_batch=2, log_every=1, **launch)
    engine = onpolicy.Engine(student, chosen, values, start(0), "fp32", folder, 4)
    work = dataclasses.replace(
        task(engine.frozen(teacher), chosen), dev=dev_of(), anchor=engine.frozen(initial)
    )
    work = dataclasses.replace(work, initial=work.anchor if values.initial_kl else None)
    history = onpolicy.train(engine, work, Prompts(), "minillm")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return lines, [p.detach().clone() for p in engine.model.parameters()], history


@pytest.mark.parametrize("objective", ["minillm", "reverse_kl"])
def test_measuring_changes_nothing_of_a_training(tmp_path, monkeypatch, objective):
    lines, weights, history = trained(tmp_path / "with", objective, initial_kl=True, gradient_variance=True)
    unwatched = Diagnosis.means
    monkeypatch.setattr(dev_evaluation, "losses", lambda *args, watch=None, **more: losses(*args, **more))
    monkeypatch.setattr(Diagnosis, "means", lambda self, world: {})
    plain, same, before = trained(tmp_path / "without", objective)
    monkeypatch.setattr(Diagnosis, "means", unwatched)
    assert all(torch.equal(a, b) for a, b in zip(weights, same, strict=True)) and history == before
    added = {
        *diagnosis.MEANS,
        *diagnosis.REWARDS,
        "dev_repetition",
        "dev_init_kl",
        "grad_variance",
        "seconds",
    }
    for one, other in zip(lines, plain, strict=True):
        assert {key: one[key] for key in one if key not in added} == {
            key: value for key, value in other.items() if key != "seconds"
        }
    looks = [line for line in lines if "dev_loss" in line]
    assert len(looks) == 3 and all(added - {"grad_variance"} <= line.keys() for line in looks)
    updates = [line for line in lines if "loss" in line]
    assert len(updates) == 4 and all(line["grad_variance"] > 0 for line in updates)
    # The fresh student is the initial one of another seed here; with its own it is 0.
    assert all(line["dev_init_kl"] > 0 for line in looks)
    assert all("effective_samples" in line for line in lines if "response_length" in line)
