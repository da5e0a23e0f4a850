"""`python -m minillm STAGE --config FILE ...`: one sub-command a stage.  A stage's module is imported only when it is called."""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from minillm.errors import UserError


@dataclass(frozen=True)
class Stage:
    """One sub-command: what it is for, the paths it takes, and what to call."""

    help: str
    paths: tuple[str, ...]
    run: Callable[[argparse.Namespace], None]
    optional: tuple[str, ...] = ()
    launched: bool = False
    several: tuple[str, ...] = ()  # of the paths, those that take more than one


def _fetch(args: argparse.Namespace) -> None:
    from minillm.config.stage_settings import FetchSettings
    from minillm.config.strict import load
    from minillm.data.fetch import run_stage

    run_stage(load(FetchSettings, args.config), args.out)


def _data(args: argparse.Namespace) -> None:
    from minillm.config.stage_settings import DataSettings
    from minillm.config.strict import load
    from minillm.data.prepare import prepare

    prepare(load(DataSettings, args.config), args.out)


def _testset(args: argparse.Namespace) -> None:
    from minillm.config.stage_settings import TestSettings
    from minillm.config.strict import load
    from minillm.data.prepare import prepare_test

    prepare_test(load(TestSettings, args.config), args.data, args.out)


def _base(args: argparse.Namespace) -> None:
    from minillm.config.stage_settings import BaseSettings
    from minillm.config.strict import load
    from minillm.training.base_model import run_stage

    run_stage(
        load(BaseSettings, args.config),
        _launch(args),
        data=args.data,
        out=args.out,
        checkpoints=args.checkpoints,
        parent=args.parent,
    )


def _supervised(args: argparse.Namespace) -> None:
    from minillm.config.stage_settings import TrainSettings
    from minillm.config.strict import load
    from minillm.training.supervised import run_stage

    outputs = {"best_rouge": args.out}
    if args.stage == "sft":
        outputs["lowest_loss"] = args.init
    run_stage(
        load(TrainSettings, args.config),
        _launch(args),
        data=args.data,
        base=args.base,
        outputs=outputs,
        checkpoints=args.checkpoints,
        teacher=getattr(args, "teacher", None),
        pseudo=getattr(args, "pseudo", None),
    )


def _pseudo(args: argparse.Namespace) -> None:
    from minillm.config.stage_settings import PseudoSettings
    from minillm.config.strict import load
    from minillm.sampling.generate import run_pseudo

    settings = load(PseudoSettings, args.config)
    run_pseudo(settings, _launch(args), data=args.data, teacher=args.teacher, out=args.out, checkpoints=args.checkpoints)


def _minillm(args: argparse.Namespace) -> None:
    from minillm.config.stage_settings import OnPolicySettings
    from minillm.config.strict import load
    from minillm.training.onpolicy import run_stage

    run_stage(
        load(OnPolicySettings, args.config),
        _launch(args),
        data=args.data,
        init=args.init,
        teacher=args.teacher,
        out=args.out,
        checkpoints=args.checkpoints,
    )


def _generate(args: argparse.Namespace) -> None:
    from minillm.config.stage_settings import GenerateSettings
    from minillm.config.strict import load
    from minillm.sampling.generate import run_generate

    run_generate(load(GenerateSettings, args.config), _launch(args), test=args.test, model=args.model, out=args.out)


def _rouge(args: argparse.Namespace) -> None:
    from minillm.evaluation.rouge import evaluate

    evaluate(args.generations, args.out)


def _table(args: argparse.Namespace) -> None:
    from minillm.config.stage_settings import TableSettings
    from minillm.config.strict import load
    from minillm.publish.tables.main import run_stage

    run_stage(load(TableSettings, args.config), run_folder=args.run_folder, out=args.out, paper=args.paper)


def _figure(args: argparse.Namespace) -> None:
    from minillm.config.stage_settings import FigureSettings
    from minillm.config.strict import load
    from minillm.publish.figures.main import run_stage

    run_stage(load(FigureSettings, args.config), table=args.table, out=args.out)


def _estimators(args: argparse.Namespace) -> None:
    from minillm.config.stage_settings import EstimatorSettings
    from minillm.config.strict import load
    from minillm.publish.estimators import run_stage

    run_stage(load(EstimatorSettings, args.config), out=args.out)


def _samples(args: argparse.Namespace) -> None:
    from minillm.config.evaluation_settings import SamplesSettings
    from minillm.config.strict import load
    from minillm.evaluation.teacher_samples import run_stage

    run_stage(load(SamplesSettings, args.config), _launch(args), test=args.test, model=args.model, out=args.out)


def _exposure_bias(args: argparse.Namespace) -> None:
    from minillm.config.evaluation_settings import ExposureBiasSettings
    from minillm.config.strict import load
    from minillm.evaluation.exposure_bias import run_stage

    settings = load(ExposureBiasSettings, args.config)
    run_stage(settings, _launch(args), samples=args.samples, model=args.model, teacher=args.teacher, out=args.out)


def _lengths(args: argparse.Namespace) -> None:
    from minillm.config.evaluation_settings import LengthsSettings
    from minillm.config.strict import load
    from minillm.evaluation.lengths import evaluate

    settings = load(LengthsSettings, args.config)
    evaluate(settings, metric=args.metric, generations=args.generations, data=args.data, out=args.out)


def _diversity(args: argparse.Namespace) -> None:
    from minillm.config.evaluation_settings import DiversitySettings
    from minillm.config.strict import load
    from minillm.evaluation.diversity import evaluate

    evaluate(load(DiversitySettings, args.config), generations=args.generations, out=args.out)


def _reference_loss(args: argparse.Namespace) -> None:
    from minillm.config.evaluation_settings import ReferenceLossSettings
    from minillm.config.strict import load
    from minillm.evaluation.reference_loss import run_stage

    run_stage(load(ReferenceLossSettings, args.config), _launch(args), test=args.test, model=args.model, out=args.out)


def _subsets(args: argparse.Namespace) -> None:
    from minillm.config.evaluation_settings import SubsetsSettings
    from minillm.config.strict import load
    from minillm.data.length_subsets import folder_of, subsets

    if (args.source is None) == (args.config is None):
        raise UserError("give the folder with --source, or --config with the settings that name it")
    source = args.source or folder_of(load(SubsetsSettings, args.config).rows)
    subsets(source, args.out, args.tokenizer)


def _calibration(args: argparse.Namespace) -> None:
    from minillm.config.evaluation_settings import CalibrationSettings
    from minillm.config.strict import load
    from minillm.evaluation.calibration import run_stage

    run_stage(load(CalibrationSettings, args.config), _launch(args), model=args.model, out=args.out)


def _judge(args: argparse.Namespace) -> None:
    from minillm.config.evaluation_settings import JudgeSettings
    from minillm.config.strict import load
    from minillm.evaluation.judge import evaluate

    evaluate(load(JudgeSettings, args.config), args.generations, args.cache, args.out)


def _human_export(args: argparse.Namespace) -> None:
    from minillm.config.evaluation_settings import HumanSettings
    from minillm.config.strict import load
    from minillm.evaluation.human import export

    settings = load(HumanSettings, args.config) if args.config else HumanSettings(stage="human")
    export(settings, args.generations, args.against, args.out)


def _human_import(args: argparse.Namespace) -> None:
    from minillm.evaluation.human import count

    count(args.answers, args.key, args.out, args.also or ())


def _publish(args: argparse.Namespace) -> None:
    from minillm.config.strict import load
    from minillm.publish.run import run_stage
    from minillm.publish.settings import PublishSettings

    run_stage(load(PublishSettings, args.config), run_folder=args.run_folder, out=args.out, paper=args.paper)


def _metrics(args: argparse.Namespace) -> None:
    from minillm.config.strict import load
    from minillm.publish.metrics_csv import run_stage
    from minillm.publish.settings import MetricsSettings

    run_stage(load(MetricsSettings, args.config), run_folder=args.run_folder, out=args.out)


def _index(args: argparse.Namespace) -> None:
    from minillm.publish.index import run_stage

    run_stage(run_folder=args.run_folder, out=args.out)


STAGES = {
    "fetch": Stage("one model, tokenizer or data set of the hub into its cache", ("config", "out"), _fetch),
    "data": Stage("training rows, dev rows, corpus and tokenizer", ("config", "out"), _data),
    "testset": Stage("one test set", ("config", "data", "out"), _testset),
    "base": Stage("a base model", ("config", "data", "out", "checkpoints"), _base, ("parent",), launched=True),
    "teacher": Stage("fine-tune the teacher", ("config", "data", "base", "out", "checkpoints"), _supervised, launched=True),
    "sft": Stage(
        "fine-tune a student without distillation",
        ("config", "data", "base", "out", "init", "checkpoints"),
        _supervised,
        launched=True,
    ),
    "kd": Stage(
        "word-level distillation", ("config", "data", "base", "teacher", "out", "checkpoints"), _supervised, launched=True
    ),
    "pseudo": Stage(
        "the teacher's answers to training prompts", ("config", "data", "teacher", "out", "checkpoints"), _pseudo, launched=True
    ),
    "seqkd": Stage(
        "sequence-level distillation",
        ("config", "data", "base", "teacher", "pseudo", "out", "checkpoints"),
        _supervised,
        launched=True,
    ),
    "minillm": Stage(
        "on-policy distillation by reverse KL",
        ("config", "data", "init", "teacher", "out", "checkpoints"),
        _minillm,
        launched=True,
    ),
    "generate": Stage("responses of a model to a test set", ("config", "test", "model", "out"), _generate, launched=True),
    "rouge": Stage("ROUGE-L of responses", ("generations", "out"), _rouge),
    "table": Stage("the main table", ("config", "run-folder", "out"), _table, ("paper",)),
    "figure": Stage("the main figure", ("config", "table", "out"), _figure),
    "publish": Stage("one more table or figure", ("config", "run-folder", "out"), _publish, ("paper",)),
    "metrics": Stage("everything that was measured, as one CSV file", ("config", "run-folder", "out"), _metrics),
    "index": Stage("list of the results", ("run-folder", "out"), _index),
    "estimators": Stage("bias and variance of gradient estimators, exact", ("config", "out"), _estimators),
    "samples": Stage(
        "several responses of a teacher to a test set", ("config", "test", "model", "out"), _samples, launched=True
    ),
    "exposure_bias": Stage(
        "excess accumulated error of a student",
        ("config", "samples", "model", "teacher", "out"),
        _exposure_bias,
        launched=True,
    ),
    "lengths": Stage("ROUGE-L by length of the reference", ("config", "metric", "generations", "data", "out"), _lengths),
    "diversity": Stage("distinct n-grams of responses", ("config", "generations", "out"), _diversity),
    "reference_loss": Stage(
        "loss of a model on the references", ("config", "test", "model", "out"), _reference_loss, launched=True
    ),
    "subsets": Stage("test sets by length, from S-NI's tasks or UnNI", ("out",), _subsets, ("source", "config", "tokenizer")),
    "calibration": Stage(
        "accuracy and calibration on a classification task", ("config", "model", "out"), _calibration, launched=True
    ),
    "judge": Stage("a judge's scores of responses", ("config", "generations", "cache", "out"), _judge),
    "human-export": Stage(
        "a page of blind comparisons for annotators",
        ("generations", "against", "out"),
        _human_export,
        ("config",),
        several=("against",),
    ),
    "human-import": Stage(
        "win, tie and loss from annotators' files",
        ("answers", "key", "out"),
        _human_import,
        ("also",),
        several=("answers", "also"),
    ),
}


def _launch(args: argparse.Namespace):  # type: ignore[no-untyped-def]
    from minillm.config.sections import Launch
    from minillm.config.strict import parse

    try:
        raw = json.loads(args.launch)
    except json.JSONDecodeError as error:
        raise UserError(f"--launch: not JSON: {error}") from None
    return parse(Launch, raw, "--launch")


def parser() -> argparse.ArgumentParser:
    """The command line; every path a stage needs is a required option."""
    top = argparse.ArgumentParser(
        prog="python -m minillm", description="One stage of the MiniLLM pipeline; Snakemake calls these commands."
    )
    stages = top.add_subparsers(dest="stage", required=True, metavar="STAGE")
    for name, stage in STAGES.items():
        sub = stages.add_parser(name, help=stage.help, description=stage.help)
        for path in (*stage.paths, *stage.optional):
            many = "+" if path in stage.several else None
            sub.add_argument(f"--{path}", type=Path, required=path in stage.paths, nargs=many)
        if stage.launched:
            sub.add_argument(
                "--launch", default="{}", metavar="JSON", help="launch values: ZeRO stage, micro-batch ... (config.Launch)"
            )
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one stage; 0 on success, 2 with one line on stderr for what the user can mend."""
    args = parser().parse_args(arguments)
    if args.stage != "fetch":  # what comes from the hub has come by then (fetch.py); read when its clients are imported
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        STAGES[args.stage].run(args)
    except UserError as error:
        print(f"minillm {args.stage}: error: {error}", file=sys.stderr)
        return 2
    except Exception as error:  # each library has a kind of its own for a full disk
        if not is_full_disk(error):
            raise
        message = "the disk is full; free some space and run the same command again: it goes on from what is saved"
        print(f"minillm {args.stage}: error: {message} ({str(error).splitlines()[0]})", file=sys.stderr)
        return 2
    return 0


def is_full_disk(error: Exception) -> bool:
    """Whether a write failed for want of space, by its number or, where a library hides that, by its words."""
    number = error.errno if isinstance(error, OSError) else None
    return number in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in str(error)
