"""Stage `harness`: a model on tasks of lm-eval, EleutherAI's evaluation harness (extra `harness`)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from minillm.config.launch import Launch
from minillm.config.measurements.harness import FILE, HarnessSettings
from minillm.data.sources import resolve_path
from minillm.data.tokenizers import vocabulary_size
from minillm.errors import UserError
from minillm.files import identity, origin, write_json
from minillm.models.checks import in_one_line
from minillm.models.loading import load_model, load_tokenizer
from minillm.runtime.processes import start


def run_stage(settings: HarnessSettings, launch: Launch, *, model: Path, out: Path) -> None:
    """Write what lm-eval measures of `model` on the tasks of the settings to the metric file `out`.

    "results" has an entry for each task, metric and filter, as lm-eval names them: value and standard error
    in its unit (accuracies from 0 to 1), n.  The prompts are the tasks' own, without our template.  Runs on
    one process.  Raises UserError, one line, if lm-eval is not installed, a task is unknown, or its data
    cannot be read.
    """
    library = lm_eval()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("harness: runs on one process; set launch.harness.processes to 1")
    world = start(0, launch.patience)
    tokenizer, loaded = load_tokenizer(model), load_model(model, settings.precision, world.device)
    cut_to(loaded, vocabulary_size(tokenizer))
    wrapped = library.models.huggingface.HFLM(
        pretrained=loaded, tokenizer=tokenizer, batch_size=launch.eval_batch, backend="causal"
    )
    asked = settings.harness
    manager = _tasks(library, settings)
    generators = ("random", "numpy_random", "torch_random", "fewshot_random")
    seeds = {f"{generator}_seed": settings.seed for generator in generators}
    try:
        measured = library.simple_evaluate(
            model=wrapped,
            tasks=list(asked.tasks),
            num_fewshot=asked.fewshot,
            limit=asked.limit,
            task_manager=manager,
            log_samples=False,
            **seeds,
        )
    except Exception as error:
        # A task's data, its file and its metrics each fail in their own way.
        raise UserError(f"harness.tasks: lm-eval failed ({in_one_line(error)})") from error
    results = list(entries(measured))
    write_json(
        out,
        {
            "metric": "harness",
            "dataset": FILE,
            "results": results,
            "lm_eval": library.__version__,
            "fewshot": asked.fewshot,
            "limit": asked.limit,
            **origin(settings, {model: identity(model)}),
        },
    )


def lm_eval() -> Any:
    """The package, or a UserError that says how to get it."""
    try:
        import lm_eval
        import lm_eval.models.huggingface
        import lm_eval.tasks
    except ImportError as error:
        raise UserError(
            f"harness.tasks: needs lm-eval ({error}); install it with: pip install '.[harness]'"
        ) from None
    return lm_eval


def _tasks(library: Any, settings: HarnessSettings) -> Any:
    """lm-eval's index of tasks, ours first."""
    folder = settings.harness.task_folder
    place = resolve_path(folder, "harness.task_folder") if folder else None
    if place is not None and not place.is_dir():
        raise UserError(f"harness.task_folder: {place}: no such folder; check the path")
    if place is not None:
        ours = library.tasks.TaskManager(include_path=str(place), include_defaults=False)
        # To read lm-eval's own thousands of files takes longer than a small task.
        if all(ours.match_tasks([task]) for task in settings.harness.tasks):
            return ours
    manager = library.tasks.TaskManager(include_path=None if place is None else str(place))
    unknown = [task for task in settings.harness.tasks if not manager.match_tasks([task])]
    if unknown:
        raise UserError(
            f"harness.tasks: lm-eval has no task '{unknown[0]}'; `lm-eval ls tasks` lists its own, "
            "harness.task_folder adds yours"
        )
    return manager


def cut_to(model: PreTrainedModel, vocabulary: int) -> None:
    """Cut the padding of the embedding off the model's logits, as everywhere else."""

    def cut(_: torch.nn.Module, __: Any, output: Any) -> Any:
        output.logits = output.logits[..., :vocabulary]
        return output

    model.register_forward_hook(cut)


def entries(measured: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One entry for each number of lm-eval's results, whose keys are "metric,filter"; in a fixed order.

    A group of tasks is one of them.  `error` is None if lm-eval has none.
    """
    for task, values in sorted(measured["results"].items()):
        for key, value in sorted(values.items()):
            metric, comma, chosen = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = values.get(f"{metric}_stderr,{chosen}")
            has_error = isinstance(error, int | float) and math.isfinite(error)
            yield {
                "task": task,
                "metric": metric,
                "filter": chosen,
                "value": value,
                "error": error if has_error else None,
                "n": _questions(measured, task),
                "version": measured.get("versions", {}).get(task),
            }


def _questions(measured: Mapping[str, Any], task: str) -> int | None:
    """How many questions were asked; of a group, lm-eval says nothing."""
    counts = measured.get("n-samples", {}).get(task)
    return int(counts["effective"]) if counts else None
