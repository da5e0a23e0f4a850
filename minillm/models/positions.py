"""How many tokens a model takes, compared with what it will be given before it gets any."""

from __future__ import annotations

from transformers import PreTrainedModel

from minillm.errors import UserError


def positions_of(model: PreTrainedModel) -> int | None:
    """Most tokens, prompt and response together, that the model was made for; None if there is no limit.

    Learned positions end there with an IndexError, rotary ones give worse and worse answers.
    """
    if getattr(model.config, "alibi", False):
        return None
    # The second is MPT's. What other families call theirs (n_positions) is mapped to the first.
    for key in ("max_position_embeddings", "max_seq_len"):
        if limit := getattr(model.config, key, None):
            return int(limit)
    return None


def check_positions(model: PreTrainedModel, tokens: int, what: str, name: object = "") -> None:
    """Raises UserError if `tokens` are more than the model takes; `what` says, with keys, why so many.

    `name` stands for the model; by default the folder that it was loaded from.
    """
    limit = positions_of(model)
    if limit is not None and tokens > limit:
        name = name or model.name_or_path or type(model).__name__
        raise UserError(
            f"{name}: the model has {limit} positions, but {what}; lower that, or take a model with a longer "
            "context"
        )
