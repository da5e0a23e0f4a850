"""A model's weights without padding of the vocabulary, for programs that would draw it."""

from __future__ import annotations

import copy
from pathlib import Path

from transformers import PreTrainedModel


def save_cut(model: PreTrainedModel, vocabulary: int, folder: Path) -> None:
    """Write weights and configuration to `folder`: of embedding and head only the first `vocabulary` rows.

    Their logits are what they were.  The model is not changed.
    """
    head = model.get_output_embeddings()
    cut = [model.get_input_embeddings().weight, *head.parameters(recurse=False)]
    pointers = {weight.data_ptr() for weight in cut}
    state = {
        name: values[:vocabulary] if values.data_ptr() in pointers else values
        for name, values in model.state_dict().items()
    }
    model.save_pretrained(folder, state_dict=state)
    config = copy.deepcopy(model.config)
    config.get_text_config().vocab_size = vocabulary
    config.save_pretrained(folder)
