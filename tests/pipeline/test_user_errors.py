"""Each mistake that a user can make is one line on stderr, exit code 2, and nothing is left half-written."""

import json
import shutil
import subprocess
import sys

import pytest

STUDENT, TEACHER = "tiny-student", "tiny-teacher"


def run(checkout, *arguments):
    command = [sys.executable, "-m", "minillm", *map(str, arguments)]
    process = checkout.start(command, stderr=subprocess.PIPE)
    output, errors = process.communicate(timeout=120)
    return process.returncode, output, errors.splitlines()


@pytest.fixture
def data_stage(finished, tmp_path):
    """Run the stage `data` with changed settings; returns its only error line."""

    def attempt(rows=None, path=None, **settings):
        source = path or tmp_path / "rows.jsonl"
        if rows is not None:
            source.write_text("".join(f"{row}\n" for row in rows))
        raw = json.loads((finished.run / "configs" / "data" / "embedded.json").read_text())
        raw["train"] = raw["dev"] | {"source": "folder", "path": str(source), "split": "", "rows": 0}
        config, out = tmp_path / "settings.json", tmp_path / "out" / "data"
        config.write_text(json.dumps(raw | settings))
        code, _, errors = run(finished, "data", "--config", config, "--out", out)
        assert code == 2 and len(errors) == 1, errors
        assert not list(tmp_path.glob("out/*")), "nothing half-written"
        return errors[0]

    return attempt


GOOD = '{"instruction": "Say yes.", "input": "", "output": "yes"}'


def test_missing_data_folder(data_stage, tmp_path):
    line = data_stage(path=tmp_path / "nowhere" / "rows.jsonl")
    assert line.startswith("minillm data: error: ") and str(tmp_path / "nowhere" / "rows.jsonl") in line


def test_a_line_that_does_not_parse(data_stage, tmp_path):
    assert f"{tmp_path}/rows.jsonl:2: " in data_stage([GOOD, '{"instruction": "Say', GOOD])


def test_a_row_without_output(data_stage, tmp_path):
    line = data_stage([GOOD, GOOD.replace("yes.", "no."), '{"instruction": "Say no."}'])
    assert f"{tmp_path}/rows.jsonl:3: " in line and "output" in line


def test_an_unknown_key(data_stage):
    assert "settings.json: max_prompts: unknown key; did you mean 'max_prompt'?" in data_stage([GOOD], max_prompts=3)


def test_a_learning_rate_that_yaml_read_as_text(finished, tmp_path):
    raw = json.loads((finished.run / "configs" / "sft" / STUDENT / "10.json").read_text())
    raw["training"]["lr"] = "1e-4"
    (tmp_path / "settings.json").write_text(json.dumps(raw))
    code, _, errors = run(finished, *sft(finished, tmp_path, config=tmp_path / "settings.json"))
    assert code == 2 and len(errors) == 1
    assert "settings.json: training.lr: " in errors[0] and "'1e-4'" in errors[0] and "1.0e-4" in errors[0]


def sft(checkout, out, config=None, base=None, data=None):
    run_ = checkout.run
    return [
        "sft",
        *("--config", config or run_ / "configs" / "sft" / STUDENT / "10.json"),
        *("--data", data or run_ / "data" / "embedded" / "training"),
        *("--base", base or run_ / "models" / STUDENT / "base"),
        *("--out", out / "models" / "sft", "--init", out / "models" / "init", "--checkpoints", out / "checkpoints"),
    ]


def last_error(errors):
    """Libraries may warn before; the stage's own line is the last and the only one of its kind."""
    own = [line for line in errors if line.startswith("minillm ")]
    assert own == errors[-1:] and not any("Traceback" in line for line in errors), errors
    return own[0]


def test_a_student_whose_vocabulary_does_not_match(finished, tmp_path):
    from minillm.tokenizers import train_tokenizer

    base = tmp_path / "base"
    shutil.copytree(finished.run / "models" / STUDENT / "base", base)
    train_tokenizer(["quite another text, with other words"], 300).save_pretrained(base)
    code, _, errors = run(finished, *sft(finished, tmp_path, base=base))
    assert code == 2
    line = last_error(errors)
    assert str(base) in line and "vocabulary does not match" in line
    assert not (tmp_path / "models").exists()


def test_a_model_folder_without_weights(finished, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(finished.run / "models" / STUDENT / "base", base)
    (base / "model.safetensors").unlink()
    code, _, errors = run(finished, *sft(finished, tmp_path, base=base))
    assert code == 2
    line = last_error(errors)
    assert str(base) in line and "without weights" in line


def test_a_batch_that_the_processes_do_not_divide():
    from minillm.engine import split_batch
    from minillm.errors import UserError

    assert split_batch(64, 8, 4) == (8, 2)
    assert split_batch(6, 4, 1) == (3, 2)
    with pytest.raises(UserError, match="global batch of 10 rows .* 4 processes"):
        split_batch(10, 8, 4)


def test_help_imports_no_torch(finished):
    code = "import sys; from minillm.cli import parser; parser().format_help(); sys.exit('torch' in sys.modules)"
    assert finished.start([sys.executable, "-c", code]).wait(60) == 0
