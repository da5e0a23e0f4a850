"""What people bring: each architecture through mixed sampling and one update, or refused when it is loaded.

Rows end early, so that finished ones leave caches of full and sliding layers, and every row is compared with
the same row alone, and with a pass without any cache.
"""

import pytest
import torch
from architectures import ARCHITECTURES, REFUSED, make
from onpolicy_case import COUNT, EOS, PROMPTS, VOCABULARY, WHOLE, Prompts, gradient, settings, task
from torch.testing import assert_close

from minillm.config.launch import Launch
from minillm.config.sections import Sampling
from minillm.errors import UserError
from minillm.models.checks import check_model
from minillm.models.loading import load_model
from minillm.runtime.engine import Engine
from minillm.runtime.processes import start
from minillm.sampling.kv_cache import COMPACT_AT
from minillm.sampling.sample import Mixture, sample
from minillm.training.rollout_losses import micro_batches
from minillm.training.rollouts import Entry, together

# Of every architecture's rows, over a quarter end early with these random numbers, and not all.
LONGEST, TEMPERATURE, SEED = 14, 3.0, 3


def pair(name):
    return make(ARCHITECTURES[name], 1), make(ARCHITECTURES[name], 2)


def answers(student, teacher, rows=range(COUNT)):
    return sample(
        student,
        [PROMPTS[i] for i in rows],
        list(rows),
        Sampling(temperature=TEMPERATURE, max_tokens=LONGEST),
        seed=SEED,
        step=2,
        ends=[EOS],
        pad=12,
        vocabulary=VOCABULARY,
        mixture=Mixture(teacher, 0.3),
        record=True,
    )


def test_there_are_enough():
    assert len(ARCHITECTURES) >= 18


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_rows_together_are_rows_alone_and_those_of_no_cache(name):
    student, teacher = pair(name)
    found = answers(student, teacher)
    lengths = sorted(len(r.tokens) for r in found)
    # Over a quarter of the rows has left, and others are sampled beyond the window.
    left = sum(length <= 6 for length in lengths)
    assert COUNT - left <= COMPACT_AT * COUNT and lengths[-1] >= 8, lengths
    for i, row in enumerate(found):
        alone = answers(student, teacher, [i])[0]
        assert row.tokens.tolist() == alone.tokens.tolist()
        ids = torch.tensor([PROMPTS[i].tolist() + row.tokens.tolist()])
        for model, recorded in (
            (student, row.record.student_logprobs),
            (teacher, row.record.teacher_logprobs),
        ):
            with torch.no_grad():
                logits = model(ids, use_cache=False).logits[0, len(PROMPTS[i]) - 1 : -1, :VOCABULARY]
            expected = (
                (logits / TEMPERATURE)
                .log_softmax(-1)
                .gather(-1, torch.from_numpy(row.tokens)[:, None].long())
            )
            assert_close(torch.from_numpy(recorded), expected[:, 0], atol=2e-4, rtol=0)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_one_update_is_that_of_its_rows_and_moves_the_weights(name, tmp_path):
    student, teacher = pair(name)
    chosen = settings("released", warmup=0, lr=1e-2)
    entries = [Entry(i, r.tokens, r.finished, r.record) for i, r in enumerate(answers(student, teacher))]
    made, work = together(Prompts(), entries, True), task(teacher, chosen, pad=12)
    loss, whole = gradient(student, made, work, WHOLE)
    loss_alone, alone = gradient(student, made, work, Launch(micro_batch=1))
    assert loss == pytest.approx(loss_alone, rel=1e-4)
    size = max(g.abs().max().item() for g in whole.values())
    for key, value in whole.items():
        assert_close(value, alone[key], atol=1e-4 * size, rtol=1e-3)
    engine = Engine(student, chosen, Launch(micro_batch=2 * COUNT), start(0), "fp32", tmp_path, 2)
    before = {key: p.detach().clone() for key, p in student.named_parameters()}
    engine.update(
        *micro_batches(engine, task(engine.frozen(teacher), chosen, pad=12), made, list(range(COUNT)))
    )
    after = dict(engine.model.named_parameters())
    moved = [key for key, value in before.items() if not torch.equal(value, after[key])]
    assert all(p.isfinite().all() for p in after.values()) and len(moved) >= 0.9 * len(before)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_was_saved_is_what_is_loaded(name, tmp_path):
    model = make(ARCHITECTURES[name], 1)
    model.save_pretrained(tmp_path)
    state, ids = torch.get_rng_state(), torch.arange(1, 9)[None]
    loaded = load_model(tmp_path, "fp32")
    # Dropout's random numbers stay what they were.
    assert torch.equal(state, torch.get_rng_state())
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_supported_is_refused_when_it_is_loaded(name, tmp_path):
    architecture, why = REFUSED[name]
    model = make(architecture, 1)
    with pytest.raises(UserError, match=f"^here: {type(model).__name__} .*{why}") as error:
        check_model(model, "here")
    assert "\n" not in str(error.value)
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=why):
        load_model(tmp_path, "fp32")
