"""Bytes and kernels of single passes, from the package's own code run on fake tensors.

A fake tensor has a shape and a storage without memory, so a pass over a model of any size takes a fraction of
a second and says what autograd keeps, what a tile of the loss takes and what the backward pass adds.  Blocks
are alike: one or two of them are run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel

from minillm.config.onpolicy import OnPolicy
from minillm.config.sampling import Sampling
from minillm.fits.sizes import Size, build
from minillm.fits.tensor_bytes import TensorBytes
from minillm.models import logit_product, tiled_loss
from minillm.models.head import head_of, logits_by_tile, response_losses
from minillm.models.loading import without_dropout
from minillm.models.tiled_loss import Compilable, Head
from minillm.sampling.draw import Replacement, draw, draw_and_record
from minillm.sampling.logit_filters import Filters
from minillm.training.sample_loss import SampleLoss
from minillm.training.supervised_loss import TokenLoss

# Numbers of blocks that are run.
FEW, MORE = 1, 2


# Constants of a tile's tokens.
Constants = Callable[[slice], tuple[Tensor | None, ...]]


@dataclass(frozen=True)
class Rows:
    """Rows that are computed at once: `count` of `width` positions, of which `targets` have a loss."""

    count: int
    width: int
    targets: int

    @property
    def tokens(self) -> int:
        """Tokens with a loss."""
        return self.count * self.targets


@dataclass(frozen=True)
class How:
    """How a pass is run: precision, device ("cuda" or "cpu"), and what keeps or recomputes activations."""

    dtype: torch.dtype
    device: str
    dropout: bool = False
    checkpointing: bool = False
    attention: str = "auto"


@dataclass(frozen=True)
class Update:
    """Bytes of a micro-batch above weights and gradients, at its largest moment in each part.

    activations: what autograd keeps of the blocks until the backward pass.  tiles: what the loss takes on top
    (logits of a tile, gradients of a block of logits and of the output matrix).  backward: what the backward
    pass takes on top of both.
    """

    activations: int
    tiles: int
    backward: int

    @property
    def peak(self) -> int:
        """Their sum."""
        return self.activations + self.tiles + self.backward


@contextmanager
def _faked(how: How) -> Iterator[TensorBytes]:
    """Fake tensors, followed.  They are on a CPU, since no other can be made everywhere: a GPU's tiles and
    its products with the output matrix, in float32, are taken over."""
    with (
        FakeTensorMode(),
        mock.patch.object(tiled_loss, "TILE", _tile(how)),
        mock.patch.object(logit_product, "_has_wide", lambda _: how.device == "cuda"),
        mock.patch.object(logit_product, "_mm", _in_float32),
        TensorBytes(inputs=False) as live,
    ):
        yield live


def _in_float32(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(len(a), b.shape[1], dtype=torch.float32)


def _model(size: Size, layers: int, how: How) -> PreTrainedModel:
    model = build(size.shape, layers, fused_dropout=how.device == "cuda")
    _convert(model, how.dtype)
    if how.attention != "auto":
        model.set_attn_implementation(how.attention)
    return model


def _convert(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Give `model` new weights in `dtype`: torch refuses to convert fake ones."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, values in module._parameters.items():
            if values is not None:
                made.setdefault(
                    id(values), nn.Parameter(torch.empty(values.shape, dtype=dtype), values.requires_grad)
                )
                module._parameters[name] = made[id(values)]


def _batch(rows: Rows, tokens: int) -> Any:
    """What models.head reads of a data.batching.Batch with so many tokens in the loss."""
    shape = rows.count, rows.width
    return SimpleNamespace(
        tokens=torch.zeros(shape, dtype=torch.long),
        attention=torch.ones(shape, dtype=torch.long),
        positions=torch.zeros(shape, dtype=torch.long),
        start=rows.width - rows.targets,
        places=torch.zeros(tokens, dtype=torch.long),
    )


@dataclass(frozen=True)
class Loss:
    """A loss on tokens, to a teacher (if there is one) whose hidden states are there already.

    `settings`: of the loss on samples; without them cross-entropy, mixed with the KL to the teacher.
    """

    teacher: Size | None = None
    kd_ratio: float = 0.0
    settings: OnPolicy | None = None

    def vocabulary(self, size: Size) -> int:
        """The entries that student and teacher share; the rest is padding."""
        return min(size.vocabulary, self.teacher.vocabulary) if self.teacher else size.vocabulary

    def made(self, tokens: int, vocabulary: int, dtype: torch.dtype) -> tuple[Any, Constants]:
        """The function of a tile, and its constants."""
        ids = torch.zeros(tokens, dtype=torch.long)
        if self.settings is None:
            theirs = self._frozen(bool(self.kd_ratio), tokens, vocabulary, dtype)
            return TokenLoss(self.kd_ratio), lambda part: (ids[part], theirs(part) if theirs else None)
        values = [torch.zeros(tokens) for _ in range(3)]
        steps = self.settings.teacher_scores
        frozen = [
            self._frozen(wanted, tokens, vocabulary, dtype) for wanted in (steps, self.settings.anchored)
        ]
        further = tuple(self.settings.further_terms())
        weighted = [term.token_weights is not None for term in (self.settings, *further)]
        return SampleLoss(self.settings, further), lambda part: (
            ids[part],
            *(value[part] for value in values),
            *(logits(part) if logits else None for logits in frozen),
            torch.tensor(0.5) if self.settings.taid else None,
            torch.ones(len(further)) if any(term.until for term in self.settings.also or ()) else None,
            *(values[0][part] if weights else None for weights in weighted),
        )

    def _frozen(
        self, wanted: bool, tokens: int, vocabulary: int, dtype: torch.dtype
    ) -> Callable[[slice], Tensor] | None:
        if not wanted or self.teacher is None:
            return None
        hidden = torch.empty(tokens, self.teacher.width, dtype=dtype)
        weight = torch.empty(vocabulary, self.teacher.width, dtype=dtype)
        return logits_by_tile(hidden, Head(weight, None, vocabulary))


@functools.cache
def update(size: Size, rows: Rows, how: How, loss: Loss) -> Update:
    """What a micro-batch takes; gradients are dropped as soon as they are complete."""
    few = min(size.layers, FEW)
    found = _update(size, few, rows, how, loss)
    a_block = _kept(size, MORE, rows, how) - _kept(size, FEW, rows, how) if size.layers > few else 0
    # Hidden states of tokens that no tile needed, their gradient, and the teacher's.
    number = how.dtype.itemsize
    left = (rows.tokens - _tokens(rows, how, loss.vocabulary(size))) * size.width * number
    theirs = rows.tokens * loss.teacher.width * number if loss.teacher else 0
    return Update(
        found.activations + left + (size.layers - few) * a_block, found.tiles + left + theirs, found.backward
    )


@functools.cache
def _kept(size: Size, layers: int, rows: Rows, how: How) -> int:
    """Bytes that autograd keeps of so many blocks and what is before them."""
    with _faked(how) as live:
        model = _ready(size, layers, how)
        batch = _batch(rows, 0)
        before = live.now
        output = model.base_model(
            input_ids=batch.tokens,
            attention_mask=batch.attention,
            position_ids=batch.positions,
            use_cache=False,
        )
        # Which holds the graph.
        del batch
        kept = live.now - before
        del output
        return kept


def _ready(size: Size, layers: int, how: How) -> PreTrainedModel:
    """A model as runtime/engine.py trains it."""
    model = _model(size, layers, how)
    model.train(how.dropout or how.checkpointing)
    if how.checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        if not how.dropout:
            without_dropout(model)
    return model


def _tokens(rows: Rows, how: How, vocabulary: int) -> int:
    """Tokens that are run through the loss: those of two blocks, since further ones are like the second."""
    tile = max(1, _tile(how) // vocabulary)
    block = max(1, tiled_loss.BLOCK // (tile * vocabulary)) * tile
    return min(rows.tokens, 2 * block)


def _tile(how: How) -> int:
    return tiled_loss.TILE_GPU if how.device == "cuda" else tiled_loss.TILE


def _update(size: Size, layers: int, rows: Rows, how: How, loss: Loss) -> Update:
    with _faked(how) as live:
        model = _ready(size, layers, how)
        for values in (weight for weight in model.parameters() if weight.requires_grad):
            values.register_post_accumulate_grad_hook(_drop)
        vocabulary = loss.vocabulary(size)
        tokens = _tokens(rows, how, vocabulary)
        function, constants = loss.made(tokens, vocabulary, how.dtype)
        constants(slice(0, 1))
        live.follow(list(model.parameters()))
        before = live.restart()
        at_head: list[int] = []

        def given(part: slice) -> tuple[Tensor | None, ...]:
            at_head.append(live.now)
            return constants(part)

        tile = Compilable(function, given, lambda _: None, compile=False)
        asked = [(slice(None), tile, head_of(model, vocabulary))]
        total = response_losses(model, _batch(rows, tokens), asked).sum()
        forward = live.peak
        total.backward()  # type: ignore[no-untyped-call]
        kept = at_head[0] - before
        return Update(kept, forward - before - kept, max(0, live.peak - forward))


def _drop(values: Tensor) -> None:
    values.grad = None


@functools.cache
def without_gradient(size: Size, rows: Rows, how: How) -> int:
    """Bytes above the weights of a pass without gradients up to the output matrix."""
    with _faked(how) as live, torch.no_grad():
        model = _model(size, min(FEW, size.layers), how).eval()
        live.follow(list(model.parameters()))
        before = live.restart()
        batch = _batch(rows, 0)
        model.base_model(
            input_ids=batch.tokens,
            attention_mask=batch.attention,
            position_ids=batch.positions,
            use_cache=False,
        )
        return live.peak - before


@functools.cache
def position(
    rows: int, vocabulary: int, teacher: bool, alpha: float, record: bool, top_k: int = 0, top_p: float = 1.0
) -> int:
    """Bytes of drawing one token for each of `rows` rows, their logits included.

    `top_k`: of the teacher, which replaces other tokens; `top_p`: of the student.
    """
    with _faked(How(torch.float32, "cuda")) as live, torch.no_grad():
        logits = [torch.empty(rows, vocabulary) for _ in range(1 + teacher)]
        uniform = torch.zeros(rows, dtype=torch.float64)
        filters = Filters(Sampling(top_p=top_p), ())
        filtered = filters(uniform, logits[0]) if filters else None
        replacement = Replacement(top_k, uniform) if top_k else None
        draw_and_record(logits, alpha, uniform, record, filtered, replacement)
        return live.peak


@functools.cache
def by_coin(rows: int, vocabulary: int) -> int:
    """Bytes of drawing one token for each of `rows` rows, some of them by the teacher's logits."""
    with _faked(How(torch.float32, "cuda")) as live, torch.no_grad():
        heads = torch.zeros(rows, 1, dtype=torch.bool)
        logits = torch.where(heads, torch.empty(rows, vocabulary), torch.empty(rows, vocabulary))
        draw(logits.softmax(-1), torch.zeros(rows, dtype=torch.float64))
        return live.peak


@functools.cache
def recorded(tokens: int, vocabulary: int, alpha: float, device: str) -> int:
    """Bytes of a tile's values of tokens that were drawn by coins: about those of drawing its tokens."""
    tile = max(1, _tile(How(torch.float32, device)) // vocabulary)
    return position(min(tokens, tile), vocabulary, True, alpha, True)


@functools.cache
def kernels(size: Size) -> float:
    """Operations of one decoding step up to the output matrix that make or change a tensor, all layers."""
    counts = []
    how, rows = How(torch.bfloat16, "cuda"), Rows(2, 1, 1)
    for layers in (FEW, MORE):
        with _faked(how) as live, torch.no_grad():
            model = _model(size, layers, how).eval()
            batch, before = _batch(rows, 0), sum(live.operations.values())
            model.base_model(
                input_ids=batch.tokens,
                attention_mask=batch.attention,
                position_ids=batch.positions,
                use_cache=False,
            )
            counts.append(sum(live.operations.values()) - before)
    few, more = counts
    # The cache of a layer takes two more, one for keys and one for values.
    return few + (size.layers - FEW) * (more - few) / (MORE - FEW) + 2 * size.layers
