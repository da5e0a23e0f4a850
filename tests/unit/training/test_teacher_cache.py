"""The teacher's hidden states on disk.

They are read as they were computed, and after a kill only as far as the checkpoint goes.
"""

import pytest
import torch
from onpolicy_case import COUNT, PROMPTS, Prompts, pair, settings, task

from minillm import objectives
from minillm.models.head import response_hidden
from minillm.runtime.processes import World
from minillm.training import dev_set
from minillm.training.dev_set import losses
from minillm.training.teacher_cache import TeacherCache

WORLD = World(0, 1, torch.device("cpu"))
LENGTHS, WIDTH = [3, 1, 4, 2], 5
STATES = [torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(n)).bfloat16() for n in LENGTHS]


def opened(tmp_path):
    return TeacherCache(tmp_path / "teacher", LENGTHS, WIDTH, torch.bfloat16, WORLD)


def asked(cache, examples, shift=0.0):
    """(hidden states, whether they had to be computed)."""
    calls = []

    def compute():
        calls.append(1)
        return torch.cat([STATES[i] + shift for i in examples])

    return cache.hidden(examples, compute, WORLD.device), bool(calls)


def test_a_second_epoch_reads_what_the_first_computed(tmp_path):
    cache = opened(tmp_path)
    for batch in ([2, 0], [1, 3]):
        found, computed = asked(cache, batch)
        assert computed and torch.equal(found, torch.cat([STATES[i] for i in batch]))
    found, computed = asked(cache, [3, 0, 2], shift=1.0)
    assert not computed and torch.equal(found, torch.cat([STATES[i] for i in (3, 0, 2)]))


def test_examples_that_are_there_keep_their_values(tmp_path):
    cache = opened(tmp_path)
    asked(cache, [0])
    found, computed = asked(cache, [1, 0], shift=1.0)
    assert computed and torch.equal(found, torch.cat([STATES[1] + 1.0, STATES[0]]))


def test_what_came_after_the_checkpoint_is_computed_again(tmp_path):
    cache = opened(tmp_path)
    asked(cache, [0])
    cache.save()
    asked(cache, [1])
    again = opened(tmp_path)
    assert not asked(again, [0], shift=1.0)[1]
    assert asked(again, [1])[1]


@pytest.mark.parametrize(("free", "fits"), [(1000, True), (150, False)])
def test_half_of_the_free_space_is_left(tmp_path, monkeypatch, free, fits):
    """10 tokens of 5 numbers of 2 bytes."""
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": free}))
    assert TeacherCache.fits(tmp_path, LENGTHS, WIDTH, torch.bfloat16) is fits


def test_a_dev_set_is_read_once_by_the_teacher(monkeypatch):
    """From the second look on its hidden states are those of the first; the student's are new."""
    student, teacher = pair()
    dev = task(teacher, settings("paper")).dev
    examples = [(PROMPTS[i], Prompts().response(i)) for i in range(COUNT)]
    wanted = {"forward_kl": objectives.forward_kl}
    kept, passes, plain = {}, [], response_hidden

    def watched(model, batch):
        passes.append(model)
        return plain(model, batch)

    monkeypatch.setattr(dev_set, "response_hidden", watched)
    first = losses(student, examples, dev, WORLD, teacher, wanted, kept=kept)
    count = len(passes)
    assert count == len(kept) > 0 and all(model is teacher for model in passes)
    assert losses(student, examples, dev, WORLD, teacher, wanted, kept=kept) == first and len(passes) == count
    with torch.no_grad():
        next(student.parameters()).mul_(1.5)
    changed = losses(student, examples, dev, WORLD, teacher, wanted, kept=kept)
    assert (
        changed == losses(student, examples, dev, WORLD, teacher, wanted)
        and changed != first
        and len(passes) == 2 * count
    )
