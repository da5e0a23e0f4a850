"""What it cost to make a model: time, processors, memory and tokens, from benchmarks and provenance."""

from __future__ import annotations

from typing import Any

from minillm.config import layout
from minillm.publish.item_results import RunResults, Trained
from minillm.publish.origins import number_of, table_row
from minillm.publish.results import damage
from minillm.readers import all_are, is_a

COSTS = ("wall_hours", "total_hours", "cpu_hours", "gpu_hours", "memory_gb", "updates", "tokens")


def costs_of(results: RunResults, model: Trained, weights: str) -> dict[str, float | None] | None:
    """`COSTS` of one training of a model; None if it has no provenance, and for what was not recorded.

    total_hours include the stages that the model's own needs.  gpu_hours are wall hours x processes.
    """
    path = f"{layout.model(weights)}/provenance.json"
    provenance = results.json(path)
    if provenance is None:
        return None
    with damage(results.folder / path):
        return _costs(results, model, weights, provenance)


def _costs(
    results: RunResults, model: Trained, weights: str, provenance: dict[str, Any]
) -> dict[str, float | None]:
    for key in ("wall_seconds", "world_size", "steps"):
        if key in provenance and not is_a(provenance[key], (int, float)):
            raise TypeError(f"{key}: {provenance[key]!r}")
    bench = _numbers(results, layout.benchmark_of(layout.model(weights)))
    gpu = "gpu" in provenance.get("peak_memory_mb", {})
    wall = provenance.get("wall_seconds")
    seconds = bench.get("s", wall)
    # Of a variant, the stage that it builds on.
    stage = str(provenance.get("settings", {}).get("stage") or model.method)
    needed = [_numbers(results, path).get("s") for path in _prerequisites(results, model, weights, stage)]
    recorded = [value for value in (seconds, *needed) if value is not None]
    return {
        "wall_hours": None if seconds is None else seconds / 3600,
        "total_hours": sum(recorded) / 3600 if len(recorded) == len(needed) + 1 else None,
        "cpu_hours": bench["cpu_time"] / 3600 if "cpu_time" in bench else None,
        "gpu_hours": wall * provenance["world_size"] / 3600 if gpu and wall else None,
        "memory_gb": bench["max_rss"] / 1024 if "max_rss" in bench else None,
        "updates": provenance.get("steps"),
        "tokens": _tokens(results, model, weights, provenance),
    }


def _prerequisites(results: RunResults, model: Trained, weights: str, stage: str) -> list[str]:
    """Benchmark files of the stages that a model's own stage needs, base models included."""
    paths = [layout.model(layout.base_weights(model.name))]
    if model.method not in ("teacher", "sft"):
        teacher = model.teacher
        paths += [layout.model(layout.base_weights(teacher)), layout.model(layout.teacher_weights(teacher))]
        if stage == "seqkd":
            paths.append(layout.pseudo_answers(results.settings.models[teacher].tokenizer, teacher))
        elif stage != "kd":
            seed = weights.rsplit("/seed", 1)[1]
            paths.append(layout.model(layout.student_weights(model.student, "sft", teacher, seed)))
    return list(dict.fromkeys(map(layout.benchmark_of, paths)))


def _numbers(results: RunResults, path: str) -> dict[str, float]:
    """Seconds, memory and processor time from a benchmark file, as far as it has them."""
    text = results.text(path)
    row = table_row(text or "")
    numbers = {key: number_of(row.get(key)) for key in ("s", "max_rss", "cpu_time")}
    return {key: value for key, value in numbers.items() if value is not None}


def _tokens(results: RunResults, model: Trained, weights: str, provenance: dict[str, Any]) -> float | None:
    """Tokens newly sampled in all collections, or those of the answers trained on; None if not recorded."""
    training = provenance.get("settings", {}).get("training", {})
    if "rollouts" in training:
        collections = [entry for entry in results.log(weights) if "response_length" in entry]
        sampled = [entry["sampled_tokens"] for entry in collections if "sampled_tokens" in entry]
        if not all_are(sampled, (int, float)):
            raise TypeError("sampled_tokens of metrics.jsonl is not a number")
        return float(sum(sampled)) if sampled and len(sampled) == len(collections) else None
    stage = str(provenance.get("settings", {}).get("stage") or model.method)
    length = _answer_length(results, model, stage)
    if not length or "steps" not in provenance or "batch" not in training:
        return None
    return float(provenance["steps"] * training["batch"] * length)


def _answer_length(results: RunResults, model: Trained, stage: str) -> float | None:
    """Mean tokens of the answers a supervised method is trained on: the training rows' or the teacher's."""
    tokenizer = results.settings.models[model.name].tokenizer
    if stage != "seqkd":
        card = results.json(f"{layout.training_data(tokenizer)}/card.json") or {}
        mean = (card.get("train", {}).get("response_tokens") or {}).get("mean")
        return mean if is_a(mean, (int, float)) else None
    path = layout.pseudo_answers(results.settings.models[model.teacher].tokenizer, model.teacher)
    answers = results.lines(path, "make it again", {"split": str, "response_tokens": list})
    lengths = [len(answer["response_tokens"]) for answer in answers if answer["split"] == "train"]
    return sum(lengths) / len(lengths) if lengths else None
