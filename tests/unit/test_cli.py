"""The command line: each mistake is one line on stderr and exit code 2, and leaves nothing at --out."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from embedded_data import DATA

import minillm
from minillm.cli import main
from minillm.config.stages import Stage

HERE = str(Path(minillm.__file__).parents[1])
GOOD = {"instruction": "Say yes.", "output": "yes"}
SUPERVISED = {
    "model": "small",
    "seed": 10,
    "precision": "fp32",
    "training": {"lr": 0.001, "epochs": 1.0, "batch": 4},
    "sampling": {"max_tokens": 4},
}


def minillm_(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": HERE, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "minillm", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def only_line(stage: object, code: int, errors: str) -> str:
    """The one line on stderr, without its beginning."""
    lines, beginning = errors.splitlines(), f"minillm {stage}: error: "
    assert code == 2 and len(lines) == 1 and lines[0].startswith(beginning), errors
    return lines[0].removeprefix(beginning)


def refused(stage: object, *arguments: object) -> str:
    """In a process of its own, so that what libraries write counts too."""
    done = minillm_(stage, *arguments)
    return only_line(stage, done.returncode, done.stderr)


def refused_here(capfd: pytest.CaptureFixture[str], stage: object, *arguments: object) -> str:
    """In this process, which has imported everything: for mistakes found before anything is started."""
    capfd.readouterr()
    return only_line(stage, main([*map(str, (stage, *arguments))]), capfd.readouterr().err)


def settings(path: Path, value: Any) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_help_and_command_line_import_no_torch() -> None:
    code = (
        "import runpy, sys\nsys.argv = ['minillm', *sys.argv[1:]]\n"
        "try: runpy.run_module('minillm', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "print([m for m in ('torch', 'transformers', 'numpy', 'pydantic') if m in sys.modules])"
    )
    for arguments in (["--help"], ["sft", "--help"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONPATH": HERE},
        )
        assert "usage: minillm" in done.stdout and done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (None, "data.train.path: {path}: no such file; check the path of this data set"),
        (
            [json.dumps(GOOD), "{broken"],
            "{path}:2: not JSON (Expecting property name enclosed in double quotes at column 2); "
            "fix or delete this line",
        ),
        (
            [json.dumps(GOOD), "", '{"instruction": "a"}'],
            "{path}:3: no output in the field 'output'; fix or delete this row",
        ),
    ],
    ids=["missing folder", "unparsable line", "row without output"],
)
def test_mistakes_in_the_data(tmp_path: Path, lines: list[str] | None, said: str) -> None:
    path = tmp_path / "set" / "train.jsonl"
    if lines:
        path.parent.mkdir()
        path.write_text("\n".join(lines) + "\n")
    config = settings(tmp_path / "c.json", {**DATA, "train": {"source": "folder", "path": str(path)}})
    assert refused("data", "--config", config, "--out", tmp_path / "results" / "out") == said.format(
        path=path
    )
    assert not (tmp_path / "results").exists()


def sft(folder: Path, config: Path, data: Path, base: Path) -> list[object]:
    return [
        *("sft", "--config", config, "--data", data, "--base", base),
        *("--out", folder / "out", "--init", folder / "init", "--checkpoints", folder / "checkpoints"),
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"presicion": "fp32"}, "presicion: unknown key; did you mean 'precision'?"),
        (
            {"training": {"lr": "1e-4", "epochs": 1.0}},
            "training.lr: input should be a valid number, not the text '1e-4' "
            "(YAML reads 1e-4 as text: write 1.0e-4)",
        ),
    ],
    ids=["unknown key", "lr as text"],
)
def test_mistakes_in_the_settings(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], change: dict[str, Any], said: str
) -> None:
    import minillm.training.supervised  # noqa: F401  (what its imports write is not looked at here)

    config = settings(tmp_path / "c.json", {"stage": "sft", **SUPERVISED, **change})
    line = sft(tmp_path / "results", config, tmp_path / "data", tmp_path / "base")
    assert refused_here(capfd, *line) == f"{config}: {said}"
    assert not (tmp_path / "results").exists()


def test_settings_that_are_no_json_or_not_there(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config, out = tmp_path / "c.json", tmp_path / "results" / "out"
    line = ("data", "--config", config, "--out", out)
    assert refused_here(capfd, *line) == f"{config}: no such settings file"
    settings(config, "{")
    assert refused_here(capfd, *line).startswith(f"{config}: not JSON (")
    assert not out.parent.exists()


# --- models
def save(folder: Path, tokenizer: Any) -> Path:
    """A tiny random model with its tokenizer, as stage `base` leaves it."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from minillm.models.loading import save_model
    from minillm.runtime import provenance

    end = tokenizer.eos_token_id
    shape = GPT2Config(
        n_embd=16,
        n_layer=1,
        n_head=2,
        n_positions=128,
        vocab_size=len(tokenizer),
        bos_token_id=end,
        eos_token_id=end,
    )
    folder.mkdir()
    save_model(GPT2LMHeadModel(shape), tokenizer, folder)
    provenance.write(folder, {}, {}, {})
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/, base/ in its tokenizer, and other/ in another one of the same size."""
    from minillm.config.stage_settings import DataSettings
    from minillm.config.strict import parse
    from minillm.data.prepare import run_stage as prepare
    from minillm.data.tokenizers import train_tokenizer
    from minillm.models.loading import load_tokenizer

    folder = tmp_path_factory.mktemp("made")
    prepare(parse(DataSettings, DATA, "test"), out=folder / "data")
    save(folder / "base", load_tokenizer(folder / "data" / "tokenizer"))
    save(folder / "other", train_tokenizer(["quite another text with quite other words in it"] * 9, 300))
    return folder


def test_a_student_whose_vocabulary_does_not_match(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "results"
    config = settings(tmp_path / "c.json", {"stage": "sft", **SUPERVISED})
    said = refused(*sft(out, config, made / "data", made / "other"))
    assert said.startswith(
        f"{made / 'other'}: its vocabulary does not match that of {made / 'data' / 'tokenizer'} ("
    )
    training = {**SUPERVISED["training"], "loss": "kd"}  # type: ignore[dict-item]
    config = settings(
        tmp_path / "c.json", {"stage": "kd", **SUPERVISED, "teacher": "big", "training": training}
    )
    paths = ("--data", made / "data", "--base", made / "base", "--teacher", made / "other")
    said = refused(
        "kd", "--config", config, *paths, "--out", out / "out", "--checkpoints", out / "checkpoints"
    )
    assert said.startswith(f"{made / 'base'}: its vocabulary does not match that of {made / 'other'} (")
    assert said.endswith("choose a student of the teacher's family")
    assert not out.exists()


def test_a_model_folder_without_weights(made: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(made / "base", tmp_path / "base"))
    (base / "model.safetensors").unlink()
    config = settings(tmp_path / "c.json", {"stage": "sft", **SUPERVISED})
    expected = f"{base}: model.safetensors is gone; make the folder again"
    assert refused(*sft(tmp_path / "results", config, made / "data", base)) == expected
    assert not (tmp_path / "results").exists()


def test_a_folder_that_is_not_there(made: Path, tmp_path: Path) -> None:
    config = settings(tmp_path / "c.json", {"stage": "sft", **SUPERVISED})
    said = refused(*sft(tmp_path / "results", config, made / "data", tmp_path / "gone"))
    assert said.startswith(f"{tmp_path / 'gone'}: neither a model folder (provenance.json) nor a data folder")
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    "problem",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "metrics.jsonl"),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "metrics.jsonl"),
        RuntimeError("I/O error: No space left on device (os error 28)"),  # as safetensors has it
    ],
)
def test_a_full_disk_is_one_line(monkeypatch, capsys, problem):
    def fail(*settings, **paths):
        raise problem

    monkeypatch.setattr(Stage, "entry_point", lambda self: fail)
    assert main(["rouge", "--generations", "a", "--out", "b"]) == 2
    said = capsys.readouterr().err
    assert (
        said.startswith("minillm rouge: error: the disk is full; free some space") and said.count("\n") == 1
    )


@pytest.mark.parametrize(("processes", "status"), [("2", 2), ("1", None)])
def test_a_process_that_lost_another_ends_in_one_line(monkeypatch, capsys, processes, status):
    """As gloo says it; alone, it is an error of something else, and shown whole."""
    problem = RuntimeError("[pair.cc:537] Read error [127.0.0.1]:4796: Connection reset by peer. GLHF!")

    def fail(*settings, **paths):
        raise problem

    monkeypatch.setattr(Stage, "entry_point", lambda self: fail)
    monkeypatch.setenv("WORLD_SIZE", processes)
    command = ["rouge", "--generations", "a", "--out", "b"]
    if status is None:
        with pytest.raises(RuntimeError, match="Connection reset"):
            main(command)
        return
    assert main(command) == status
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "another process of this job ended" in said
    assert "the same command again: it resumes from what is saved" in said


def test_other_errors_are_not_a_full_disk(monkeypatch):
    def fail(*settings, **paths):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "b")

    monkeypatch.setattr(Stage, "entry_point", lambda self: fail)
    with pytest.raises(PermissionError):
        main(["rouge", "--generations", "a", "--out", "b"])


# A stage that prints more than a pipe holds, then one of a library's own pipe.
PRINTS = """
import sys
from minillm.cli import main
from minillm.config.stages import Stage

def prints(*settings, **paths):
    print("line\\n" * 100_000)

def loses(*settings, **paths):
    raise BrokenPipeError("a worker is gone")

Stage.entry_point = lambda self: prints if sys.argv[1] == "prints" else loses
sys.exit(main(["rouge", "--generations", "a", "--out", "b"]))
"""


@pytest.mark.parametrize(
    "command",
    [["-m", "minillm", "methods"], ["-m", "minillm", "--help"], ["-c", PRINTS, "prints"]],
    ids=["methods", "help", "a stage"],
)
@pytest.mark.parametrize("both", [False, True])
def test_it_ends_quietly_if_nobody_reads_what_it_prints(command: list[str], both: bool) -> None:
    """As `minillm methods | head` does once `head` has seen enough; also if errors go into the same pipe."""
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "PYTHONPATH": HERE}
    done = subprocess.run(
        [sys.executable, *command],
        stdout=writer,
        stderr=writer if both else subprocess.PIPE,
        env=environment,
        cwd=HERE,
        timeout=120,
    )
    os.close(writer)
    # argparse writes a long help itself, and lets such an error pass.
    assert done.returncode in ((0, 141) if "--help" in command else (141,)) and not done.stderr


def test_a_pipe_of_a_library_that_breaks_is_an_error() -> None:
    environment = {**os.environ, "PYTHONPATH": HERE}
    done = subprocess.run(
        [sys.executable, "-c", PRINTS, "loses"], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 1 and "BrokenPipeError: a worker is gone" in done.stderr
