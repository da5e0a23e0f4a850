"""Readers of what is in a run's folder: metrics, records of trainings, tables, sidecars, checkpoints."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import made_up_run
from table_case import SETTINGS, metrics_of_one_pair

from minillm import plan
from minillm.evaluation import lengths
from minillm.publish import index, report_texts, run_costs
from minillm.publish.item_results import RunResults
from minillm.publish.origins import origins
from minillm.publish.published_numbers import published
from minillm.publish.registry import ITEMS
from minillm.publish.results import read_frame
from minillm.publish.settings import MetricsSettings
from minillm.publish.tables.main import run_stage as main_table
from minillm.publish.tables.main_cells import read_csv
from minillm.publish.tables.sample_answers import _answers
from minillm.runtime.checkpoints import _manifest
from tests.campaigns.target import REPO, Target, files_below, stage_output


def results() -> Iterator[Target]:
    config = made_up_run.config(small=True)
    with tempfile.TemporaryDirectory() as name:
        run = made_up_run.make(Path(name), config)
        sidecar = {"shows": "s", "n": "3", "missing": "", "sources": ["metrics.csv"], "caption": "c"}
        made_up_run.put(run, "tables/table2.json", sidecar)
        made_up_run.put(run, "configs/publish/table2.json", {"stage": "publish"})
        held = files_below(run)
        metrics = metrics_of_one_pair(Path(name) / "other")
        main = files_below(metrics.parent)
        main_table(SETTINGS, run_folder=metrics.parent, out=Path(name) / "tables")
        csv_files = files_below(Path(name) / "tables")
    settings = MetricsSettings.of(config)
    student = "base/minillm/xl/seed10"
    chosen = [name for name in held if f"/{student}/" in name or f"/{student}." in name]
    files = settings.files()
    kept = {
        name: held[name] for name in (*chosen, "data/letters/training/card.json", "benchmarks/base/base.tsv")
    }
    yield Target(
        "metrics",
        kept,
        lambda folder: [read_frame(folder, files).to_csv(), _contents(RunResults(settings, folder))],
        damaged=tuple(name for name in kept if name.startswith("metrics/")),
    )
    yield Target(
        "records of a training",
        kept,
        lambda folder: _records(RunResults(settings, folder), student),
        damaged=tuple(name for name in kept if not name.startswith("metrics/")),
    )
    made = ("tables/table2.json", "configs/publish/table2.json")
    yield Target(
        "sidecars",
        {name: held[name] for name in made},
        lambda folder: [
            stage_output(folder, lambda out: index.run_stage(run_folder=folder, out=out / "index.md"))[
                "index.md"
            ].split("\n", 1)[1],
            report_texts.captions(folder, {name: item.kind for name, item in ITEMS.items()}),
        ],
    )
    yield Target(
        "main table",
        main,
        lambda folder: stage_output(folder, lambda out: main_table(SETTINGS, run_folder=folder, out=out)),
        damaged=tuple(name for name in main if "minillm" in name),
    )
    lengths_of = next(name for name in main if "minillm" in name and "easy" in name)
    yield Target(
        "ROUGE-L for lengths", {"m.json": main[lengths_of]}, lambda f: lengths.read_metric(f / "m.json")
    )
    yield Target("main.csv", {"main.csv": csv_files["main.csv"]}, lambda f: read_csv(f / "main.csv"))
    paper = REPO / "config/paper"
    yield Target("published numbers", {"table1.csv": (paper / "table1.csv").read_bytes()}, published)
    yield Target(
        "benchmarks",
        {"b.tsv": made_up_run.BENCHMARK.encode()},
        lambda folder: [plan._seconds(folder / "b.tsv"), origins(folder, ["b.tsv"])],
    )
    manifest = {"step": 3, "processes": 1, "zero": 1, "files": {"a": "b"}}
    yield Target(
        "manifest", {"manifest.json": json.dumps(manifest).encode()}, lambda folder: _manifest(folder)
    )


def _contents(results: RunResults) -> Any:
    """What figures read of metric files, besides the frame."""
    kinds = results.settings.asked
    found = [
        results.contents(k, m, name) for k in kinds for m in results.models() for name in results.names(k)
    ]
    return repr([found, results.comparisons()])


def _records(results: RunResults, weights: str) -> Any:
    model = next(m for m in results.models() if weights in m.weights.values())
    return [
        run_costs.costs_of(results, model, weights),
        results.dev_values(weights),
        results.dev_rows(model),
        results.log(weights),
        _answers(results, weights, "dolly", 10),
        origins(results.folder, list(results.sources)),
    ]
