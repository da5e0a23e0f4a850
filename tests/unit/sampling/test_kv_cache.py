"""Prompts that are read in groups of similar length: hidden states, then and later, are those of one pass."""

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, make

from minillm.config.sections import Sampling
from minillm.data import batching
from minillm.sampling.kv_cache import Decoder
from minillm.sampling.progress import left_padded
from minillm.sampling.sample import Mixture, sample

PROMPTS = [
    np.array(ids, dtype=np.int32) for ids in ([3, 4, 5, 6, 7, 8, 9], [7], [1, 2], [9, 8, 7, 6, 5], [0, 4])
]
NEXT = torch.tensor([[3], [4], [5], [6], [7]])


def states(model, budget, keep):
    """Hidden states of the prompts and of two positions after them, the second for the rows `keep`."""
    lengths, width = [len(p) for p in PROMPTS], max(map(len, PROMPTS))
    tokens, attention = left_padded(PROMPTS, width + 2, 0)
    positions = (attention.cumsum(-1) - 1).clamp(min=0)
    decoder = Decoder(model, 11, 1.0, width + 2)
    parts = (tokens[:, :width], attention[:, :width], positions[:, :width])
    found = [decoder.prompts(*parts, lengths, budget)]
    found.append(decoder.hidden(NEXT, attention[:, : width + 1], positions[:, width : width + 1]))
    first = width - max(lengths[i] for i in keep)
    decoder.keep(keep, first)
    found.append(decoder.hidden(NEXT[keep], attention[keep, first : width + 2], positions[keep, width + 1 :]))
    return found


@pytest.mark.parametrize("budget", [1, 4, 8, 34])
@pytest.mark.parametrize("kind", FAMILIES)
def test_groups_are_one_pass(kind, budget):
    """In float64, where padding that holds anything but zeros, or a row in another's place, would show."""
    model, keep = make(kind, 1).double(), torch.tensor([1, 2, 3])
    with torch.no_grad():
        for whole, grouped in zip(states(model, 0, keep), states(model, budget, keep), strict=True):
            torch.testing.assert_close(grouped, whole, atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", FAMILIES)
def test_responses_stay(kind, monkeypatch):
    def responses():
        return sample(
            make(kind, 1),
            PROMPTS,
            range(5),
            Sampling(max_tokens=12),
            seed=1,
            step=2,
            ends=[0],
            pad=0,
            vocabulary=11,
            mixture=Mixture(make(kind, 2), 0.3),
            record=True,
        )

    whole = responses()
    monkeypatch.setattr(batching, "CPU_POSITIONS", 6)
    for a, b in zip(whole, responses(), strict=True):
        assert a.tokens.tolist() == b.tokens.tolist()
        for name in ("student_logprobs", "teacher_logprobs", "reverse_kl", "teacher_hidden"):
            np.testing.assert_allclose(getattr(b.record, name), getattr(a.record, name), atol=1e-4)
