"""HPD in supervised training: loss and gradient by hand, however it is split, and what is drawn."""

import numpy as np
import pytest
import torch
from hpd_case import hpd_by_hand, numbers_by_hand
from onpolicy_case import COUNT, EOS, PROMPTS, VOCABULARY, OneProcess, Tokenizer, pair
from torch.testing import assert_close

from minillm.config.launch import Launch
from minillm.config.sections import Sampling
from minillm.training.dev_set import Dev
from minillm.training.hybrid_policy import numbers
from minillm.training.supervised import Supervision

IDS = [40, 3, 17, 5, 90, 2, 61, 8]
EXAMPLES = [
    (prompt, np.append(np.random.default_rng(i).integers(1, VOCABULARY, i % 6), EOS).astype(np.int32))
    for i, prompt in enumerate(PROMPTS)
]


def supervision(student, teacher, launch, step=3, pad=EOS):
    dev = Dev([], [], Tokenizer(pad_token_id=pad), Sampling(), VOCABULARY, 8, 0)
    engine = OneProcess(student, launch, step=step)
    return Supervision(engine, EXAMPLES, dev, (), teacher, 1.0, None, draws=(11, IDS))


def gradient(student, work, chosen=range(COUNT)):
    student.zero_grad()
    parts, loss = work.micro_batches(list(chosen))
    total = torch.stack([loss(part)[0] for part in parts]).sum()
    total.backward()
    return total.item(), {name: p.grad.clone() for name, p in student.named_parameters()}


def law(model, prompt, response):
    ids = torch.tensor([[*prompt.tolist(), *response.tolist()]])
    return model(ids, use_cache=False).logits[0, len(prompt) - 1 : -1, :VOCABULARY].log_softmax(-1)


def by_hand(student, teacher, step=3):
    student.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    for (prompt, response), id_ in zip(EXAMPLES, IDS, strict=True):
        with torch.no_grad():
            p = law(teacher, prompt, response)
        total = total + hpd_by_hand(law(student, prompt, response), p, response, 11, step, id_)
    total = total / sum(len(response) for _, response in EXAMPLES)
    total.backward()
    return total.item(), {name: p.grad.clone() for name, p in student.named_parameters()}


def assert_same(found, right):
    assert found[0] == pytest.approx(right[0], abs=1e-9)
    for name, values in right[1].items():
        assert_close(found[1][name], values, atol=1e-9, rtol=1e-9, msg=name)


@pytest.mark.parametrize(
    "launch",
    [Launch(micro_batch=COUNT), Launch(micro_batch=3), Launch(micro_batch=1), Launch(micro_tokens=30)],
    ids=("whole", "three", "one", "tokens"),
)
def test_the_loss_and_its_gradient(launch):
    student, teacher = pair()
    right = by_hand(student, teacher)
    assert max(x.abs().max() for x in right[1].values()) > 1e-4
    assert_same(gradient(student, supervision(student, teacher, launch)), right)
    # The order of the rows, the token that pads.
    work = supervision(student, teacher, launch, pad=7)
    assert_same(gradient(student, work, [3, 6, 1, 0, 7, 5, 2, 4]), right)


def test_each_step_draws_anew():
    student, teacher = pair()
    first, second = (by_hand(student, teacher, step)[0] for step in (3, 4))
    assert abs(first - second) > 1e-4
    for step, right in ((3, first), (4, second)):
        found = gradient(student, supervision(student, teacher, Launch(micro_batch=3), step))
        assert found[0] == pytest.approx(right, abs=1e-9)


def test_every_case_of_the_advantages_occurs():
    """Otherwise the comparison above would not see them."""
    student, teacher = pair()
    cases = set()
    for (prompt, response), id_ in zip(EXAMPLES, IDS, strict=True):
        with torch.no_grad():
            q, p = (law(model, prompt, response).exp() for model in (student, teacher))
        for t, u in enumerate(numbers_by_hand(11, 3, id_, len(response))):
            y, other = int(response[t]), int((q[t].cumsum(0) <= u).sum())
            cases.add((bool(p[t, y] > q[t, y]), bool(p[t, other] < q[t, other]), y == other))
    assert cases >= {(True, True, False), (True, False, False), (False, True, False), (False, False, False)}
    assert any(same for *_, same in cases)


def test_numbers_come_from_the_row_and_the_position():
    lengths = [4, 2, 7]
    found = numbers(5, 6, [9, 1, 3], lengths).split(lengths)
    for values, row, length in zip(found, [9, 1, 3], lengths, strict=True):
        assert values.tolist() == numbers_by_hand(5, 6, row, length).tolist()
        assert torch.equal(values, numbers(5, 6, [row], [length]))


def test_a_teacher_that_is_the_student():
    """k is 0 at every token, so nothing is learnt."""
    student, _ = pair()
    loss, found = gradient(student, supervision(student, student, Launch(micro_batch=3)))
    assert abs(loss) < 1e-9 and max(x.abs().max() for x in found.values()) < 1e-9
