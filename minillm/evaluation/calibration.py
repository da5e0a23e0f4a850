"""Stage `calibration`: zero-shot classification by the probabilities of label words, and its calibration.

The paper (its Table 2) gives no bins, normalisation or label words: both of two definitions of the confidence
are computed (docs/evaluation.md).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minillm.config.launch import Launch
from minillm.config.measurements.calibration import CalibrationSettings
from minillm.data.batching import collate, moved
from minillm.data.prepare import subset
from minillm.data.prompts import encode, render
from minillm.data.sources import Row, read_entries
from minillm.data.tokenizers import vocabulary_size
from minillm.errors import UserError
from minillm.evaluation.statistics import bootstrap_error, mean_and_error
from minillm.files import identity, origin, write_json
from minillm.models.head import response_logits
from minillm.models.loading import load_model, load_tokenizer, special_tokens
from minillm.models.positions import positions_of
from minillm.runtime.processes import start

RESAMPLES, BOOTSTRAP_SEED = 1000, 0


@dataclass(frozen=True)
class LabelQuestion:
    """A row as tokens: prompt and label words; `gold` is a label's place, `cut` the characters cut off."""

    id: int
    gold: int
    prompt: np.ndarray
    words: tuple[np.ndarray, ...]
    cut: int


def run_stage(settings: CalibrationSettings, launch: Launch, *, model: Path, out: Path) -> None:
    """Write accuracy and calibration errors of the model folder `model` on one task to `out`, as JSON."""
    world = start(0, launch.patience)
    weights = identity(model)
    tokenizer = load_tokenizer(model)
    loaded = load_model(model, settings.precision, world.device)
    limit = settings.max_prompt or _length_limit(loaded)
    questions = read_questions(settings, tokenizer, limit, _length_limit(loaded))
    mine = questions[world.rank :: world.size]
    logprobs_of_mine = label_logprobs(loaded, tokenizer, mine, launch.eval_batch, show=world.rank == 0)
    pairs = list(zip([q.id for q in mine], logprobs_of_mine, strict=True))
    by_id = dict(pair for part in world.gather(pairs) for pair in part)
    if world.rank == 0:
        logprobs = np.array([by_id[q.id] for q in questions])
        gold = np.array([q.gold for q in questions])
        values = {
            "metric": "calibration",
            "dataset": settings.name,
            **measures(logprobs, gold, settings.bins),
            "labels": list(settings.task.labels),
            "words": list(settings.task.labels.values()),
            "ids": [q.id for q in questions],
            "gold": gold.tolist(),
            "predicted": logprobs.argmax(1).tolist(),
            "raw_probabilities": np.exp(logprobs).tolist(),
            "normalised_probabilities": normalised(logprobs).tolist(),
            "truncated": [{"id": q.id, "characters": q.cut} for q in questions if q.cut],
            "max_prompt": limit,
            "task": dataclasses.asdict(settings.task),
            "template": settings.template,
            "model": weights,
            **origin(settings, {model: weights}),
            "sources": [settings.dataset.path or f"embedded {settings.dataset.split}", str(model)],
        }
        write_json(out, values)
    world.barrier()


def _length_limit(model: PreTrainedModel) -> int:
    """Tokens that a model can take, prompt and answer together."""
    return positions_of(model) or 2048


# --- rows to questions
def read_questions(
    settings: CalibrationSettings, tokenizer: PreTrainedTokenizerBase, max_prompt: int, max_length: int
) -> list[LabelQuestion]:
    """The task's rows as tokens; UserError names one without a column, with an unknown label or too long."""
    task, where = settings.task, f"calibration.tasks.{settings.name}"
    rows = read_entries(settings.dataset, f"datasets.{task.dataset}")
    labels = list(task.labels)
    questions = []
    for id_, place, entry in subset(rows, settings.dataset.sample, settings.seed, settings.name):
        for name in (*task.fields, task.gold):
            if not isinstance(entry.get(name), str | int | float):
                raise UserError(
                    f"{place}: no text in the column '{name}' that {where} names; known: {', '.join(entry)}"
                )
        gold = gold_text(entry[task.gold])
        if gold not in task.labels:
            raise UserError(
                f"{place}: '{task.gold}' is {gold}, which {where}.labels does not have; "
                f"known: {', '.join(labels)}"
            )
        columns = {name: str(entry[name]).strip() for name in task.fields}
        text, cut = _fitting(task, columns, settings.template, tokenizer, min(max_prompt, max_length), place)
        words = []
        for word in task.labels.values():
            prompt, ids, _ = encode(tokenizer, text, word, max_length)
            words.append(np.array(ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids))
        longest = max(len(word) for word in words)
        if len(prompt) + longest > max_length:
            spare = max_length - longest
            text, cut = _fitting(task, columns, settings.template, tokenizer, spare, place)
            prompt = tokenizer.encode(text, add_special_tokens=False)
        _check_words(words, list(task.labels.values()), where)
        questions.append(LabelQuestion(id_, labels.index(gold), np.array(prompt), tuple(words), cut))
    return questions


def gold_text(value: Any) -> str:
    """A label as `labels` writes it: JSON's true and false in lower case, numbers and texts as they are."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _prompt(task: Any, columns: dict[str, str], template: str, tokenizer: PreTrainedTokenizerBase) -> str:
    row = Row(0, task.prompt.format_map(columns), task.input.format_map(columns), ())
    return render(row, template, tokenizer, "calibration") + task.cue.format_map(columns)


def _fitting(
    task: Any,
    columns: dict[str, str],
    template: str,
    tokenizer: PreTrainedTokenizerBase,
    limit: int,
    place: str,
) -> tuple[str, int]:
    """The prompt, and how many characters were cut off the column `truncate` to fit into `limit` tokens."""

    def fits(text: str) -> bool:
        return len(tokenizer.encode(text, add_special_tokens=False)) <= limit

    whole = _prompt(task, columns, template, tokenizer)
    if fits(whole):
        return whole, 0
    passage = columns.get(task.truncate, "")
    # `low` characters fit (0 is checked below), `high` do not.
    low, high = 0, len(passage)
    while high - low > 1:
        middle = (low + high) // 2
        if fits(_prompt(task, {**columns, task.truncate: passage[:middle]}, template, tokenizer)):
            low = middle
        else:
            high = middle
    text = _prompt(task, {**columns, task.truncate: passage[:low]}, template, tokenizer)
    if not fits(text):
        raise UserError(
            f"{place}: the prompt has more than {limit} tokens; name the column to cut in the task's truncate"
        )
    return text, len(passage) - low


def _check_words(words: Sequence[np.ndarray], texts: Sequence[str], where: str) -> None:
    """Raise UserError for a word that begins another, which can never be less probable, or an empty one."""
    for i, a in enumerate(words):
        if not len(a):
            raise UserError(f"{where}.labels: '{texts[i]}' has no tokens; choose another word")
        for j, b in enumerate(words):
            if i != j and a.tolist() == b.tolist()[: len(a)]:
                raise UserError(
                    f"{where}.labels: the tokens of '{texts[i]}' begin '{texts[j]}'; choose other words"
                )


# --- probabilities
@torch.no_grad()
def label_logprobs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[LabelQuestion],
    batch: int,
    show: bool = False,
) -> list[list[float]]:
    """log p(word | prompt) of each question's labels, summed over the word's tokens, in nats.

    Independent of batch and padding.  Words that share all but their last token (as all words of one token
    do) are read from one pass.
    """
    _, pad = special_tokens(tokenizer)
    device, vocabulary = next(model.parameters()).device, vocabulary_size(tokenizer)
    passes = [(i, word) for i, question in enumerate(questions) for word in _passes(question.words)]
    passes.sort(key=lambda p: (len(questions[p[0]].prompt) + len(p[1]), p[0]))
    by_label: list[dict[int, float]] = [{} for _ in questions]
    bar = tqdm(total=len(passes), unit="row", disable=None if show else True)
    for first in range(0, len(passes), batch):
        part = passes[first : first + batch]
        inputs = collate([(questions[i].prompt, word) for i, word in part], pad).to(device)
        logprobs = response_logits(model, inputs, vocabulary).log_softmax(-1)
        asked, first_token = [], 0
        places: list[int] = []
        tokens: list[int] = []
        for i, context in part:
            for label, word in enumerate(questions[i].words):
                if label not in by_label[i] and word.tolist()[:-1] == context.tolist()[: len(word) - 1]:
                    # Read below, all at once: each look waits for a GPU.
                    by_label[i][label] = math.nan
                    asked.append((i, label, len(word)))
                    places += range(first_token, first_token + len(word))
                    tokens += word.tolist()
            first_token += len(context)
        indices = moved(torch.tensor([places, tokens], dtype=torch.long), device)
        values = logprobs[indices[0], indices[1]].cpu().split([length for _, _, length in asked])
        for (i, label, _), numbers in zip(asked, values, strict=True):
            by_label[i][label] = float(numbers.double().sum())
        bar.update(len(part))
    bar.close()
    return [[labels[label] for label in range(len(labels))] for labels in by_label]


def _passes(words: Sequence[np.ndarray]) -> list[np.ndarray]:
    """As few words as possible that give every word's distribution at each of its tokens."""
    kept: list[np.ndarray] = []
    for word in sorted(words, key=lambda w: -len(w)):
        if not any(word.tolist()[:-1] == longer.tolist()[: len(word) - 1] for longer in kept):
            kept.append(word)
    return kept


def normalised(logprobs: np.ndarray) -> np.ndarray:
    """Probabilities normalised over the labels, (rows, labels)."""
    shifted = np.exp(logprobs - logprobs.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


# --- measures
def measures(logprobs: np.ndarray, gold: np.ndarray, bins: int) -> dict[str, Any]:
    """Accuracy (0 to 100) and both calibration errors (0 to 1) of (rows, labels) log-probabilities.

    "normalised", which is also "mean": confidence is the predicted label's probability among the labels.
    "raw": its word's probability among all text.  Standard errors: over rows for the accuracy, by bootstrap
    over rows for the calibration errors.
    """
    right = logprobs.argmax(1) == gold
    confidences = {"normalised": normalised(logprobs).max(1), "raw": np.exp(logprobs.max(1))}
    results: dict[str, Any] = {}
    for name, confidence in confidences.items():
        results[name] = {
            "ece": ece(confidence, right, bins),
            "standard_error": _ece_error(confidence, right, bins),
            "confidence": float(confidence.mean()),
            "bins": reliability(confidence, right, bins),
        }
    accuracy, error = mean_and_error((100.0 * right).tolist())
    return {
        "n": len(right),
        "mean": results["normalised"]["ece"],
        "standard_error": results["normalised"]["standard_error"],
        "over": f"bootstrap over rows ({RESAMPLES} resamples)",
        "accuracy": {"mean": accuracy, "standard_error": error, "over": "rows"},
        **results,
    }


def bin_of(confidence: np.ndarray, bins: int) -> np.ndarray:
    """Equal-width bin of each confidence; a bin includes its lower edge, the last one also 1."""
    return (np.searchsorted(_edges(bins), confidence, side="right") - 1).clip(0, bins - 1)


def _edges(bins: int) -> np.ndarray:
    return np.arange(bins + 1) / bins


def ece(confidence: np.ndarray, right: np.ndarray, bins: int) -> float:
    """Expected calibration error (Guo et al. 2017, Eq. 3): sum n_b / n |accuracy_b - mean confidence_b|."""
    gaps = np.bincount(bin_of(confidence, bins), weights=right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(right))


def _ece_error(confidence: np.ndarray, right: np.ndarray, bins: int) -> float | None:
    which, gaps = bin_of(confidence, bins), right - confidence

    def resampled(rows: np.ndarray) -> float:
        return float(np.abs(np.bincount(which[rows], weights=gaps[rows])).sum() / len(rows))

    return bootstrap_error(resampled, len(right), RESAMPLES, BOOTSTRAP_SEED)


def reliability(confidence: np.ndarray, right: np.ndarray, bins: int) -> list[dict[str, Any]]:
    """Edges, row count, mean confidence and accuracy (0 to 1; null if empty) of each bin."""
    which, edges = bin_of(confidence, bins), _edges(bins)
    rows = []
    for b in range(bins):
        inside = which == b
        count = int(inside.sum())
        means = [
            float(values[inside].mean()) if count else None for values in (confidence, right.astype(float))
        ]
        rows.append(
            {"from": edges[b], "to": edges[b + 1], "n": count, "confidence": means[0], "accuracy": means[1]}
        )
    assert math.fsum(row["n"] for row in rows) == len(right)
    return rows
