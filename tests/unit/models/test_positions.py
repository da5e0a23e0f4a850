"""What models take at most, and who asks before they get more."""

from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, make

from minillm.config.sections import Sampling
from minillm.errors import UserError
from minillm.models.positions import check_positions, positions_of
from minillm.sampling.sample import Mixture, sample
from minillm.training.lengths import check_rows

UNLIMITED = {"bloom", "falcon-alibi"}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_as_many_as_it_says_it_takes(name):
    model = make(ARCHITECTURES[name], 1)
    limit = positions_of(model)
    assert limit == (None if name in UNLIMITED else 64)
    with torch.no_grad():
        assert model(torch.ones(1, limit or 200, dtype=torch.long)).logits.isfinite().all()
    check_positions(model, limit or 10**6, "")
    if name in ("gpt2", "opt", "opt-350m", "gptj", "gpt_neo"):
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.ones(1, 65, dtype=torch.long))


@pytest.mark.parametrize("shorter", ["student", "teacher"])
def test_sampling_asks_both_models_first(shorter):
    small, large = make(ARCHITECTURES["gpt2"], 1), make(ARCHITECTURES["bloom"], 1)
    student, teacher = (small, large) if shorter == "student" else (large, small)
    shared = {"seed": 0, "step": 0, "ends": [0], "pad": 12, "vocabulary": 11}

    def answers(length):
        prompts, sampling = (
            [np.ones(60, dtype=np.int32), np.ones(2, dtype=np.int32)],
            Sampling(max_tokens=length),
        )
        return sample(student, prompts, [0, 1], sampling, mixture=Mixture(teacher, 0.5), **shared)

    assert len(answers(5)) == 2
    with pytest.raises(
        UserError, match="64 positions, but a prompt has 60 tokens and max_tokens is 6; lower"
    ):
        answers(6)


def rows_of(folder: Path, lengths) -> Path:
    """A data folder with rows of these (prompt, response) lengths."""
    for split in ("train", "dev"):
        part = np.asarray(lengths[split])
        np.save(folder / f"{split}.lengths.npy", part.astype(np.int32))
        np.save(folder / f"{split}.tokens.npy", np.ones(part.sum(), dtype=np.int32))
    return folder


@pytest.mark.parametrize(
    ("train", "dev", "max_tokens", "says"),
    [
        ([(60, 4), (3, 61)], [(59, 1)], 5, None),
        ([(60, 4), (3, 62)], [(59, 1)], 5, "a train row has 65 tokens (data.max_prompt, data.max_response)"),
        ([(6, 4)], [(59, 6)], 5, "a dev row has 65 tokens"),
        ([(60, 4)], [(59, 1)], 6, "a train prompt has 60 tokens (data.max_prompt) and max_tokens is 6"),
    ],
)
def test_training_asks_for_rows_and_samples_first(tmp_path, train, dev, max_tokens, says):
    model, data = make(ARCHITECTURES["gpt2"], 1), rows_of(tmp_path, {"train": train, "dev": dev})
    if says is None:
        check_rows(model, data, max_tokens)
        examples = [(np.ones(60), np.ones(5))]
        with pytest.raises(UserError, match="64 positions, but a prompt and its response have 65 tokens"):
            check_rows(model, data, max_tokens, examples)
        check_rows(make(ARCHITECTURES["bloom"], 1), data, max_tokens, examples)
    else:
        with pytest.raises(UserError) as error:
            check_rows(model, data, max_tokens)
        assert f"GPT2LMHeadModel: the model has 64 positions, but {says}" in str(error.value)
