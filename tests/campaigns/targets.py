"""Every reader of the package, with valid files to damage.

A target's `read` gets a folder that holds its files and returns what they hold, in a form that compares.
Stages that only read and write small files are run as a whole, so that partial output would be noticed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import io
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from minillm import readers
from minillm.cli import _launch
from minillm.config.data import Dataset, Tokenizer
from minillm.config.derive import canonical, stage_settings
from minillm.config.experiment import experiment
from minillm.config.measurements.diversity import DiversitySettings
from minillm.config.measurements.exposure_bias import SamplesSettings
from minillm.config.measurements.judge import Judge, JudgeSettings
from minillm.config.sections import Sampling
from minillm.config.stages import STAGES
from minillm.config.strict import load
from minillm.data import length_subsets
from minillm.data.rows import Corpus, Rows
from minillm.data.sources import read_entries, read_rows, read_tests, read_texts
from minillm.data.tokenizers import make_tokenizer
from minillm.evaluation import diversity, human, judge, rouge
from minillm.evaluation.answers import read_answers
from minillm.evaluation.teacher_samples import read_samples
from minillm.files import RECORD, data_content, hashes, identity, record_hash
from minillm.publish import archive
from minillm.sampling.generate import _read_journal
from minillm.training.supervised import training_examples
from tests.campaigns.run_targets import results
from tests.campaigns.target import REPO, Target, files_below, lines, stage_output

PLAN = REPO / "tests/config/plan.yaml"


def targets() -> list[Target]:
    """All of them."""
    return [*configurations(), *data(), *answers(), *results(), *archives()]


def archives() -> Iterator[Target]:
    """What `minillm archive` writes, of two files."""
    files = {"results/a/metrics.csv": b"mean\n1\n", "config/paper/table1.csv": b"a,b\n"}
    record = {"format": archive.FORMAT, "run": "a", "files": {n: archive.digest(c) for n, c in files.items()}}
    record[RECORD] = record_hash(record)
    with tempfile.TemporaryDirectory() as folder:
        archive._write(files | {archive.LIST: json.dumps(record).encode()}, Path(folder) / "a.tar.gz")
        yield Target("archive", files_below(Path(folder)), _unpacked)


def _unpacked(folder: Path) -> Any:
    archive.unpack(folder / "a.tar.gz", folder / "out")
    return sorted(files_below(folder / "out").items())


# --- configurations
def configurations() -> Iterator[Target]:
    yield Target(
        "configuration",
        {"config.yaml": PLAN.read_bytes()},
        lambda folder: experiment(readers.read_yaml(folder / "config.yaml"), str(folder / "config.yaml")),
    )
    names: dict[str, dict[str, Any]] = {
        "data": {"tokenizer": "letters"},
        "testset": {"test": "easy"},
        "base": {"model": "big"},
        "teacher": {"model": "big"},
        "kd": {"model": "small", "teacher": "big", "seed": 10},
        "pseudo": {"teacher": "big"},
        "minillm": {"model": "small", "teacher": "big", "seed": 10},
        "lengths": {"test": "easy"},
    }
    config = experiment(readers.read_yaml(PLAN))
    for stage in (*names, "generate", "rouge", "samples", "diversity", "judge", "human", "table", "metrics"):
        settings = canonical(stage_settings(config, stage, **names.get(stage, {})))
        cls: Any = STAGES[stage].settings_class()
        yield Target(
            f"settings of {stage}",
            {"settings.json": settings.encode()},
            lambda folder, cls=cls: load(cls, folder / "settings.json"),
        )
    yield Target(
        "launch values",
        {"launch.json": json.dumps({"zero": 1, "micro_batch": 4, "offload": False}).encode()},
        lambda folder: _launch((folder / "launch.json").read_bytes().decode("utf-8", "replace")),
    )


# --- data
TALKS = [
    {"messages": [{"role": "user", "content": f"Say {i}."}, {"role": "assistant", "content": f"{i}."}]}
    for i in range(5)
]
ROWS = [{"instruction": f"Say {i}.", "input": "", "output": f"{i}."} for i in range(5)]


def data() -> Iterator[Target]:
    table = "instruction,input,output\n" + "".join(f"Say {i}.,,{i}.\n" for i in range(5))
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), sink)
    held = {
        "rows.jsonl": lines(*ROWS),
        "messages.jsonl": lines(*TALKS),
        "rows.json": json.dumps(ROWS).encode(),
        "rows.csv": table.encode(),
        "rows.tsv": table.replace(",", "\t").encode(),
        "rows.parquet": sink.getvalue().to_pybytes(),
        "rows.jsonl.gz": gzip.compress(lines(*ROWS), mtime=0),
    }
    for name, content in held.items():
        yield Target(
            f"rows from {name}",
            {name: content},
            lambda folder, name=name: [
                read_rows(Dataset(source="folder", path=str(folder / name)), "datasets.a"),
                read_entries(Dataset(source="folder", path=str(folder / name)), "datasets.a")[0][0],
            ],
        )
    texts = {"a.txt": b"One , two .\nThree\n", "a.jsonl": lines({"text": "One"}, {"text": "two"})}
    for name, content in texts.items():
        yield Target(
            f"texts from {name}",
            {name: content},
            lambda folder, name=name: read_texts(Dataset(source="folder", path=str(folder / name)), "d"),
        )
    held = _data_folder()
    # Not through its card, which knows the hash of each file: damage would not reach the readers.
    tokens = [name for name in held if name.endswith((".npy", ".jsonl")) and name != "pseudo.jsonl"]
    yield Target("data folder", held, _read_data, damaged=tuple(tokens))
    whole = {name: content for name, content in held.items() if name != "pseudo.jsonl"}
    yield Target("card of a data folder", whole, identity, damaged=("card.json",))
    yield Target("answers of a teacher", held, _read_pseudo, damaged=("pseudo.jsonl",))
    test = {"dataset": "t", "prompt": "p", "prompt_tokens": [1, 2], "references": ["a"]}
    yield Target(
        "test set",
        {"t.jsonl": lines(*({"id": i, **test} for i in range(3)))},
        lambda f: read_tests(f / "t.jsonl"),
    )
    task = {
        "Definition": ["Add."],
        "Instances": [{"input": "1", "output": ["2"]}, {"input": "2", "output": "3"}],
    }
    yield Target(
        "tasks of S-NI",
        {"tasks/a.json": json.dumps(task).encode(), "test_tasks.txt": b"a\n"},
        lambda folder: stage_output(
            folder,
            lambda out: length_subsets.run_stage(None, source=folder, out=out / "all.jsonl"),
            "source",
        ),
        damaged=("tasks/a.json",),
    )


def _data_folder() -> dict[str, bytes]:
    record = {"instruction": "a", "input": "", "prompt": "p", "response": "r", "references": ["r"]}
    answer = {"response": "r", "response_tokens": [1, 2], "finished": True}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for split in ("train", "dev"):
            np.save(folder / f"{split}.tokens.npy", np.arange(12, dtype=np.int32))
            np.save(folder / f"{split}.lengths.npy", np.full((3, 2), 2, dtype=np.int32))
            (folder / f"{split}.jsonl").write_bytes(lines(*({"id": i, **record} for i in range(3))))
        np.save(folder / "corpus.tokens.npy", np.arange(16, dtype=np.int32))
        np.save(folder / "corpus.lengths.npy", np.full(2, 8, dtype=np.int32))
        tokenizer = make_tokenizer(Tokenizer(source="train", vocabulary=260), lambda: ["a b"])
        tokenizer.save_pretrained(folder / "tokenizer")
        held = files_below(folder)
        card = {"content": data_content(hashes(folder)), "train": {}}
    held["card.json"] = json.dumps(card).encode()
    held["pseudo.jsonl"] = lines(
        *({"id": i, "split": split, **answer} for split in ("train", "dev") for i in range(3))
    )
    return held


def _read_data(folder: Path) -> Any:
    parts = [Rows.open(folder, split) for split in ("train", "dev")]
    corpus = Corpus.open(folder)
    return [
        [(part.ids, [part.prompt(i).tolist() for i in range(len(part))]) for part in parts],
        [corpus.chunk(i).tolist() for i in range(len(corpus))],
    ]


def _read_pseudo(folder: Path) -> Any:
    parts = training_examples(folder, folder / "pseudo.jsonl")
    return [[(prompt.tolist(), answer.tolist()) for prompt, answer in part] for part in parts]


# --- responses
def answers() -> Iterator[Target]:
    row = {
        "dataset": "t",
        "prompt": "p",
        "references": ["a b"],
        "response": "a b",
        "response_tokens": [1, 2, 3],
    }
    rows = lines(*({"id": i, **row, "finished": True, "seed": seed} for seed in (10, 20) for i in range(3)))
    meta = {"dataset": "t", "rows": 3, "seeds": [10, 20], "sampling": {"temperature": 1.0}, "model": "m"}
    files = {"t.jsonl": rows, "t.meta.json": json.dumps(meta).encode()}
    yield Target("generations for ROUGE-L", files, _score)
    yield Target("generations for diversity", files, _count)
    settings = SamplesSettings("samples", 0, 2, 0, "fp32", Sampling())
    sample = {"prompt_tokens": [1], "responses": [[1, 2], [3]], "finished": [True, False]}
    meta = {"model": "m", "dataset": "t", "rows": 2, "settings": dataclasses.asdict(settings)}
    yield Target(
        "samples",
        {
            "t.jsonl": lines(*({"id": i, **sample} for i in range(2))),
            "t.meta.json": json.dumps(meta).encode(),
        },
        lambda folder: repr(read_samples(folder / "t.jsonl", settings)),
    )
    entry = {"response": "r", "response_tokens": [1], "finished": True}
    yield Target(
        "journal of answers",
        {".journal.jsonl": lines(*({"key": [10, i], **entry} for i in range(3)))},
        _read_copied_journal,
    )
    pairs = {f"p{i}": {"ours": "left", "against": "g/sft/t.jsonl", "row": i} for i in range(4)}
    page = {"format": "minillm-human-1", "study": "s"}
    key = {**page, "dataset": "t", "ours": "g/minillm/t.jsonl", "against": ["g/sft/t.jsonl"], "prompts": 4}
    answered = {
        **page,
        "annotator": "anna",
        "answers": dict(zip(pairs, ("left", "tie", "right", "left"), strict=True)),
    }
    yield Target(
        "answers of annotators",
        {"a.json": json.dumps(answered).encode(), "key.json": json.dumps({**key, "pairs": pairs}).encode()},
        lambda folder: stage_output(
            folder,
            lambda out: human.run_stage(
                answers=[folder / "a.json"], key=folder / "key.json", out=out / "m.json"
            ),
            "sources",
        ),
    )
    yield Target("verdicts of a judge", files | _verdicts(files), _judged, damaged=tuple(_verdicts(files)))


JUDGE = JudgeSettings("judge", Judge(kind="stand-in", tests=("t",)), "fp32")


def _verdicts(files: dict[str, bytes]) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path, content in files.items():
            (folder / path).write_bytes(content)
        _judge(folder, folder)
        return {name: content for name, content in files_below(folder).items() if name.startswith("cache/")}


def _judge(folder: Path, out: Path) -> Any:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        judge.run_stage(JUDGE, generations=folder / "t.jsonl", cache=out / "cache", out=out / "m.json")
    metric = json.loads((out / "m.json").read_bytes())
    # Its record is a hash of the place, too.
    return {k: v for k, v in metric.items() if k != "sources" and not k.endswith("_sha256")}


def _judged(folder: Path) -> Any:
    """The cache is copied first: the stage completes it."""
    with tempfile.TemporaryDirectory() as name:
        shutil.copytree(folder / "cache", Path(name) / "cache")
        return _judge(folder, Path(name))


def _read_copied_journal(folder: Path) -> Any:
    """The reader cuts off a line that a kill cut short, in the file too."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "journal"
        path.write_bytes((folder / ".journal.jsonl").read_bytes())
        return _read_journal(path)


def _score(folder: Path) -> Any:
    path = folder / "t.jsonl"
    metric = stage_output(
        folder, lambda out: rouge.run_stage(generations=path, out=out / "m.json"), "sources"
    )
    return metric, str(dataclasses.replace(read_answers(path), path=Path()))


def _count(folder: Path) -> Any:
    settings = DiversitySettings("diversity", 2, "tokens")
    path = folder / "t.jsonl"
    return stage_output(
        folder,
        lambda out: diversity.run_stage(settings, generations=path, out=out / "d.json"),
        "sources",
    )
