"""Where samples come from: gold, replayed and fresh rows, the same on every rank.

Also what is remembered, and when the guard stops.
"""

import types
from pathlib import Path

import numpy as np
import pytest
from onpolicy_case import COUNT, EOS, WHOLE, OneProcess, Prompts, Tokenizer, pair, rollouts, settings
from ranks import ranks
from torch.testing import assert_close

from minillm.config.launch import Launch
from minillm.config.sections import Sampling
from minillm.counts import repetition
from minillm.errors import UserError
from minillm.runtime import shared_rows
from minillm.sampling.sample import Mixture, Record, sample
from minillm.training.dev_set import Dev
from minillm.training.onpolicy import guard, mini_batch
from minillm.training.rollouts import Entry, Memory, choose, collect_rollouts, together

KD = {"objective": "forward_kl", "alpha": 0.0}


def kinds(plan):
    return [
        "fresh" if isinstance(entry, int) else "gold" if entry.response[-1] == 0 else "replayed"
        for entry in plan
    ]


def test_shares_of_gold_and_fresh_rows():
    chosen = settings("default", **KD, student_share=0.3, collections=400)
    found = [k for c in range(400) for k in kinds(choose(Prompts(), chosen, Memory(0.3), c, 7))]
    assert found.count("fresh") / len(found) == pytest.approx(0.3, abs=0.03)
    assert "replayed" not in found
    assert set(kinds(choose(Prompts(), chosen, Memory(1.0), 0, 7))) == {"fresh"}
    assert set(kinds(choose(Prompts(), chosen, Memory(0.0), 0, 7))) == {"gold"}


def test_a_full_buffer_takes_over_with_time():
    chosen = settings("default", **KD, replay=4, collections=400)
    memory = Memory(1.0, buffer=[Entry(i, np.array([9, 9], dtype=np.int32)) for i in range(4)])
    early, late = (
        [k for c in span for k in kinds(choose(Prompts(), chosen, memory, c, 7))]
        for span in (range(40), range(360, 400))
    )
    assert early.count("replayed") / len(early) == pytest.approx(0.05, abs=0.05)
    assert late.count("replayed") / len(late) == pytest.approx(0.95, abs=0.05)
    memory.buffer.pop()
    assert set(kinds(choose(Prompts(), chosen, memory, 399, 7))) == {"fresh"}, "not full yet"


def test_what_is_stored():
    record = Record(*np.zeros((5, 1), dtype=np.float32))
    entries = [Entry(i, np.array([i], dtype=np.int32), True, record if i % 2 else None) for i in range(6)]
    memory = Memory(1.0)
    memory.store(entries, 2)
    assert [e.row for e in memory.buffer] == [3, 5] and all(e.record is None for e in memory.buffer)
    memory.store(entries, 0)
    assert memory.buffer == []


def test_the_students_share_grows_when_the_dev_loss_rises():
    chosen = settings("default", **KD, student_share=0.0, adaptive=True)
    memory = Memory(0.0)
    for loss, share in ((2.0, 0.0), (2.05, 0.0), (2.1, 0.1), (2.15, 0.1), (1.0, 0.1), (2.3, 0.2)):
        memory.look(loss, chosen)
        assert memory.student_share == pytest.approx(share)
    fixed = Memory(0.5)
    for loss in (1.0, 9.0):
        fixed.look(loss, settings("default", **KD))
    assert fixed.student_share == 0.5


@pytest.mark.parametrize("coins", [None, 0, 1, 3])
def test_collections_are_the_same_whatever_the_number_of_ranks_and_of_rows_in_a_batch(
    coins, tmp_path, monkeypatch
):
    """Some rows are gold: the teacher reads those in a pass of its own."""
    chosen = settings("default", student_share=0.6, coins=coins)
    dev = Dev([], [], Tokenizer(), Sampling(), 11, 8, 0)

    def run(size, batch, folder=tmp_path):
        # Each rank has its own: while it samples, their layers are replaced.
        pairs = [pair() for _ in range(size)]

        def rank(world):
            student, teacher = pairs[world.rank]
            engine = OneProcess(student, WHOLE, world)
            engine.model, engine.launch = student, Launch(eval_batch=batch)
            return collect_rollouts(engine, teacher, Prompts(), dev, chosen, Memory(0.6), 0, 3)

        monkeypatch.setattr(shared_rows, "FOLDER", folder)
        made = ranks(size, rank)
        for other in made[1:]:
            for name in ("mask", "student_logprobs", "teacher_hidden"):
                assert_close(getattr(other, name), getattr(made[0], name), atol=0, rtol=0)
        return made[0]

    one = run(1, 3)
    # The last without room in the folder of shared memory.
    for other in (run(2, 3), run(3, 1), run(1, 8), run(2, 3, tmp_path / "no room")):
        assert [r.tolist() for r in one.responses] == [r.tolist() for r in other.responses]
        for name in ("mask", "student_logprobs", "teacher_logprobs", "reverse_kl", "teacher_hidden"):
            assert_close(getattr(other, name), getattr(one, name), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("groups", [None, [0] * 40])
def test_a_response_holds_nothing_of_its_batch(groups):
    """A view would keep the arrays of all rows, and be sent to other processes with them."""
    short = min(run_sampling(groups), key=lambda response: len(response.tokens))
    for values in (short.tokens, short.record.entropy):
        base = values if values.base is None else values.base
        assert base.nbytes <= 5 * values.nbytes
    assert short.record.teacher_hidden.untyped_storage().nbytes() == short.record.teacher_hidden.nbytes


def run_sampling(groups):
    student, teacher = pair()
    return sample(
        student,
        [np.array([1, 2, 3], dtype=np.int32)] * 40,
        range(40),
        Sampling(max_tokens=30),
        seed=1,
        step=0,
        ends=[EOS],
        pad=EOS,
        vocabulary=11,
        mixture=Mixture(teacher, 0.3, groups),
        record=True,
        batch=40,
    )


def test_what_was_not_sampled_now_is_recorded_as_zero():
    student, teacher = pair()
    made = rollouts(student, teacher, settings("default"))
    gold = together(Prompts(), [Entry(i, Prompts().response(i)) for i in range(COUNT)], True)
    assert gold.summary["fresh"] == 0.0 and "entropy" not in gold.summary
    assert (gold.student_logprobs == 0).all() and gold.mask.sum() == 3 * COUNT
    assert (
        made.summary["fresh"] == 1.0
        and made.summary["rollout_reverse_kl"] > 0
        and made.summary["entropy"] > 0
    )


def test_repetition():
    assert repetition(np.array([1, 2, 3])) == 0.0
    assert repetition(np.array([1, 2, 3, 4, 1, 2, 3, 4])) == pytest.approx(1 / 5)


def test_mini_batches_are_permutations():
    chosen = settings("default", batch=2, inner_epochs=3)
    epochs = [
        sorted(i for update in range(4) for i in mini_batch(chosen, 1, 0, inner, update))
        for inner in range(3)
    ]
    assert all(epoch == list(range(COUNT)) for epoch in epochs)
    orders = {
        tuple(i for u in range(4) for i in mini_batch(chosen, 1, c, inner, u))
        for c in (0, 1)
        for inner in range(3)
    }
    assert len(orders) == 6


@pytest.mark.parametrize(
    ("limits", "summary", "message"),
    [
        (
            {"stop_length": 2.0},
            {"response_length": 21.0},
            "stop_length: response length is 21 at step 5, from 10 at the start",
        ),
        ({"stop_length": 2.0}, {"response_length": 4.0}, "stop_length: response length is 4"),
        ({"stop_kl": 1.5}, {"rollout_reverse_kl": 1.6}, "stop_kl: rollout reverse kl is 1.6"),
    ],
)
def test_the_guard_stops(limits, summary, message):
    first = {"response_length": 10.0, "rollout_reverse_kl": 1.0}
    engine = types.SimpleNamespace(step=5, folder=Path("run"))
    memory = Memory(1.0)
    made = types.SimpleNamespace(summary=first)
    guard(made, memory, settings("default", **limits), engine)
    after = types.SimpleNamespace(summary=first | summary)
    guard(after, memory, settings("default"), engine)  # off by default
    with pytest.raises(UserError, match=message):
        guard(after, memory, settings("default", **limits), engine)


def test_a_dev_loss_that_is_no_number_is_not_remembered():
    chosen = settings("default", **KD, student_share=0.0, adaptive=True)
    memory = Memory(0.0)
    for loss in (float("nan"), 2.0, float("inf"), 2.2):
        memory.look(loss, chosen)
    assert memory.dev_loss == 2.2 and memory.student_share == pytest.approx(0.1)


def test_the_guard_begins_with_the_first_value_that_there_is():
    """A first collection of gold responses alone has no reverse KL of samples."""
    engine, memory = types.SimpleNamespace(step=5, folder=Path("run")), Memory(0.0)
    chosen = settings("default", **KD, student_share=0.0, stop_kl=1.5)
    for reverse_kl in (None, float("nan"), 1.0, 1.4):
        summary = {"response_length": 10.0} | (
            {} if reverse_kl is None else {"rollout_reverse_kl": reverse_kl}
        )
        guard(types.SimpleNamespace(summary=summary), memory, chosen, engine)
    with pytest.raises(UserError, match="stop_kl: rollout reverse kl is 1.6 at step 5, from 1 at the start"):
        guard(types.SimpleNamespace(summary={"rollout_reverse_kl": 1.6}), memory, chosen, engine)
