"""`minillm COMMAND ...`: commands for people, and the pipeline's stages, which the rules call.

The register (config/stages.py) says which paths a stage takes; a stage's module is imported only when it is
called, so `--help` imports no torch.
"""

from __future__ import annotations

import argparse
import errno
import os
import select
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minillm.config.stages import COMMANDS, Stage
from minillm.errors import UserError
from minillm.files import only_one


@dataclass(frozen=True)
class Command:
    """A command for people, not a stage of the pipeline."""

    help: str
    options: Callable[[argparse.ArgumentParser], None]
    # Returns the exit status.
    run: Callable[[argparse.Namespace], int]


def _plan_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--configfile",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="configurations, as for snakemake (config/config.yaml)",
    )
    sub.add_argument(
        "--machine",
        default="",
        metavar="NAME",
        help="search changes for what does not fit into it: L4, RTX4090, V100-32G, A100-40G, A100-80G "
        "(default), H100, H200, 'this CPU'",
    )
    sub.add_argument("targets", nargs="*", metavar="TARGET", help="files or rules, as for snakemake (all)")


def _plan(args: argparse.Namespace) -> int:
    from minillm.plan import plan

    plan(args.configfile or (), args.targets, args.machine)
    return 0


def _methods_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("name", nargs="?", default="", metavar="NAME", help="one method, with its settings")


def _methods(args: argparse.Namespace) -> int:
    from minillm.methods import show

    print(show(args.name))
    return 0


def _layers_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("model", type=Path, metavar="MODEL", help="a model's folder, below results/RUN/models")
    sub.add_argument(
        "--test",
        type=Path,
        required=True,
        metavar="FILE",
        help="a test set below results/RUN/data; take a dev set",
    )
    sub.add_argument("--keep", type=int, required=True, metavar="N", help="layers to keep")
    sub.add_argument("--rows", type=int, default=40, metavar="N", help="first rows to take the loss on (40)")
    sub.add_argument("--batch", type=int, default=8, metavar="N", help="rows at a time (8)")
    sub.add_argument("--precision", choices=["fp32", "bf16"], help="of weights (a GPU: bf16, a CPU: fp32)")


def _layers(args: argparse.Namespace) -> int:
    from minillm.evaluation.left_out import main

    main(args.model, args.test, args.keep, args.rows, args.batch, args.precision)
    return 0


def _verify_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run, such as results/demo")
    sub.add_argument(
        "--models",
        action="store_true",
        help="also compute again what needs a model: reference loss, calibration, exposure bias",
    )


def _verify(args: argparse.Namespace) -> int:
    from minillm.verify.command import main

    return main(args.run, args.models)


def _archive_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run, such as results/demo")
    sub.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="NAME.tar.gz")


def _archive(args: argparse.Namespace) -> int:
    from minillm.publish.archive import archive

    print("\n".join(archive(args.run, args.out)))
    return 0


def _rebuild_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "archive", type=Path, metavar="ARCHIVE", help="what `minillm archive` wrote, or unpacked"
    )
    sub.add_argument("-o", "--out", type=Path, metavar="FOLDER", help="a new folder to unpack the file into")
    sub.add_argument("--figures", action="store_true", help="also draw the figures again")


def _rebuild(args: argparse.Namespace) -> int:
    from minillm.verify.rebuild import main

    return main(args.archive, args.out, args.figures)


def _crate_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run, such as results/demo")
    sub.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="a new folder, or NAME.zip")
    sub.add_argument("--zip", action="store_true", help="write one file")
    sub.add_argument("--configfile", type=Path, nargs="+", default=(), metavar="FILE", help="of the run")


def _crate(args: argparse.Namespace) -> int:
    from minillm.publish.crate import export_crate

    print("\n".join(export_crate(args.run, args.out, zipped=args.zip, configurations=args.configfile)))
    return 0


def _curves_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("run", type=Path, metavar="RUN", help="folder of a run, such as results/demo")
    sub.add_argument("--out", type=Path, metavar="FILE", help="the page (RUN/curves.html)")


def _curves(args: argparse.Namespace) -> int:
    from minillm.publish.curves_page import write_curves

    print(write_curves(args.run, args.out))
    return 0


def _card_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("model", type=Path, metavar="MODEL", help="a model's folder, below results/RUN/models")
    sub.add_argument("--out", type=Path, metavar="FILE", help="write the card there, such as MODEL/README.md")
    _licence_option(sub)


def _licence_option(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--licence",
        default="",
        metavar="ID",
        help="licence of the model, as the hub names it: apache-2.0 ...",
    )


def _card(args: argparse.Namespace) -> int:
    from minillm.files import whole_file
    from minillm.publish.model_card import full_card

    card = full_card(args.model, args.licence)
    if args.out is None:
        print(card, end="")
    else:
        with whole_file(args.out) as partial:
            partial.write_text(card, encoding="utf-8")
    return 0


def _push_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("model", type=Path, metavar="MODEL", help="a model's folder, below results/RUN/models")
    sub.add_argument(
        "repo", metavar="REPO", help="repository of the hub, OWNER/NAME; made if it is not there"
    )
    sub.add_argument("--really", action="store_true", help="upload; otherwise files and card are only shown")
    sub.add_argument("--private", action="store_true", help="make a new repository private")
    _licence_option(sub)


def _push(args: argparse.Namespace) -> int:
    from minillm.publish.push import push

    options = {"really": args.really, "private": args.private, "licence": args.licence}
    print("\n".join(push(args.model, args.repo, **options)))
    return 0


def _chat_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("models", type=Path, nargs="+", metavar="MODEL", help="folders of models, one or two")
    sub.add_argument("--temperature", type=float, default=1.0, help="0: always the likeliest token (1.0)")
    sub.add_argument("--seed", type=int, default=10, help="the same seed and lines, the same answers (10)")
    sub.add_argument("--max-tokens", type=int, default=256, metavar="N", help="longest answer (256)")
    sub.add_argument(
        "--template",
        choices=("chat", "alpaca", "plain"),
        default="",
        help="how a line becomes a prompt (as the model was trained, else chat if it has that, else alpaca)",
    )


def _chat(args: argparse.Namespace) -> int:
    from minillm.chat import chat

    chat(args.models, args.temperature, args.seed, args.max_tokens, args.template)
    return 0


def _init_options(sub: argparse.ArgumentParser) -> None:
    model = "a folder, a name of config/models.yaml, or OWNER/NAME of the hub"
    sub.add_argument("--teacher", required=True, metavar="NAME", help=model)
    sub.add_argument("--student", required=True, metavar="NAME", help="the same")
    sub.add_argument(
        "--data", required=True, metavar="FILE", help="rows, or OWNER/NAME of the hub; split into three"
    )
    for part in ("dev", "test"):
        sub.add_argument(f"--{part}", default="", metavar="FILE", help=f"rows of the {part} set, if apart")
    sub.add_argument("--text", default="", metavar="FILE", help="plain text for the pre-training loss")
    sub.add_argument(
        "--method",
        nargs="+",
        action="extend",
        metavar="NAME",
        help="sft, kd, seqkd, minillm, reverse-kl, forward-kl, gkd (minillm)",
    )
    sub.add_argument(
        "--finetune-teacher", action="store_true", help="fine-tune the teacher on the rows first"
    )
    sub.add_argument("--run", default="", metavar="NAME", help="name of the run (STUDENT-from-TEACHER)")
    sub.add_argument("--out", type=Path, metavar="FILE", help="the configuration (RUN.yaml)")


def _init(args: argparse.Namespace) -> int:
    from minillm.init.command import begin

    options = {"dev": args.dev, "test": args.test, "text": args.text, "run": args.run, "out": args.out}
    begin(
        args.teacher,
        args.student,
        args.data,
        methods=args.method or ["minillm"],
        finetune=args.finetune_teacher,
        **options,
    )
    return 0


PEOPLE = {
    "init": Command("write a configuration for two models and your rows", _init_options, _init),
    "plan": Command(
        "jobs, hours, critical path and memory of what a configuration would still run", _plan_options, _plan
    ),
    "layers": Command("layers that a pruned student can do without", _layers_options, _layers),
    "methods": Command("published methods that a configuration may name", _methods_options, _methods),
    "verify": Command(
        "whether a finished run is what its records say; status 1 if anything differs",
        _verify_options,
        _verify,
    ),
    "archive": Command(
        "a run's generations, metrics and records in one file, without models", _archive_options, _archive
    ),
    "rebuild": Command(
        "the tables of a run from its archive; status 1 if any differs", _rebuild_options, _rebuild
    ),
    "export-crate": Command("a run and its workflow as a Workflow Run RO-Crate", _crate_options, _crate),
    "curves": Command("the curves of every training, also while it runs", _curves_options, _curves),
    "card": Command("the model card of a model, with what its run measured", _card_options, _card),
    "push": Command(
        "upload a model, its card and its provenance to the hub; without --really only show it",
        _push_options,
        _push,
    ),
    "chat": Command("talk to one model or two in a terminal", _chat_options, _chat),
}


def parser() -> argparse.ArgumentParser:
    """The command line; every path that a stage needs is a required option."""
    every = {
        **{name: command.help for name, command in PEOPLE.items()},
        **{n: s.help for n, s in COMMANDS.items()},
    }
    width = max(map(len, every))
    top = argparse.ArgumentParser(
        prog="minillm",
        usage="%(prog)s [-h] COMMAND ...",
        description="MiniLLM: distillation by on-policy reverse KL, as a pipeline of stages.",
        epilog="\n".join(
            [
                "commands:",
                *(f"  {name:<{width}}  {command.help}" for name, command in PEOPLE.items()),
                "",
                "stages, which the rules of the pipeline call (`snakemake -n -p` prints how):",
                *(f"  {name:<{width}}  {stage.help}" for name, stage in COMMANDS.items()),
                "",
                "`minillm COMMAND --help` lists its options.",
            ]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = top.add_subparsers(
        dest="command", required=True, metavar="COMMAND", prog="minillm", help=argparse.SUPPRESS
    )
    for name, command in PEOPLE.items():
        command.options(subparsers.add_parser(name, description=command.help))
    for name, stage in COMMANDS.items():
        _add_stage(subparsers.add_parser(name, description=stage.help), stage)
    return top


def _add_stage(sub: argparse.ArgumentParser, stage: Stage) -> None:
    for path in (*stage.required, *stage.optional):
        # A rule may have no file to name after an optional one.
        many = "+" if path in stage.several else "?" if path in stage.optional else None
        sub.add_argument(f"--{path}", type=Path, required=path in stage.required, nargs=many)
    if stage.launched:
        sub.add_argument(
            "--launch",
            default="{}",
            metavar="JSON",
            help="launch values: ZeRO stage, micro-batch ... (docs/configuration.md)",
        )


# 128 + SIGPIPE, as a shell has it of other tools.
UNREAD = 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its status, or 2 after one line on stderr about what the user can fix.

    If nobody reads what it prints any more (`| head`), it ends quietly, as other tools do, with `UNREAD`.
    """
    try:
        try:
            return _run(arguments)
        finally:
            # What is buffered, of --help too: later, at the interpreter's end, nothing could be said of it.
            sys.stdout.flush()
    except BrokenPipeError:
        unread = unread_streams()
        # Of another pipe or socket.
        if not unread:
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in unread:
            os.dup2(nowhere, stream)
        return UNREAD


def unread_streams() -> list[int]:
    """Which of standard output (1) and error (2) are pipes whose reader is gone."""
    poll = select.poll()
    for stream in (1, 2):
        poll.register(stream, 0)
    return [stream for stream, event in poll.poll(0) if event & (select.POLLERR | select.POLLHUP)]


def _run(arguments: Sequence[str] | None) -> int:
    args = parser().parse_args(arguments)
    # What comes from the hub was fetched before (data/fetch.py).  Its clients read the variable on import.
    if args.command not in ("fetch", "push", "init"):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        if args.command in PEOPLE:
            return PEOPLE[args.command].run(args)
        run_stage(COMMANDS[args.command], args)
    except UserError as error:
        print(f"minillm {args.command}: error: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        # Each library has its own exception for a full disk, and for a process that is gone.
        if is_full_disk(error):
            message = "the disk is full; free some space and run"
        elif is_lost_process(error):
            message = "another process of this job ended, and its line says why if it could; run"
        else:
            raise
        message += " the same command again: it resumes from what is saved"
        print(f"minillm {args.command}: error: {message} ({str(error).splitlines()[0]})", file=sys.stderr)
        return 2
    return 0


def run_stage(stage: Stage, args: argparse.Namespace) -> None:
    """Call a stage's entry point with its settings and launch values, if it has them, and its paths by name.

    Raises UserError as the stage does.
    """
    positional: list[Any] = []
    paths = {
        path.replace("-", "_"): getattr(args, path.replace("-", "_"))
        for path in (*stage.required, *stage.optional)
    }
    if stage.settings:
        positional.append(_settings(stage, paths.pop("config")))
    if stage.launched:
        positional.append(_launch(args.launch))
    # Of several processes one holds the lock.  The others belong to the same start.
    first = os.environ.get("RANK", "0") == "0"
    with only_one(paths["out"]) if stage.launched and first else nullcontext():
        stage.entry_point()(*positional, **paths)


def _settings(stage: Stage, path: Path | None) -> Any:
    from minillm.config.strict import load

    cls = stage.settings_class()
    return load(cls, path) if cls and path else None


def _launch(text: str) -> Any:
    from minillm.config.launch import Launch
    from minillm.config.strict import parse
    from minillm.readers import parse_json

    return parse(Launch, parse_json(text, "--launch"), "--launch")


def is_lost_process(error: Exception) -> bool:
    """Whether gloo or NCCL lost the connection to another process of the job."""
    said = ("Connection reset by peer", "Connection closed by peer", "remote process has exited")
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and any(text in str(error) for text in said)


def is_full_disk(error: Exception) -> bool:
    """Whether a write failed for lack of space: by error number or, if a library hides that, by message."""
    number = error.errno if isinstance(error, OSError) else None
    return number in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in str(error)
