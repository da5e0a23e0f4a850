"""Operations of a job: those of matrix products and of attention, two for each multiplication.

Attention counts whole squares of positions, as torch's counter does, although a causal kernel may skip half
of them.  Padding is not counted.
"""

from __future__ import annotations

from minillm.fits.sizes import Size
from minillm.fits.work import Draw, Part, Read, Work

# A backward pass has two products for each of the forward pass; attention computes its scores again.
LINEAR, ATTENTION = 3.0, 3.5


def linear(size: Size, tokens: float) -> float:
    """The blocks' linear layers, once over `tokens`."""
    return 2.0 * size.matrices * tokens


def attention(size: Size, queries: float, keys: float) -> float:
    """Scores and weighted sums of all layers."""
    return 4.0 * size.layers * size.attention * queries * keys


def head(size: Size, tokens: float) -> float:
    """One product of `tokens` hidden states with the output matrix."""
    return 2.0 * size.head * tokens


def read(size: Size, rows: float, width: float) -> float:
    """The blocks, once over rows of `width` tokens."""
    return linear(size, rows * width) + rows * attention(size, width, width)


def update(part: Part, student: Size, recomputed: bool) -> float:
    """Forward and backward pass of a step's part; with `recomputed` activations one more forward pass.

    That ends before each block's last product, whose result nothing needs.
    """
    width = part.prompt + part.response
    # No gradient of what is frozen.
    total = LINEAR * linear(student, part.rows * width) - 2.0 * student.frozen * part.rows * width
    total += (ATTENTION + recomputed) * part.rows * attention(student, width, width)
    total += 2.0 * recomputed * (student.matrices - student.last) * part.rows * width
    total += (2 if student.frozen else 3) * head(student, part.rows * part.response)
    if part.loss.teacher is not None:
        total += part.reads * read(part.loss.teacher, part.rows, part.read[0])
        if part.scored:
            total += head(part.loss.teacher, part.rows * part.response)
    return total


def draw(draw: Draw) -> float:
    """Sampling, once: the prompts, then one token after the other, the last of which is not read."""
    total = 0.0
    later = draw.response - 1
    for model, prompts, times in zip(draw.models, draw.prompts, heads(draw), strict=True):
        one = read(model, 1, prompts.mean) + linear(model, later)
        one += attention(model, later, prompts.mean + draw.response / 2)
        total += draw.rows * (one + times * head(model, draw.response))
    return total


def heads(draw: Draw) -> list[float]:
    """How often each model's output matrix is applied to a token.

    With coins both are applied to record it, besides that of the model which draws.
    """
    if draw.coins is None or len(draw.models) == 1:
        return [1.0] * len(draw.models)
    return [2.0 - draw.alpha, 1.0 + draw.alpha]


def score(part: Read) -> float:
    """A pass without gradients, once."""
    return read(part.model, part.rows, part.tokens) + head(part.model, part.rows * part.targets)


def total(work: Work) -> float:
    """All operations of a job, of all processes together."""
    return (
        work.steps * sum(update(p, work.student, work.launch.gradient_checkpointing) for p in work.parts)
        + sum(d.times * draw(d) for d in work.draws)
        + sum(r.times * score(r) for r in work.reads)
    )
