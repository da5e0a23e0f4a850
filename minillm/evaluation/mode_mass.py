"""Stage `mode_mass`: a model's probability of all right answers of a prompt, by scoring each of them.

For test sets whose references are all right answers of a prompt.  Exact, but for other tokenisations of the
same text, which are left out: at temperature 1, the probability that a sample is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minillm.config.launch import Launch
from minillm.config.measurements.validity import ModeMassSettings
from minillm.data.prompts import encode
from minillm.data.rows import Example
from minillm.data.sources import read_tests
from minillm.data.tokenizers import vocabulary_size
from minillm.evaluation.reference_loss import losses
from minillm.evaluation.statistics import mean_and_error
from minillm.evaluation.validity import normal
from minillm.files import identity, origin, write_json
from minillm.models.loading import load_model, load_tokenizer, special_tokens
from minillm.models.positions import check_positions
from minillm.runtime.processes import start

# No right answer is cut.
ENDLESS = 2**31


def run_stage(settings: ModeMassSettings, launch: Launch, *, test: Path, model: Path, out: Path) -> None:
    """Write the mass of the right answers of `test` under `model`, in percent, to the metric file `out`.

    "mean" is the mean over prompts of the probability of all right answers together, "void" is what is left;
    "coverage" is the expected share of a prompt's right answers that `draws` samples reach, in percent;
    "forms" is the effective number of right answers, exp(entropy) of their probabilities made to sum to 1.
    Standard errors are over prompts; "logprobs" has each prompt's right answers in the references' order.
    """
    rows = sorted(read_tests(test), key=lambda row: row["id"])
    sources = {test: identity(test), model: identity(model)}
    world = start(0, launch.patience)
    tokenizer = load_tokenizer(model)
    loaded = load_model(model, settings.precision, world.device)
    examples: list[Example] = []
    counts = []
    for row in rows:
        answers = list({normal(text): text for text in row["references"]}.values())
        counts.append(len(answers))
        for answer in answers:
            chat = "messages" in row
            prompt, response, _ = encode(tokenizer, row["prompt"], answer, ENDLESS, chat)
            examples.append((np.asarray(prompt, dtype=np.int32), np.asarray(response, dtype=np.int32)))
    longest = max(len(prompt) + len(response) for prompt, response in examples)
    check_positions(loaded, longest, f"a prompt and a right answer have {longest} tokens")
    how = {"pad": special_tokens(tokenizer)[1], "batch": launch.micro_batch, "budget": launch.micro_tokens}
    mine = examples[world.rank :: world.size]
    parts = world.gather(losses(loaded, mine, vocabulary=vocabulary_size(tokenizer), **how))
    if world.rank == 0:
        logprobs = [-parts[i % world.size][i // world.size] for i in range(len(examples))]
        ends = np.cumsum(counts)[:-1]
        per_prompt = [part.tolist() for part in np.split(np.asarray(logprobs), ends)]
        head = {"metric": "mode_mass", "dataset": rows[0]["dataset"], "n": len(rows), "over": "prompts"}
        write_json(
            out,
            {
                **head,
                **summary(per_prompt, settings.draws),
                "draws": settings.draws,
                "ids": [row["id"] for row in rows],
                "logprobs": per_prompt,
                **origin(settings, sources),
            },
        )
    world.barrier()


def summary(logprobs: Sequence[Sequence[float]], draws: int) -> dict[str, Any]:
    """Mass, void, expected coverage (percent) and effective number, each with its error over prompts.

    logprobs: of each prompt's right answers, in nats.
    """
    masses, coverages, effective = [], [], []
    for values in logprobs:
        p = np.exp(np.asarray(values, dtype=np.float64))
        masses.append(100 * float(p.sum()))
        coverages.append(100 * float(np.mean(-np.expm1(draws * np.log1p(-np.minimum(p, 1 - 1e-15))))))
        # Relative to the likeliest, so that a mass that underflows still has its number of forms.
        share = np.exp(np.asarray(values) - np.max(values))
        share /= share.sum()
        effective.append(float(np.exp(-(share * np.log(np.maximum(share, 1e-300))).sum())))
    mass, mass_error = mean_and_error(masses)
    coverage, coverage_error = mean_and_error(coverages)
    forms, forms_error = mean_and_error(effective)
    return {
        "mean": mass,
        "standard_error": mass_error,
        "void": 100 - mass,
        "coverage": coverage,
        "coverage_error": coverage_error,
        "forms": forms,
        "forms_error": forms_error,
    }
