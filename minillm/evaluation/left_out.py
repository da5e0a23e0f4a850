"""`minillm layers`: which decoder layers a pruned student can do without, by the loss of what is left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from minillm.config.measurements.diversity import ReferenceLossSettings
from minillm.config.sections import Precision
from minillm.data.rows import Example
from minillm.data.sources import read_tests
from minillm.data.tokenizers import vocabulary_size
from minillm.errors import UserError
from minillm.evaluation.reference_loss import examples_of, losses
from minillm.models.loading import decoder_blocks, load_model, load_tokenizer, only_layers, special_tokens


def order(
    model: PreTrainedModel, examples: Sequence[Example], keep: int, *, vocabulary: int, pad: int, batch: int
) -> Iterator[tuple[int | None, float, tuple[int, ...]]]:
    """(layer left out, nats per reference token, layers left), one layer at a time until `keep` are left.

    The first is the whole model (no layer).  Each time the layer goes without which the loss is lowest; the
    layers before it stay out, so a pair of layers that stand in for each other does not go together, as it
    would by the losses of single layers.  That takes about n^2 / 2 passes over the examples for n layers.
    """
    tokens = sum(len(reference) for _, reference in examples)

    def loss(layers: Sequence[int]) -> float:
        with only_layers(model, tuple(layers)):
            return sum(losses(model, examples, vocabulary=vocabulary, pad=pad, batch=batch)) / tokens

    left = list(range(len(decoder_blocks(model))))
    yield None, loss(left), tuple(left)
    while len(left) > keep:
        found = {layer: loss([other for other in left if other != layer]) for layer in left}
        worst = min(found, key=lambda layer: found[layer])
        left.remove(worst)
        yield worst, found[worst], tuple(left)


def main(
    folder: Path, test: Path, keep: int, rows: int, batch: int, precision: Precision | None = None
) -> None:
    """Print a line for each layer left out, and the key `layers` of a model with the rest.

    Without a precision a GPU has bf16 and a CPU fp32, since many CPUs only emulate bf16.

    Raises UserError, one line, for a model without so many layers or a test set that is not there.
    """
    tokenizer, gpu = load_tokenizer(folder), torch.cuda.is_available()
    precision = precision or ("bf16" if gpu else "fp32")
    model = load_model(folder, precision, torch.device("cuda" if gpu else "cpu"))
    count = len(decoder_blocks(model))
    if not 0 < keep < count:
        raise UserError(f"--keep {keep}: the model has {count} layers; keep 1 to {count - 1}")
    settings = ReferenceLossSettings(
        stage="reference_loss", loss="tokens", precision=precision, max_response=256
    )
    read = read_tests(test)[:rows]
    examples = [examples_of(tokenizer, row, settings) for row in read]
    tokens, pad = sum(len(reference) for _, reference in examples), special_tokens(tokenizer)[1]
    print(f"{len(examples)} rows of {test}, {tokens} tokens of references")
    print("left out  nats per token", flush=True)
    kept: list[int] = []
    for layer, value, left in order(
        model, examples, keep, vocabulary=vocabulary_size(tokenizer), pad=pad, batch=batch
    ):
        print(f"{'none' if layer is None else layer:>8}  {value:.3f}", flush=True)
        kept = list(left)
    print(f"layers: {kept}")
