"""The configuration that `minillm init` writes: what differs from the defaults, and why."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import yaml

from minillm.config import layout
from minillm.config.data import Data as Lengths
from minillm.init.models import SHARED, Found
from minillm.init.rows import Data

# Methods that can be asked for: the pipeline's, and variants of MiniLLM by their settings (docs/method.md).
VARIANTS: dict[str, dict[str, Any]] = {
    "reverse-kl": {"label": "On-policy reverse KL", "settings": {"objective": "reverse_kl", "alpha": 0.0}},
    "forward-kl": {"label": "On-policy forward KL", "settings": {"objective": "forward_kl", "alpha": 0.0}},
    "gkd": {
        "label": "GKD",
        "settings": {"objective": "jensen_shannon", "alpha": 0.0, "student_share": 0.5},
    },
}
METHODS = ("sft", "kd", "seqkd", "minillm", *VARIANTS)
# Parameters from which the paper's smaller learning rates apply, and on which recomputation pays off.
LARGE = 1.0e9
# Columns of a line.
WIDTH = 110
CHAT = " (tokenizers.NAME.chat: system prompt, thinking, end)"
# Passes of the on-policy phase over the training prompts, at most the paper's number of collections.
PASSES, MOST = 10, 312


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a configuration is written for.  text: plain text, or "".

    renderers: whose tokenizer the teacher and the student read.
    """

    run: str
    teacher: Found
    student: Found
    renderers: tuple[Found, Found]
    data: Data
    methods: tuple[str, ...]
    text: str = ""
    finetune: bool = False


def text_of(asked: Asked) -> str:
    """The configuration, with comments."""
    teacher, student = asked.teacher, asked.student
    counts, chat = asked.data.counts, asked.data.template == "chat"
    parts = [
        f"# {teacher.name} teaches {student.name}: written by `minillm init`, to be read and changed.\n"
        "# It holds what differs from the defaults; docs/configuration.md has every key. Change it, and\n"
        "# `snakemake -n` says which jobs the change runs again.",
        _keys(run=asked.run),
        *_models(asked),
        f"# {counts['train']:,} rows to train on, {counts['dev']:,} to choose checkpoints by and "
        f"{counts['test']:,} to test on,\n# in the order of the file: shuffle it before if it is sorted.",
        _section("datasets", _datasets(asked)),
        f"# Prompts by `template: {asked.data.template}`{CHAT * chat}. Those longer than\n"
        "# max_prompt are dropped and counted, longer answers cut (256 tokens each, if nothing is said).",
        _section("data", _data(asked)),
        _keys(pairs=[{"teacher": teacher.name, "students": [student.name]}]),
        *_teacher(asked),
        *_methods(asked),
        *_stages(asked),
        *_launch(asked),
    ]
    # A comment belongs to the section below it.
    blocks = [part if part.startswith("#") else f"{part}\n" for part in parts]
    blocks[0] += "\n"
    return "\n".join(blocks).rstrip("\n") + "\n"


def _flow(value: Any) -> str:
    """YAML in one line."""
    return (
        yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6)
        .strip()
        .removesuffix("\n...")
    )


def _keys(**values: Any) -> str:
    return "\n".join(f"{key}: {_flow(value)}" for key, value in values.items())


def _section(name: str, values: dict[str, Any]) -> str:
    """A section, one line an entry; entries that would be long have one line a key."""
    lines = [f"{name}:"]
    for key, value in values.items():
        line = f"  {key}: {_flow(value)}"
        if len(line) <= WIDTH or not isinstance(value, dict):
            lines.append(line)
        else:
            lines += [f"  {key}:", *(f"    {k}: {_flow(v)}" for k, v in value.items())]
    return "\n".join(lines)


def _spec(model: Found, tokenizer: str) -> dict[str, Any]:
    """The keys of an entry of `models` or `checkpoints` that are set."""
    spec = {**dataclasses.asdict(model.spec), "tokenizer": tokenizer}
    return {key: value for key, value in spec.items() if value not in (None, "", (), {})}


def _tokenizers(asked: Asked) -> tuple[str, str]:
    """Names of the teacher's and the student's tokenizer: the catalogue's, or those that are written."""
    one = asked.renderers[0] is asked.renderers[1]
    names = [
        owner.spec.tokenizer if owner.known else SHARED if one else owner.name for owner in asked.renderers
    ]
    return names[0], names[1]


def _models(asked: Asked) -> list[str]:
    names, parts = _tokenizers(asked), []
    specs = {}
    for owner, name in zip(asked.renderers, names, strict=True):
        if not owner.known:
            spec = _spec(owner, "")
            specs[name] = {key: spec[key] for key in ("source", "path", "revision") if key in spec}
    if specs:
        comment = "# One for both models." if len(set(names)) == 1 else "# Each with its own chat template."
        parts += [comment, _section("tokenizers", specs)]
    pairs = zip((asked.teacher, asked.student), names, strict=True)
    new = {m.name: (m, name) for m, name in pairs if not m.known or m.spec.tokenizer != name}
    if new:
        parts += ["# `family` and `size` are what tables call them."]
        parts += [_section("models", {key: _spec(*both) for key, both in new.items()})]
    # Those of a folder are read there.
    shapes = {m.name: dict(m.shape) for m, _ in new.values() if m.spec.source == "hub" and not m.known}
    if shapes:
        parts += ["# Of their config.json, for `minillm plan`.", _section("shapes", shapes)]
    return parts


def _datasets(asked: Asked) -> dict[str, Any]:
    entries = dict(asked.data.entries)
    if asked.text:
        entries["text"] = {"source": "folder", "path": asked.text}
    return entries


def _data(asked: Asked) -> dict[str, Any]:
    values: dict[str, Any] = {"train": "train", "dev": "dev", "tests": ["test"]}
    if asked.text:
        values["corpus"] = "text"
    if asked.data.template != Lengths.template:
        values["template"] = asked.data.template
    return {**values, **_lengths(asked)}


def _lengths(asked: Asked) -> dict[str, int]:
    """`max_prompt` and `max_response`, if the defaults cut more than one row in a hundred, or do not fit."""
    room = min((m.positions for m in (asked.teacher, asked.student) if m.positions), default=10**9)
    usual = (Lengths.max_prompt, Lengths.max_response)
    if sum(usual) <= room and all(n <= u for n, u in zip(asked.data.lengths, usual, strict=True)):
        return {}
    prompt, response = (max(32, 32 * math.ceil(n / 32)) for n in asked.data.lengths)
    if not any(asked.data.lengths) or prompt + response > room:
        # Longer prompts are dropped, and counted.
        prompt, response = room // 2, room - room // 2
    values = {"max_prompt": prompt, "max_response": response}
    return values if room >= Lengths.corpus_length else {**values, "corpus_length": room}


def _teacher(asked: Asked) -> list[str]:
    if asked.finetune:
        return ["# The teacher is fine-tuned on the training rows first (stages.teacher)."]
    weights = layout.teacher_weights(asked.teacher.name)
    return [
        "# The teacher as it comes. Without this section it would be fine-tuned on the training rows first.",
        _section("checkpoints", {weights: _spec(asked.teacher, _tokenizers(asked)[0])}),
    ]


def _methods(asked: Asked) -> list[str]:
    chosen = {name: VARIANTS[name] for name in asked.methods if name in VARIANTS}
    parts = [_section("variants", chosen)] if chosen else []
    names = list(dict.fromkeys(("sft", *asked.methods)))
    return [*parts, "# SFT is the baseline, and where on-policy methods start.", _keys(methods=names)]


def _stages(asked: Asked) -> list[str]:
    """Learning rates of the paper's grid by size, and an on-policy phase as long as the rows allow."""
    small, large = (
        {"lr": 1.0e-4, "epochs": 3, "evaluations": 3},
        {"lr": 1.0e-5, "epochs": 3, "evaluations": 3},
    )
    student = large if asked.student.parameters >= LARGE else small
    stages: dict[str, Any] = {"teacher": large if asked.teacher.parameters >= LARGE else small}
    stages |= {"sft": student, "kd": {**student, "loss": "kd"}, "seqkd": student}
    rows = asked.data.counts["train"]
    rollouts = next((n for n in (256, 64, 16) if n <= rows), 16)
    batch = min(64, rollouts)
    collections = max(1, min(MOST, round(PASSES * rows / rollouts)))
    phase: dict[str, Any] = {"collections": collections, "rollouts": rollouts, "batch": batch}
    phase |= {"warmup": min(100, max(1, collections * rollouts // batch // 4)), "evaluations": 3}
    if not asked.text:
        phase["lm_coef"] = 0.0
    response = _lengths(asked).get("max_response")
    extra = {"max_tokens": response} if response else {}
    stages["minillm"] = phase | extra
    if response:
        stages["pseudo"] = {"sampling": extra}
    comments = [
        "# Learning rates of the paper's grid for these sizes: to be tried. All stages have to be here, also",
        "# those that `methods` does not use.",
        f"# On-policy: {PASSES} passes over the prompts, at most the paper's {MOST} collections.",
    ]
    if not asked.text:
        comments.append("# No plain text was given (--text), so there is no pre-training loss: lm_coef 0.")
    parts = [*comments, _section("stages", stages)]
    return [*parts, *([_keys(generate=extra)] if response else [])]


def _launch(asked: Asked) -> list[str]:
    head = "# How to run, which changes no result: processes (one per GPU), micro_batch, zero ..."
    large = max(asked.student.parameters, asked.teacher.parameters if asked.finetune else 0) >= LARGE
    values = {"default": {"gradient_checkpointing": True}} if large else {}
    return [head, _section("launch", values)] if values else [head + " under `launch`."]
