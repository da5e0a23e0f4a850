"""`minillm init`: what it prints, and the file that it writes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from minillm.errors import UserError
from minillm.files import whole_file
from minillm.init.configuration import METHODS, Asked, text_of
from minillm.init.models import Found, find, shared_tokenizer
from minillm.init.rows import look
from minillm.plan import configuration, plan


def begin(
    teacher: str,
    student: str,
    data: str,
    *,
    methods: Sequence[str] = ("minillm",),
    dev: str = "",
    test: str = "",
    text: str = "",
    finetune: bool = False,
    run: str = "",
    out: Path | None = None,
) -> Path:
    """Look at models and data, write a configuration (RUN.yaml), print what was found and what it plans.

    Returns the file.  Raises UserError, one line, if something is missing, does not go together, or the file
    is there already; nothing is written then.
    """
    for name in methods:
        if name not in METHODS:
            raise UserError(f"--method {name}: unknown; choose from {', '.join(METHODS)}")
    # The paper's has nothing but the catalogue's models.
    known = configuration(())
    # The catalogue says that two of its models share a tokenizer; then no file of theirs is needed.
    pair = [known.models.get(name) for name in (teacher, student)]
    files = None in pair or pair[0].tokenizer != pair[1].tokenizer  # type: ignore[union-attr]
    models = [find(name, known, files) for name in (teacher, student)]
    if models[0].name == models[1].name:
        models[1] = dataclasses.replace(models[1], name=f"{models[1].name}-student")
    shared = shared_tokenizer(models[0], models[1], known)
    rows = look(data, shared.tokenizer, dev, test)
    run = run or f"{models[1].name}-from-{models[0].name}"
    out = out or Path(f"{run}.yaml")
    if out.exists():
        raise UserError(f"{out}: this file exists; name another with --out, or remove it")
    written = text_of(Asked(run, models[0], models[1], shared, rows, tuple(methods), text, finetune))
    with whole_file(out) as partial:
        partial.write_text(written, encoding="utf-8")
        # Refused before it stands under its name.
        configuration([partial])
    for line in _found(models, shared, rows.counts, data):
        print(line)
    print(f"written: {out}\n", flush=True)
    try:
        plan([out])
    except UserError as error:
        print(f"no plan: {error}")
    print(f"\nRead {out}, change it, and run:\n  snakemake --cores all --configfile {out}")
    return out


def _found(models: Sequence[Found], shared: Found, counts: dict[str, int], data: str) -> list[str]:
    teacher, student = models
    ratio = teacher.parameters / student.parameters
    lines = [f"teacher {teacher.line()}", f"student {student.line()} ({ratio:.3g} times smaller)"]
    lines += [f"tokenizer: that of {shared.name} for both"]
    if teacher.chats and student.chats:
        lines += ["prompts: the paper's (data.template alpaca)"]
    return [*lines, f"{data}: {', '.join(f'{n:,} {part}' for part, n in counts.items())} rows"]
