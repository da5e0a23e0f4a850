"""Every record of a run next to what it describes: hashes, settings, parents, rows and texts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import PreTrainedTokenizerBase

from minillm.config import layout
from minillm.config.stages import MEASUREMENTS
from minillm.data.local_files import content_of
from minillm.data.sources import read_tests
from minillm.evaluation.generations import read_generations
from minillm.evaluation.teacher_samples import read_samples
from minillm.files import (
    CARD,
    PROVENANCE,
    RECORD,
    differences,
    record_hash,
    settings_hash,
    sha256,
    without_unset,
)
from minillm.models.loading import load_tokenizer
from minillm.readers import read_json, read_object
from minillm.training.grid import with_choice
from minillm.training.teacher_answers import read_answers
from minillm.verify.findings import Findings
from minillm.verify.run_folder import AGAIN, LEFT, Run, content, metric_of

# Our JSON files, which bind their own values.
METRICS = layout.metric("**", "*", "*")
RECORDS = (
    f"{layout.training_data('*')}/{CARD}",
    f"{layout.teaching_data('*', '*')}/{CARD}",
    layout.grid_choice("**/*"),
    layout.card(layout.test_set("*", "*")),
    layout.card(layout.subset_rows("*")),
    "**/*.meta.json",
    METRICS,
    layout.key(layout.human_page("**", "*")),
    layout.table("*", "json"),
    layout.figure("*", "json"),
    layout.fetched("**/*"),
    f"{layout.judge_cache()}/**/*.json",
)


def check_records(run: Run, findings: Findings) -> None:
    """All of them; what differs goes into `findings`."""
    each(findings, run.files(layout.settings_file("**/*")), lambda path: _settings(run, findings, path))
    each(findings, (p for pattern in RECORDS for p in run.files(pattern)), lambda p: _record(findings, p))
    each(
        findings,
        run.files(f"{layout.training_data('*')}/{CARD}"),
        lambda path: _data(run, findings, path.parent),
    )
    each(
        findings,
        run.files(f"{layout.teaching_data('*', '*')}/{CARD}"),
        lambda path: _shown(run, findings, path.parent),
    )
    each(findings, run.files(layout.test_set("*", "*")), lambda path: _test_set(run, findings, path))
    each(
        findings, run.files(layout.card(layout.subset_rows("*"))), lambda path: _subsets(run, findings, path)
    )
    each(findings, run.files(layout.pseudo_answers("*", "*")), lambda path: _pseudo(run, findings, path))
    folders = [run.folder / layout.model(weights) for weights in run.weights()]
    each(findings, folders, lambda path: _model(run, findings, path))
    each(findings, run.files(layout.generations("**", "*")), lambda path: _generations(run, findings, path))
    each(findings, run.files(layout.samples("*", "*")), lambda path: _samples(run, findings, path))
    each(findings, run.files(METRICS), lambda path: _sources(run, findings, path))
    for sidecars in (layout.table("*", "json"), layout.figure("*", "json")):
        each(findings, run.files(sidecars), lambda path: _sidecar(run, findings, path))
    each(findings, run.files(layout.local("**/[!.]*")), lambda path: _local(run, findings, path))
    for path in run.files("**/*.meta.json"):
        rows = path.with_name(path.name.removesuffix(".meta.json") + ".jsonl")
        if not rows.is_file():
            findings.differs(rows, "is gone; its meta file is there")


def each(findings: Findings, paths: Iterable[Path], check: Callable[[Path], None]) -> None:
    """Check each path; what a reader refuses is a difference of that path."""
    for path in paths:
        try:
            check(path)
        except Exception as error:
            # Whatever a damaged file makes a stage do is what is looked for here.
            findings.failed(path, error)


def _record(findings: Findings, path: Path) -> None:
    value = read_object(path, {}, "no such file", AGAIN)
    findings.same(path, "values of JSON files", record_hash(value), value.get(RECORD))


def _settings(run: Run, findings: Findings, path: Path) -> None:
    key = path.relative_to(run.folder / "configs").with_suffix("").as_posix()
    run.settings(key)
    findings.checked["settings files"] += 1


def _of_settings(run: Run, findings: Findings, path: Path, key: str, recorded: Any) -> None:
    """The settings that a result records are those of its settings file."""
    findings.same(path, f"settings of {_stage(key)}", run.settings_hash(key), recorded)


def _stage(key: str) -> str:
    return key.split("/")[0]


# --- data
def _data(run: Run, findings: Findings, folder: Path) -> None:
    card = read_object(folder / CARD, {"content": str}, "no such file", AGAIN)
    _folder(findings, folder, CARD, card)
    _of_settings(run, findings, folder, "/".join(("data", folder.parent.name)), card.get("settings_sha256"))


def _shown(run: Run, findings: Findings, folder: Path) -> None:
    card = read_object(folder / CARD, {"content": str}, "no such file", AGAIN)
    _folder(findings, folder, CARD, card)
    data = folder.parents[1] / "training"
    findings.same(folder, "data folders of prompts", content(data), card.get("data"))
    _of_settings(run, findings, folder, f"prompts/{folder.name}", card.get("settings_sha256"))


def _folder(findings: Findings, folder: Path, name: str, record: dict[str, Any]) -> None:
    findings.checked["model folders" if name == PROVENANCE else "data folders"] += 1
    if "files" not in record:
        findings.skip("single files of folders", "not recorded (by a version before)")
    for problem in differences(folder, name, record):
        findings.differs(folder, problem)


def _test_set(run: Run, findings: Findings, path: Path) -> None:
    card = read_object(path.with_suffix(".card.json"), {}, "no such file", AGAIN)
    findings.same(path, "test sets", sha256(path), card.get("content"))
    data = path.parents[1] / "training"
    findings.same(path, "data folders of test sets", content(data), card.get("data"))
    _of_settings(run, findings, path, f"testset/{path.stem}", card.get("settings_sha256"))
    tokenizer = load_tokenizer(data / "tokenizer")
    for row in read_tests(path):
        if tokenizer.encode(row["prompt"], add_special_tokens=False) != row["prompt_tokens"]:
            findings.differs(
                path, f"id {row['id']}: the prompt's tokens are not those of the data's tokenizer"
            )
            break
    findings.checked["test sets against their tokenizer"] += 1


def _subsets(run: Run, findings: Findings, path: Path) -> None:
    card = read_object(path, {}, "no such file", AGAIN)
    files = card.get("files")
    for name, value in (files if isinstance(files, dict) else {}).items():
        file = path.with_name(name)
        findings.same(file, "rows by length", sha256(file) if file.is_file() else "nothing", value)
    key = f"subsets/{path.name.removesuffix('.card.json')}"
    _of_settings(run, findings, path, key, card.get("settings_sha256"))


def _local(run: Run, findings: Findings, path: Path) -> None:
    record = read_object(path, {"path": str}, "no such file", AGAIN)
    section = path.relative_to(run.folder / "local").parts[0]
    # An empty folder knows no hashes yet: the files are read.
    with TemporaryDirectory() as nothing:
        found = content_of(section, record["path"], Path(nothing))
    if found is None:
        findings.skip("local files of the configuration", "they are not here")
    else:
        findings.same(path, "local files of the configuration", found["content"], record.get("content"))


# --- models
def _model(run: Run, findings: Findings, folder: Path) -> None:
    keys = {"content": str, "settings": dict, "settings_sha256": str, "inputs": dict}
    provenance = read_object(folder / PROVENANCE, keys, "no such file", AGAIN)
    _folder(findings, folder, PROVENANCE, provenance)
    weights = folder.relative_to(run.folder / layout.model("")).as_posix()
    if not run.is_asked(weights):
        findings.skip("settings and inputs of models", LEFT)
        return
    own = settings_hash(provenance["settings"])
    findings.same(folder, "settings in provenance", own, provenance["settings_sha256"])
    stage = str(provenance["settings"].get("stage"))
    key = run.settings_key(weights, stage)
    settings = run.settings(key)
    if "grid" in provenance["inputs"]:
        settings, _ = with_choice(settings, run.parent(weights, "grid", provenance))
    theirs = settings_hash(dataclasses.asdict(settings))
    findings.same(folder, f"settings of {_stage(key)}", theirs, provenance["settings_sha256"])
    for role, value in provenance["inputs"].items():
        found = content(run.parent(weights, role, provenance))
        if found is None:
            findings.skip("inputs of models", "they are not here any more")
        else:
            findings.same(folder, "inputs of models", found, value, role)


# --- responses
@cache
def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(folder)


def _texts(findings: Findings, path: Path, rows: Iterable[dict[str, Any]], folder: Path) -> None:
    """Each response is the text of its tokens."""
    if not (folder / "tokenizer.json").is_file():
        findings.skip("responses against their tokens", "the model's tokenizer is not here")
        return
    tokenizer = _tokenizer(folder)
    for row in rows:
        findings.checked["responses against their tokens"] += 1
        if tokenizer.decode(row["response_tokens"], skip_special_tokens=True) != row["response"]:
            where = f"seed {row['seed']}, " if "seed" in row else ""
            findings.differs(path, f"{where}id {row['id']}: the response is not the text of its tokens")


def _generations(run: Run, findings: Findings, path: Path) -> None:
    place = layout.place_of(path.as_posix())
    assert place is not None
    _, weights, name = place
    if not run.is_asked(weights, name):
        findings.skip("generations", LEFT)
        return
    meta, rows, ids = read_generations(path)
    findings.same(path, "generations", sha256(path), meta.get("content"))
    model, test = run.folder / layout.model(weights), run.test(weights, name)
    if (model / PROVENANCE).is_file():
        findings.same(path, "models of generations", content(model), meta.get("model"))
    else:
        findings.skip("models of generations", "they are not here any more")
    findings.same(path, "test sets of generations", sha256(test), meta.get("test"))
    asked = {row["id"]: row for row in read_tests(test)}
    if sorted(asked) != ids:
        findings.differs(
            path, f"answers {len(ids)} rows that are not the {len(asked)} of {findings.below(test)}"
        )
    for seed, answers in rows.items():
        for id_, row in answers.items():
            for key in ("prompt", "references"):
                if id_ in asked and row.get(key) != asked[id_][key]:
                    findings.differs(path, f"seed {seed}, id {id_}: '{key}' is not that of the test set")
    every = (row for answers in rows.values() for row in answers.values())
    _texts(findings, path, every, model)
    settings = run.settings("generate")
    recorded = {key: meta.get(key) for key in ("seeds", "precision", "sampling")}
    asked_for = without_unset(dataclasses.asdict(settings))
    findings.same(
        path, "settings of generate", {key: asked_for[key] for key in recorded}, without_unset(recorded)
    )


def _samples(run: Run, findings: Findings, path: Path) -> None:
    meta, _ = read_samples(path, run.settings("samples"))
    findings.same(path, "samples", sha256(path), meta.get("content"))
    teacher = layout.teacher_weights(path.parent.name)
    findings.same(path, "models of samples", content(run.folder / layout.model(teacher)), meta.get("model"))
    findings.same(path, "test sets of samples", sha256(run.test(teacher, path.stem)), meta.get("test"))


def _pseudo(run: Run, findings: Findings, path: Path) -> None:
    data = path.parents[1] / "training"
    read_answers(path, data)
    meta_file = path.with_suffix(".meta.json")
    meta = read_json(meta_file) if meta_file.is_file() else {}
    findings.same(path, "the teacher's answers for SeqKD", sha256(path), meta.get("content"))
    teacher = run.folder / layout.model(layout.teacher_weights(path.stem))
    findings.same(path, "the teacher that answered", content(teacher), meta.get("teacher"))
    findings.same(path, "the prompts it answered", content(data), meta.get("data"))
    _of_settings(run, findings, path, f"pseudo/{path.stem}", meta.get("settings_sha256"))
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    _texts(findings, path, map(json.loads, lines), data / "tokenizer")


# --- results
def _sources(run: Run, findings: Findings, path: Path) -> None:
    metric = read_object(path, {}, "no such file", AGAIN)
    recorded = metric.get("sources_sha256")
    kind, weights, name, _ = metric_of(run, path)
    if not run.is_asked(weights, name):
        return
    entry = MEASUREMENTS.get(kind)
    if not isinstance(recorded, dict):
        if entry is not None and entry.launched:
            findings.skip("sources of metrics", "not recorded (by a version before)")
        return
    if entry is not None and entry.settings:
        key = f"{kind}/{path.stem}" if entry.key else kind
        _of_settings(run, findings, path, key, metric.get("settings_sha256"))
    for source, value in recorded.items():
        place = run.place(source)
        found = content(place)
        if found is None:
            findings.skip("sources of metrics", "they are not here any more")
        else:
            findings.same(path, "sources of metrics", found, value, findings.below(place))


def _sidecar(run: Run, findings: Findings, path: Path) -> None:
    sidecar = read_object(path, {}, "no such file", AGAIN)
    _of_settings(run, findings, path, f"publish/{path.stem}", sidecar.get("settings_sha256"))
    files = sidecar.get("files")
    for name, value in (files if isinstance(files, dict) else {}).items():
        file = path.with_name(name)
        found = sha256(file) if file.is_file() else "nothing"
        findings.same(file, "files of tables and figures", found, value)
