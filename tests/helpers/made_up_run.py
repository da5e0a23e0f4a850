"""A run's folder with made-up results: three teachers, two students, every kind of metric file."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import yaml

from minillm.config.experiment import Experiment, experiment
from minillm.config.stage_settings import TableSettings
from minillm.evaluation.human import run_stage as count
from minillm.evaluation.human_page import FORMAT
from minillm.publish.run_models import models, weights_of

REPO = Path(__file__).resolve().parents[2]
SIZES = {
    "xl": ("GPT-2", "1.5B"),
    "large": ("GPT-2", "760M"),
    "j": ("GPT-J", "6B"),
    "base": ("GPT-2", "120M"),
    "medium": ("GPT-2", "340M"),
    "j-small": ("GPT-J", "350M"),
}
BENCHMARK = "s\th:m:s\tmax_rss\tcpu_time\n7200.0\t2:00:00\t2048.0\t10800.0\n"
JUDGE = {"kind": "openai", "model": "some-judge"}
METHODS = ["sft", "seqkd", "minillm", "no-mixing", "no-pt", "forward-kl", "reverse-kl"]
VARIANTS = {
    "no-mixing": {"label": "w/o teacher-mixed", "settings": {"alpha": 0.0}},
    "no-pt": {"label": "w/o L_PT", "settings": {"lm_coef": 0.0}},
    "forward-kl": {"label": "On-policy forward KL", "settings": {"objective": "forward_kl", "alpha": 0.0}},
    "reverse-kl": {"label": "On-policy reverse KL", "settings": {"objective": "reverse_kl", "alpha": 0.0}},
}
N = {"dolly": 12, "sni": 10}
TASK = {"dataset": "dolly", "prompt": "?", "input": "{x}", "labels": {"0": "no", "1": "yes"}}
# Of a dev evaluation.
DIAGNOSIS = {
    "dev_finished": 0.5, "dev_repetition": 0.1, "dev_length": 40.0, "dev_init_kl": 0.0, "dev_entropy": 1.0,
    "dev_teacher_entropy": 1.2, "dev_entropy_gap": 0.3, "dev_overlap": 0.7, "dev_overlap_mass": 0.95,
    "dev_teacher_overlap_mass": 0.96, "dev_reward_repeated": -0.1, "dev_reward_other": -0.4,
    **{f"dev_reward_{part}_of_4": -0.1 * part for part in range(1, 5)},
}  # fmt: skip
SECTIONS: dict[str, Any] = {
    "exposure_bias": {"tests": list(N)},
    "lengths": {"tests": list(N), "figure15": ["sni"]},
    "diversity": {"tests": list(N)},
    "validity": {"tests": ["dolly"]},
    "calibration": {"tasks": {"boolq": {**TASK, "label": "BoolQ"}, "sst2": {**TASK, "label": "SST-2"}}},
    "judge": {"kind": "openai", "model": "some-judge", "tests": ["dolly"]},
    "human": {"test": "dolly", "answers": ["anna.json"]},
    "harness": {"tasks": ["arc_easy"]},
    "comparison": {"against": ["minillm"], "test": "dolly"},
}


def config(*, small: bool = False, **changed: Any) -> Experiment:
    """The configuration of the run; `small`: one pair and no variants."""
    raw = yaml.safe_load((REPO / "tests/config/plan.yaml").read_text())
    model = raw["models"]["big"]
    raw["models"] = {
        name: {
            **model,
            "architecture": model["architecture"] | {"num_hidden_layers": layers},
            "family": family,
            "size": size,
        }
        for layers, (name, (family, size)) in enumerate(SIZES.items(), 1)
    }
    raw["pairs"] = [{"teacher": "xl", "students": ["base", "medium"]}]
    raw["pairs"] += [{"teacher": name, "students": ["base"]} for name in ("large", "j")]
    rows = {"source": "embedded", "split": "test", "rows": 8}
    raw["datasets"] |= {"dolly": {**rows, "label": "DollyEval"}, "sni": {**rows, "label": "S-NI"}}
    raw["data"]["tests"] = list(N)
    raw |= SECTIONS
    raw |= {
        "variants": VARIANTS,
        "methods": METHODS,
        "per_model": {},
        "training_seeds": [10],
        "style": {"dpi": 50},
    }
    if small:
        raw |= {
            "pairs": [{"teacher": "xl", "students": ["base"]}],
            "variants": {},
            "methods": ["sft", "minillm"],
        }
    return experiment({**raw, **changed})


def put(folder: Path, path: str, value: Any) -> None:
    """A file below the run's folder: JSON, or text as it is."""
    file = folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(value if isinstance(value, str) else json.dumps(value))


def make(folder: Path, config: Experiment) -> Path:
    """Results of every model of `config` in `folder`; better methods have better values, all by one seed."""
    table = TableSettings.of(config, sweeps=True)
    rng = random.Random(7)
    for teacher, student, method in models(table):
        strength = 8.0 if not student else 2.0 * METHODS.index(method)
        for weights in weights_of(table, teacher, student, method).values():
            for test, n in N.items():
                put(
                    folder, f"metrics/rouge/{weights}/{test}.json", rouge(config, test, n, 10 + strength, rng)
                )
                texts = [
                    {
                        "id": i,
                        "seed": seed,
                        "prompt": f"Prompt {i} | of {test}",
                        "response": f"{method} says {i}",
                        "references": ["gold"],
                    }
                    for seed in (10, 20)
                    for i in range(n)
                ]
                put(
                    folder,
                    f"generations/{weights}/{test}.jsonl",
                    "".join(json.dumps(text) + "\n" for text in texts),
                )
                if student:
                    put(folder, f"metrics/exposure_bias/{teacher}/{weights}/{test}.json", exposure(strength))
                put(folder, f"metrics/lengths/{weights}/{test}.json", lengths(strength))
                counts = {
                    str(seed): {
                        "N": 1000,
                        "C": 900 + seed,
                        "repetition": seed / 1000,
                        "response_tokens": 2.0 * seed,
                    }
                    for seed in (10, 20)
                }
                put(
                    folder,
                    f"metrics/diversity/{weights}/{test}.json",
                    {"n": n, "ngram": 4, "per_seed": counts},
                )
                put(
                    folder,
                    f"metrics/reference_loss/{weights}/{test}.json",
                    {"n": n, "loss": "tokens", "mean": 3.5, "standard_error": 0.1, "reference_tokens": 20.0},
                )
            put(folder, f"metrics/validity/{weights}/dolly.json", validity(strength))
            put(
                folder,
                f"metrics/mode_mass/{weights}/dolly.json",
                {"n": 12, "mean": 40.0 + strength, "standard_error": 1.0}
                | {"coverage": 30.0, "coverage_error": 2.0, "forms": 3.0, "forms_error": 0.1},
            )
            judged = {
                "n": 12,
                "mean": 40 + strength,
                "standard_error": 0.5,
                "stand_in": False,
                "judge": JUDGE,
            }
            put(folder, f"metrics/judge/{weights}/dolly.json", judged)
            put(folder, f"metrics/harness/{weights}/tasks.json", harness(strength))
            for task in ("boolq", "sst2"):
                put(folder, f"metrics/calibration/{weights}/{task}.json", calibration(task))
            train(folder, weights, method, strength)
            put(folder, f"benchmarks/base/{student or teacher}.tsv", BENCHMARK)
            stage = f"teacher/{teacher}" if not student else f"{method}/{weights.replace('/' + method, '')}"
            put(folder, f"benchmarks/{stage}.tsv", BENCHMARK)
    compared = [
        weights
        for _, student, method in models(table)
        for weights in weights_of(table, _, student, method).values()
        if method != "minillm"
    ]
    put(folder, "data/letters/training/card.json", {"train": {"response_tokens": {"mean": 50.0}}})
    answers = [
        {"split": split, "response_tokens": [1] * n}
        for split, n in (("train", 20), ("train", 40), ("dev", 99))
    ]
    for teacher in ("xl", "large", "j"):
        put(
            folder,
            f"data/letters/pseudo/{teacher}.jsonl",
            "".join(json.dumps(answer) + "\n" for answer in answers),
        )
        put(folder, f"benchmarks/pseudo/letters/{teacher}.tsv", BENCHMARK)
    human(
        folder,
        "base/minillm/xl/seed10",
        [f"results/made/generations/{weights}/dolly.jsonl" for weights in dict.fromkeys(compared)],
    )
    return folder


def human(folder: Path, ours: str, against: list[str]) -> None:
    """What `human-import` makes of one annotator's 27 wins, 13 ties and 10 losses against each model."""
    pairs = {
        f"{i}-{k}": {"ours": "left", "against": path, "row": k}
        for i, path in enumerate(against)
        for k in range(50)
    }
    choices = ["left"] * 27 + ["tie"] * 13 + ["right"] * 10
    page = {"format": FORMAT, "study": "made"}
    key = {**page, "dataset": "dolly", "ours": ours, "against": against, "prompts": 50, "pairs": pairs}
    put(folder, "human/key.json", key)
    answers = {name: choices[pair["row"]] for name, pair in pairs.items()}
    put(folder, "human/anna.json", {**page, "annotator": "anna", "answers": answers})
    count(
        answers=[folder / "human/anna.json"],
        key=folder / "human/key.json",
        out=folder / f"metrics/human/{ours}/dolly.json",
    )


def rouge(config: Experiment, test: str, n: int, mean: float, rng: random.Random) -> dict[str, Any]:
    scores = {str(seed): [mean + rng.gauss(0, 1) for _ in range(n)] for seed in (10, 20)}
    per_seed = {seed: sum(values) / n for seed, values in scores.items()}
    value = {"dataset": test, "n": n, "ids": list(range(n)), "per_seed": per_seed, "scores": scores}
    value |= {"mean": sum(per_seed.values()) / 2, "standard_error": abs(per_seed["10"] - per_seed["20"]) / 2}
    return value | {"sampling": dataclasses.asdict(config.generate)}


def exposure(strength: float) -> dict[str, Any]:
    lengths = list(range(1, 101))
    curve = [30 + length / (4 + strength) for length in lengths]
    band = {"low": [v - 3 for v in curve], "high": [v + 3 for v in curve]}
    draws = {
        "50": [curve[49] + noise for noise in (-9.0, 0.0, 9.0)],
        "100": [0.0],
    }  # the prompts that were drawn move every method alike
    kept = {"mean_at": 80, "ids": list(range(12)), "draws": draws}
    return {"n": 12, "responses": 10, "lengths": lengths, "ex_acc_err": [None, *curve[1:]], **band, **kept}


def validity(strength: float) -> dict[str, Any]:
    """Two responses to each of 12 prompts with four right answers."""
    verdicts = dict.fromkeys(("unfinished", "wrong fact", "form broken off", "forms mixed", "other"), 1)
    return {
        "n": 12,
        "mean": 60.0 + strength,
        "standard_error": 1.0,
        "per_seed": {"10": 59.0 + strength, "20": 61.0 + strength},
        "coverage": 30.0 + strength,
        "coverage_error": 2.0,
        "coverage_uniform": 43.75,
        "verdicts": {"right": 19, **verdicts},
        "responses": 24,
        "right_answers": [4] * 12,
        "seeds": [10, 20],
    }


def lengths(strength: float) -> dict[str, Any]:
    """Four prompts a bucket, which differ from each other by more than the methods do."""
    means = (5 + strength / 9, 9 + strength / 3, 12 + strength)
    edges = ((0, 5), (6, 10), (11, None))
    buckets = [
        {"low": a, "high": b, "n": 4, "mean": m, "standard_error": 9.1}
        for (a, b), m in zip(edges, means, strict=True)
    ]
    scores = [mean + step for mean in means for step in (-15.0, -5.0, 5.0, 15.0)]
    tokens = [length for length in (3, 8, 20) for _ in range(4)]
    return {"n": 12, "buckets": buckets, "ids": list(range(12)), "scores": scores, "reference_tokens": tokens}


def harness(strength: float) -> dict[str, Any]:
    entry = {"task": "arc_easy", "filter": "none", "n": 40, "version": 1.0}
    results = [
        entry | {"metric": "acc", "value": 0.3 + strength / 100, "error": 0.07},
        entry | {"metric": "bleu", "value": 12.5, "error": None},
    ]
    return {"results": results, "lm_eval": "0.4.13", "fewshot": None, "limit": 40}


def calibration(task: str) -> dict[str, Any]:
    bins = [
        {
            "low": i / 5,
            "high": (i + 1) / 5,
            "n": 10 * (i > 1),
            "confidence": i / 5 + 0.1,
            "accuracy": i / 6 + 0.1,
        }
        for i in range(5)
    ]
    ece = {"ece": 0.1234, "ece_error": 0.01, "ece_raw": 0.3, "ece_raw_error": 0.02}
    return {
        "dataset": task,
        "n": 30,
        "accuracy": 70.0,
        "accuracy_error": 5.0,
        **ece,
        "bins": bins,
        "words": ["no", "yes"],
    }


def train(folder: Path, weights: str, method: str, strength: float) -> None:
    entries = [
        {"step": 8 * i, "dev_reverse_kl": 2 - 0.1 * i * (1 + strength / 9), "dev_forward_kl": 2.5 - 0.1 * i}
        for i in range(5)
    ]
    for i, entry in enumerate(entries):
        entry |= {name: value + 0.01 * i * strength for name, value in DIAGNOSIS.items()}
    entries += [
        {"step": 8 * i, "response_length": 50.0, "sampled_tokens": 1600.0, "effective_samples": 0.9 - 0.1 * i}
        for i in range(2)
    ]
    entries += [{"step": 4 * i, "loss": 1.0, "grad_norm": 2.0, "grad_variance": 1.0} for i in range(1, 9)]
    chosen = {"chosen": {"step": 32, "dev_rouge": 20 + strength}}
    put(
        folder,
        f"models/{weights}/metrics.jsonl",
        "".join(json.dumps(entry) + "\n" for entry in (entries if method != "sft" else [{"step": 32}])),
    )
    put(folder, f"models/{weights}/selection.json", chosen)
    how = {"batch": 32} if method in ("teacher", "sft", "seqkd") else {"rollouts": 64}
    provenance = {
        "wall_seconds": 3600.0,
        "world_size": 2,
        "steps": 32,
        "inputs": {"teacher": "a" * 64} | ({"init": "b" * 64} if "rollouts" in how else {}),
        "settings_sha256": "c" * 64,
        "git": "2306085",
        "processor": "x86_64 AVX2",
        "peak_memory_mb": {"resident": 1000.0, "gpu": 900.0},
    }
    put(
        folder,
        f"models/{weights}/provenance.json",
        provenance | {"settings": {"training": {"dev_rows": 100, "lr": 0.001} | how}},
    )
