"""Sampling by coins: the law with and without them, what is recorded, when the teacher reads."""

import itertools

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES
from architectures import make as architecture
from scipy.stats import chi2_contingency, chisquare
from tiny_models import make

from minillm.config.sections import Sampling
from minillm.data import batching
from minillm.errors import UserError
from minillm.models import tiled_loss
from minillm.sampling import sample as sampling_module
from minillm.sampling import unread
from minillm.sampling.coins import coins, grouped
from minillm.sampling.kv_cache import Decoder
from minillm.sampling.sample import Mixture, sample, uniforms

VOCABULARY, EOS, PAD, HORIZON = 11, 0, 12, 14
PROMPTS = [
    np.array(ids, dtype=np.int32)
    for ids in ([3, 4, 5, 6], [7], [1, 2], [9, 8, 7, 6, 5], [0, 4], [2], [5, 5, 1], [10, 3])
]
COUNT = len(PROMPTS)
GROUPS = {"one": [0] * COUNT, "threes": [i // 3 for i in range(COUNT)], "rows": list(range(COUNT))}
NAMES = ("student_logprobs", "teacher_logprobs", "mixture_logprobs", "reverse_kl", "entropy")


def run(student, teacher, groups, alpha=0.3, rows=range(COUNT), **more):
    defaults = {"seed": 3, "step": 2, "ends": [EOS], "pad": PAD, "vocabulary": VOCABULARY, "record": True}
    mixture = Mixture(teacher, alpha, None if groups is None else [groups[i] for i in rows])
    chosen = Sampling(temperature=more.pop("temperature", 3.0), max_tokens=more.pop("max_tokens", HORIZON))
    prompts = [PROMPTS[i] for i in rows]
    return sample(student, prompts, list(rows), chosen, mixture=mixture, **(defaults | more))


def scored(student, teacher, prompt, tokens, alpha, temperature=3.0):
    """The values of a `Record` by name, from passes over the whole row without cache or padding."""
    ids, at = torch.tensor([prompt.tolist() + tokens.tolist()]), torch.from_numpy(tokens).long()[:, None]
    with torch.no_grad():
        q, p = (
            (m(ids, use_cache=False).logits[0, len(prompt) - 1 : -1, :VOCABULARY] / temperature).log_softmax(
                -1
            )
            for m in (student, teacher)
        )
    mixture = (alpha * p.exp() + (1 - alpha) * q.exp()).log()
    kl, entropy = (q.exp() * (q - p)).sum(-1), -(q.exp() * q).sum(-1)
    return dict(zip(NAMES, [x.gather(1, at)[:, 0] for x in (q, p, mixture)] + [kl, entropy], strict=True))


def check(student, teacher, found, alpha, rows=range(COUNT)):
    """Every recorded value against `scored`."""
    for i, response in zip(rows, found, strict=True):
        expected = scored(student, teacher, PROMPTS[i], response.tokens, alpha)
        for name, values in expected.items():
            recorded = torch.from_numpy(getattr(response.record, name))
            torch.testing.assert_close(recorded.to(values.dtype), values, atol=1e-5, rtol=0, msg=name)


def toss(monkeypatch, heads):
    """Coins as planned, the same for all groups: where, of the positions, the teacher draws."""
    planned = np.isin(np.arange(HORIZON), heads)
    monkeypatch.setattr(
        sampling_module, "coins", lambda seed, step, groups, length, alpha: np.stack([planned] * len(groups))
    )


# transformers computes these with masks or products that float64 breaks.
SINGLE = ("bloom", "gemma2", "mixtral", "mpt")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_recorded_values_are_those_of_whole_passes_and_rows_those_alone(name):
    student, teacher = (architecture(ARCHITECTURES[name], seed) for seed in (1, 2))
    if name not in SINGLE:
        student, teacher = student.double(), teacher.double()
    for alpha, kind in ((0.0, "one"), (0.2, "one"), (0.3, "threes"), (0.9, "rows")):
        groups = GROUPS[kind]
        found = run(student, teacher, groups, alpha)
        check(student, teacher, found, alpha)
        # Rows leave the caches, some as soon as they begin, and others are sampled beyond a window of 4.
        lengths = sorted(len(r.tokens) for r in found)
        assert lengths[0] <= 2 and lengths[-1] >= 12, lengths
        if kind == "threes":
            alone = [run(student, teacher, groups, alpha, [i])[0] for i in range(COUNT)]
            assert [r.tokens.tolist() for r in found] == [r.tokens.tolist() for r in alone]


HEADS = {
    "the first": [0],
    "the last": [HORIZON - 1],
    "the first and the last": [0, HORIZON - 1],
    "none": [],
    "late": [9],
    "all": range(HORIZON),
    "in a row": [4, 5, 6],
}


@pytest.mark.parametrize("pieces", ["whole", "split"])
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "mistral-sliding"])
def test_wherever_the_coins_fall(name, heads, pieces, monkeypatch):
    """The teacher reads once for each coin that finds a row, and at the end if something is left."""
    student, teacher = (architecture(ARCHITECTURES[name], seed).double() for seed in (1, 2))
    toss(monkeypatch, heads)
    if pieces == "split":
        # Two positions at once, two tokens a tile.
        monkeypatch.setattr(batching, "CPU_POSITIONS", 2 * COUNT)
        monkeypatch.setattr(tiled_loss, "TILE", 2 * VOCABULARY)
    passes = []
    for module, method in ((Decoder, "hidden"), (unread, "response_hidden")):
        plain = getattr(module, method)
        monkeypatch.setattr(
            module,
            method,
            lambda *a, plain=plain, **k: (
                passes.append(getattr(a[0], "model", getattr(a[0], "base_model", None))) or plain(*a, **k)
            ),
        )
    found = run(student, teacher, GROUPS["one"])
    check(student, teacher, found, 0.3)
    longest = max(len(r.tokens) for r in found)
    assert min(len(r.tokens) for r in found) < longest == HORIZON
    own = sum(model is teacher.base_model for model in passes)
    if pieces == "whole":
        assert own == len(heads) + (HORIZON - 1 not in heads)
    for response in found:
        assert len(response.record.teacher_hidden) == len(response.tokens)


@pytest.mark.parametrize("heads", [[3, 8], []], ids=["two coins", "none"])
def test_the_teachers_hidden_states_are_those_of_whole_passes(heads, monkeypatch):
    student, teacher = make("gpt2", 1).double(), make("llama", 2).double()
    toss(monkeypatch, heads)
    found = run(student, teacher, GROUPS["one"])
    with torch.no_grad():
        for prompt, response in zip(PROMPTS, found, strict=True):
            ids = torch.tensor([prompt.tolist() + response.tokens.tolist()])
            states = teacher.base_model(ids).last_hidden_state[0, len(prompt) - 1 : -1]
            torch.testing.assert_close(response.record.teacher_hidden, states, atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "mistral-sliding"])
def test_without_a_share_of_the_teacher_all_is_as_token_by_token(name):
    student, teacher = (architecture(ARCHITECTURES[name], seed).double() for seed in (1, 2))
    for a, b in zip(run(student, teacher, None, 0.0), run(student, teacher, GROUPS["one"], 0.0), strict=True):
        assert a.tokens.tolist() == b.tokens.tolist() and a.finished == b.finished
        for key in NAMES:
            np.testing.assert_allclose(getattr(a.record, key), getattr(b.record, key), atol=1e-6)
        torch.testing.assert_close(a.record.teacher_hidden, b.record.teacher_hidden, atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2-sliding"])
@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
def test_rows_do_not_depend_on_batches_order_or_what_is_recorded(name, groups):
    student, teacher = (architecture(ARCHITECTURES[name], seed).double() for seed in (1, 2))
    whole = [r.tokens.tolist() for r in run(student, teacher, groups)]
    for batch, budget in ((3, 0), (1, 0), (8, 40)):
        assert [r.tokens.tolist() for r in run(student, teacher, groups, batch=batch, budget=budget)] == whole
    turned = run(student, teacher, groups, rows=range(COUNT)[::-1], batch=5)
    assert [r.tokens.tolist() for r in turned][::-1] == whole
    assert [r.tokens.tolist() for r in run(student, teacher, groups, record=False)] == whole
    assert whole != [r.tokens.tolist() for r in run(student, teacher, groups, step=3)]


def first_laws(student, teacher, prompt):
    with torch.no_grad():
        ids = torch.from_numpy(prompt[None].astype(np.int64))
        return [m(ids).logits[0, -1, :VOCABULARY].double().softmax(-1).numpy() for m in (student, teacher)]


def first_tokens(student, teacher, steps, rows, alpha, groups):
    """(first tokens, whether the teacher drew them), (steps, rows), of one prompt."""
    found, heads = [], []
    for step in range(steps):
        many = sample(
            student,
            [PROMPTS[0]] * rows,
            range(rows),
            Sampling(max_tokens=1),
            seed=5,
            step=step,
            ends=[EOS],
            pad=PAD,
            vocabulary=VOCABULARY,
            mixture=Mixture(teacher, alpha, groups),
            batch=rows,
        )
        found.append([r.tokens[0] for r in many])
        heads.append(coins(5, step, groups, 1, alpha)[:, 0])
    return np.array(found), np.array(heads)


@pytest.mark.parametrize("size", [1, 0])
def test_given_the_coin_a_token_follows_the_teacher_or_the_student(size):
    """And over all coins alpha p + (1 - alpha) q; other shares and models are told apart."""
    student, teacher = make("llama", 1), make("gpt2", 2)
    groups = list(range(250)) if size else [0] * 250
    found, heads = first_tokens(student, teacher, 100, 250, 0.3, groups)
    q, p = first_laws(student, teacher, PROMPTS[0])

    def fits(tokens, law):
        return chisquare(np.bincount(tokens, minlength=VOCABULARY), len(tokens) * law).pvalue > 1e-3

    assert fits(found[heads], p) and not fits(found[heads], q)
    assert fits(found[~heads], q) and not fits(found[~heads], p)
    if size:
        law = 0.3 * p + 0.7 * q
        assert fits(found.ravel(), law) and not fits(found.ravel(), 0.4 * p + 0.6 * q)


def test_sequences_follow_the_mixture_exactly():
    """Three tokens of four, against every sequence's probability; each row has a coin of its own."""
    student, teacher = make("llama", 1), make("llama", 2)
    vocabulary, alpha, count, length = 4, 0.4, 12_000, 3
    prompt = np.array([7, 5], dtype=np.int32)
    found = sample(
        student,
        [prompt] * count,
        range(count),
        Sampling(max_tokens=length, temperature=2.0),
        seed=9,
        step=0,
        ends=[EOS],
        pad=PAD,
        vocabulary=vocabulary,
        mixture=Mixture(teacher, alpha, range(count)),
        batch=500,
    )

    def law(tokens):
        ids = torch.tensor([[*prompt.tolist(), *tokens]])
        with torch.no_grad():
            q, p = (
                (m(ids).logits[0, 1:-1, :vocabulary].double() / 2).softmax(-1) for m in (student, teacher)
            )
        at = torch.tensor(tokens)[:, None]
        return (alpha * p + (1 - alpha) * q).gather(1, at).prod().item()

    words = [
        (*body, EOS) for n in range(length) for body in itertools.product(range(1, vocabulary), repeat=n)
    ] + list(itertools.product(range(1, vocabulary), repeat=length))
    expected = {word: count * law(word) for word in words}
    assert sum(expected.values()) == pytest.approx(count)
    seen = {word: 0 for word in words}
    for response in found:
        seen[tuple(response.tokens.tolist())] += 1
    # Rare ones together, as the test needs.
    rare = [word for word in words if expected[word] < 10]
    observed, wanted = (
        [x[word] for word in words if word not in rare] + [sum(x[word] for word in rare)]
        for x in (seen, expected)
    )
    assert len(observed) > 10 and chisquare(observed, wanted).pvalue > 1e-3


def test_coins_fall_as_often_as_they_should_and_belong_to_groups_steps_and_positions():
    tossed = np.stack([coins(1, step, range(50), 40, 0.2) for step in range(100)])
    assert tossed.mean() == pytest.approx(0.2, abs=5 * np.sqrt(0.16 / tossed.size))
    for axis in ((0, 1), (1, 2), (0, 2)):
        counts = tossed.sum(axis)
        share = tossed.size // len(counts)
        assert chisquare(counts, np.full(len(counts), counts.mean())).pvalue > 1e-3, share
    # Neighbours along each axis are independent.
    for a, b in (
        (tossed[:-1], tossed[1:]),
        (tossed[:, :-1], tossed[:, 1:]),
        (tossed[..., :-1], tossed[..., 1:]),
    ):
        table = [[(~a & ~b).sum(), (~a & b).sum()], [(a & ~b).sum(), (a & b).sum()]]
        assert chi2_contingency(table).pvalue > 1e-3
    assert (coins(1, 7, [3, 3, 9], 40, 0.2) == tossed[7, [3, 3, 9]]).all()
    assert (coins(1, 7, [9], 5, 0.2) == tossed[7, 9, :5]).all()
    assert not coins(1, 7, range(50), 40, 0.0).any()
    assert (coins(2, 7, range(50), 40, 0.2) != tossed[7]).any()


def test_coins_are_independent_of_the_numbers_that_draw_tokens():
    """Of rows with the group's own number, in whose places the numbers would coincide if keys did."""
    heads = np.stack([coins(1, step, range(50), 40, 0.3) for step in range(100)])
    numbers = np.stack([uniforms(1, step, range(50), 40) for step in range(100)])
    table = [np.histogram(numbers[part], 10, (0, 1))[0] for part in (heads, ~heads)]
    assert chi2_contingency(table).pvalue > 1e-3


def test_groups_have_the_size_and_similar_prompts():
    sizes = np.random.default_rng(0).permutation(20)
    lengths = dict(zip(range(100, 120), sizes.tolist(), strict=True))
    groups = grouped(lengths, 8)
    assert [list(groups.values()).count(g) for g in range(3)] == [8, 8, 4]
    assert [lengths[row] for row in groups] == sorted(lengths.values())
    assert set(grouped(lengths, 0).values()) == {0} and len(set(grouped(lengths, 1).values())) == 20
    assert grouped(dict(reversed(lengths.items())), 8) == groups


@pytest.mark.parametrize("where", ["where it draws", "where it only reads"])
def test_a_teacher_that_is_damaged(where):
    teacher = make("llama", 2)
    teacher.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(UserError, match="its logits are not numbers"):
        run(make("llama", 1), teacher, GROUPS["one"], 0.9 if where == "where it draws" else 0.0)
