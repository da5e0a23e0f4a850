"""Two models that read prompts of their own and end responses with tokens of their own."""

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES
from architectures import make as architecture
from tiny_models import make
from torch.testing import assert_close

from minillm.config.sections import Sampling
from minillm.data import batching
from minillm.errors import UserError
from minillm.models import tiled_loss
from minillm.sampling.sample import Mixture, sample

VOCABULARY, PAD, HORIZON, ALPHA, TEMPERATURE = 11, 12, 14, 0.3, 3.0
# The student ends with 0 or 8, of which 0 is its own; the teacher with 2.
ENDS, END = [0, 8], 2
OURS = [
    np.array(ids, dtype=np.int32)
    for ids in ([3, 4, 5, 6], [7], [1, 2], [9, 8, 7, 6, 5], [0, 4], [2], [5, 5, 1], [10, 3])
]
# Longer ones for some rows, shorter ones for others.
THEIRS = [
    np.array(ids, dtype=np.int32)
    for ids in ([1], [7, 7, 3, 10, 2, 4, 6], [5], [9, 8], [0, 4, 1, 1], [2, 3, 2], [6], [10, 3, 1, 4, 5, 9])
]
COUNT = len(OURS)
WAYS = {"tokens": None, "one": [0] * COUNT, "threes": [i // 3 for i in range(COUNT)], "rows": [*range(COUNT)]}
NAMES = ("student_logprobs", "teacher_logprobs", "mixture_logprobs", "reverse_kl", "entropy")


def run(student, teacher, groups, rows=range(COUNT), theirs=THEIRS, end=END, ends=ENDS, **more):
    """Samples of the mixture for these rows, with records."""
    mixture = Mixture(
        teacher,
        more.pop("alpha", ALPHA),
        None if groups is None else [groups[i] for i in rows],
        None if theirs is None else [theirs[i] for i in rows],
        end,
    )
    defaults = {"seed": 3, "step": 2, "ends": ends, "pad": PAD, "vocabulary": VOCABULARY, "record": True}
    chosen = Sampling(temperature=TEMPERATURE, max_tokens=HORIZON)
    return sample(student, [OURS[i] for i in rows], list(rows), chosen, mixture=mixture, **(defaults | more))


def law(model, prompt, tokens, order):
    """Log-probabilities of each position of a response, from one pass over the whole row."""
    ids = torch.tensor([prompt.tolist() + tokens.tolist()])
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits[0, len(prompt) - 1 : -1, order]
    return (logits / TEMPERATURE).log_softmax(-1)


def check(student, teacher, found, alpha=ALPHA, rows=range(COUNT)):
    """Every recorded value against whole passes of each model over its own prompt and the response."""
    exchanged = [END, 1, 0, *range(3, VOCABULARY)]
    for i, response in zip(rows, found, strict=True):
        at = torch.from_numpy(response.tokens).long()[:, None]
        q = law(student, OURS[i], response.tokens, [*range(VOCABULARY)])
        p = law(teacher, THEIRS[i], response.tokens, exchanged)
        mixture = (alpha * p.exp() + (1 - alpha) * q.exp()).log()
        expected = [x.gather(1, at)[:, 0] for x in (q, p, mixture)]
        expected += [(q.exp() * (q - p)).sum(-1), -(q.exp() * q).sum(-1)]
        for name, values in zip(NAMES, expected, strict=True):
            recorded = torch.from_numpy(getattr(response.record, name)).to(values.dtype)
            assert_close(recorded, values, atol=1e-5, rtol=0, msg=name)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "names", [("gpt2", "llama"), ("llama", "mistral-sliding"), ("gemma3", "opt"), ("qwen2", "gpt_neo")]
)
def test_recorded_values_are_those_of_whole_passes(names, way):
    student, teacher = (architecture(ARCHITECTURES[n], seed).double() for seed, n in enumerate(names, 1))
    found = run(student, teacher, WAYS[way])
    check(student, teacher, found)
    last = [r.tokens[-1] for r in found if r.finished]
    assert set(last) <= set(ENDS) and len({len(r.tokens) for r in found}) > 3
    for response in found:
        assert not set(response.tokens[:-1].tolist()) & set(ENDS)
        assert response.finished or len(response.tokens) == HORIZON


def test_each_end_ends_and_is_recorded():
    """Many seeds: responses end by either token, and the teacher's end is an ordinary one."""
    student, teacher = make("gpt2", 1).double(), make("llama", 2).double()
    last, inside = set(), set()
    for seed in range(6):
        found = run(student, teacher, None, seed=seed)
        check(student, teacher, found)
        last |= {int(r.tokens[-1]) for r in found if r.finished}
        inside |= {int(token) for r in found for token in r.tokens[:-1]}
    assert last == set(ENDS) and END in inside


@pytest.mark.parametrize("way", ["tokens", "one", "rows"])
def test_in_pieces(way, monkeypatch):
    """Few positions and tokens at once, which is how the prompts of each model are grouped."""
    student, teacher = make("gpt2", 1).double(), make("opt", 2).double()
    whole = run(student, teacher, WAYS[way])
    monkeypatch.setattr(batching, "CPU_POSITIONS", 12)
    monkeypatch.setattr(tiled_loss, "TILE", 2 * VOCABULARY)
    pieces = run(student, teacher, WAYS[way])
    assert [r.tokens.tolist() for r in pieces] == [r.tokens.tolist() for r in whole]
    check(student, teacher, pieces)


@pytest.mark.parametrize("way", WAYS)
def test_rows_do_not_depend_on_their_batch(way):
    student, teacher = make("qwen2", 1).double(), make("gpt2", 2).double()
    whole = [r.tokens.tolist() for r in run(student, teacher, WAYS[way])]
    for batch, budget in ((3, 0), (1, 0), (8, 44)):
        found = run(student, teacher, WAYS[way], batch=batch, budget=budget)
        assert [r.tokens.tolist() for r in found] == whole
    turned = run(student, teacher, WAYS[way], rows=range(COUNT)[::-1], batch=5)
    assert [r.tokens.tolist() for r in turned][::-1] == whole


@pytest.mark.parametrize("alpha", [0.0, 0.3])
@pytest.mark.parametrize("way", WAYS)
def test_equal_prompts_and_ends_change_no_bit(way, alpha):
    """A copy of the student's prompts in the teacher's place, and the student's end as the teacher's."""
    student, teacher = make("llama", 1), make("gpt2", 2)
    plain = run(student, teacher, WAYS[way], theirs=None, end=None, ends=[0], alpha=alpha)
    same = run(student, teacher, WAYS[way], theirs=[x.copy() for x in OURS], end=0, ends=[0], alpha=alpha)
    for a, b in zip(plain, same, strict=True):
        assert a.tokens.tolist() == b.tokens.tolist() and a.finished == b.finished
        for name in NAMES:
            assert (getattr(a.record, name) == getattr(b.record, name)).all()
        assert torch.equal(a.record.teacher_hidden, b.record.teacher_hidden)


def test_the_teachers_hidden_states_are_those_of_its_own_prompts():
    student, teacher = make("gpt2", 1).double(), make("llama", 2).double()
    for groups in WAYS.values():
        for theirs, response in zip(THEIRS, run(student, teacher, groups), strict=True):
            ids = torch.tensor([theirs.tolist() + response.tokens.tolist()])
            with torch.no_grad():
                states = teacher.base_model(ids).last_hidden_state[0, len(theirs) - 1 : -1]
            assert_close(response.record.teacher_hidden, states, atol=1e-10, rtol=0)


def test_a_teachers_prompt_that_is_too_long_and_one_too_few():
    student, teacher = make("llama", 1), make("gpt2", 2)
    long = [np.ones(60, dtype=np.int32), *THEIRS[1:]]
    with pytest.raises(UserError, match="64 positions, but a prompt has 60 tokens"):
        run(student, teacher, None, theirs=long)
    with pytest.raises(ValueError, match="7 prompts for the teacher, 8"):
        sample(
            student, OURS, range(COUNT), Sampling(max_tokens=2), seed=0, step=0, ends=ENDS, pad=PAD,
            vocabulary=VOCABULARY, mixture=Mixture(teacher, 0.5, prompts=THEIRS[1:]),
        )  # fmt: skip
