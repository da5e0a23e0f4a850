"""Losses with anchors and other teachers by hand: each row alone, in float64, without padding or tiles."""

from __future__ import annotations

import numpy as np
import torch
from onpolicy_case import VOCABULARY
from torch.testing import assert_close

LENGTHS = [3, 1, 5, 2, 4, 1, 6, 2]
GOLD = [
    np.array([*np.random.default_rng(50 + i).integers(1, VOCABULARY, n - 1), 0], dtype=np.int32)
    for i, n in enumerate(LENGTHS)
]


def at(model, prompt, response):
    """Logits at each token of a response, (length, vocabulary), with a gradient."""
    ids = torch.tensor([[*prompt.tolist(), *response.tolist()]])
    return model(ids, use_cache=False).logits[0, len(prompt) - 1 : -1, :VOCABULARY]


def numbers(model, prompt, response):
    """The same as an array."""
    with torch.no_grad():
        return at(model, prompt, response).numpy()


class ByHand:
    """Sums of losses whose derivatives by the student's logits are given, and then their gradient."""

    def __init__(self, student):
        self.student, self.value = student, 0.0
        self.weights = dict(student.named_parameters())
        self.gradient = {name: torch.zeros_like(weight) for name, weight in self.weights.items()}

    def add(self, prompt, response, token, weight):
        """`token(z_q, t)`: value and derivative by the logits of token t."""
        logits = at(self.student, prompt, response)
        found = [token(z, t) for t, z in enumerate(logits.detach().numpy())]
        self.value += weight * sum(value for value, _ in found)
        derivatives = torch.from_numpy(np.stack([derivative for _, derivative in found])) * weight
        parts = torch.autograd.grad(logits, list(self.weights.values()), derivatives, allow_unused=True)
        for name, part in zip(self.weights, parts, strict=True):
            if part is not None:
                self.gradient[name] += part

    def check(self, found, tolerance=1e-8):
        """`found`: (loss, gradient by parameter)."""
        assert abs(found[0] - self.value) < tolerance, (found[0], self.value)
        assert max(part.abs().max() for part in self.gradient.values()) > 1e-6
        for name, part in found[1].items():
            assert_close(part, self.gradient[name], atol=tolerance, rtol=tolerance)
        assert all(not part.any() for name, part in self.gradient.items() if name not in found[1])


def cross_entropy(z, token):
    """(-log q(token), its derivative by the logits)."""
    q = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    return -np.log(q[token]), q - np.eye(len(q))[token]


def differ(a, b):
    """The largest difference of two gradients."""
    return max((x - b[name]).abs().max().item() for name, x in a.items())
