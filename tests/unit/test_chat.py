"""`minillm chat`, by a pipe; and an exported model in an environment that has transformers alone."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from takeaway_case import make_run

from minillm import chat as module
from minillm.chat import Speaker
from minillm.cli import main

CHATML = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
ALONE = """
import sys
ABSENT = "minillm deepspeed snakemake datasets accelerate gguf pandas pydantic scipy matplotlib".split()
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in ABSENT else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = map(Without, sys.meta_path)
try:
    import minillm
except ModuleNotFoundError:
    pass
else:
    sys.exit("minillm is there")
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokens = tokenizer(sys.argv[2], add_special_tokens=False, return_tensors="pt")
answer = model.generate(**tokens, do_sample=False, max_new_tokens=8)[0, tokens["input_ids"].shape[1]:]
print(answer.tolist())
"""


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("made") / "demo")


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """What `minillm chat` writes to stdout and stderr for these lines."""

    def run(lines: str, *arguments: object) -> tuple[str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        capsys.readouterr()
        assert main(["chat", *map(str, arguments)]) == 0
        return capsys.readouterr()

    return run


def with_chat_template(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    from minillm.models.loading import load_tokenizer

    tokenizer = load_tokenizer(to)
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(to)
    return to


def test_an_answer_is_the_models_own_greedy_continuation_of_the_trained_prompt(
    student: Path, talk: Any
) -> None:
    """Token by token, without generate: the prompt of the run's template, then the likeliest token."""
    out, err = talk("Say yes.\n", student, "--temperature", 0, "--max-tokens", 6)
    assert "template plain" in err
    speaker = Speaker.load(student)
    ids = speaker.tokenizer.encode("Say yes.\n### Response:\n", add_special_tokens=False)
    own: list[int] = []
    while len(own) < 6 and (not own or own[-1] != speaker.tokenizer.eos_token_id):
        with torch.no_grad():
            own.append(int(speaker.model(torch.tensor([ids + own])).logits[0, -1].argmax()))
    assert own and out == speaker.tokenizer.decode(own, skip_special_tokens=True) + "\n"


def test_the_seed_decides_and_the_number_of_the_line(student: Path, talk: Any) -> None:
    def answers(lines: str, seed: int) -> str:
        return talk(lines, student, "--seed", seed, "--max-tokens", 12)[0]

    first = answers("Say yes.\nSay yes.\n", 1)
    assert answers("Say yes.\nSay yes.\n", 1) == first != answers("Say yes.\nSay yes.\n", 2)
    # The second line of seed 1 is the first of seed 2.
    assert first.endswith(answers("Say yes.\n", 2))


def test_two_models_answer_each_line_in_turn(student: Path, talk: Any) -> None:
    other = student.parents[3] / "big/base"
    out, _ = talk("One.\n\nTwo.\n/quit\nThree.\n", student, other, "--max-tokens", 4)
    assert [line for line in out.splitlines() if line.startswith("[/")] == [f"[{student}]", f"[{other}]"] * 2


def test_a_chat_template_shows_the_turns_before_until_new(student: Path, tmp_path: Path) -> None:
    speaker = Speaker.load(with_chat_template(student, tmp_path / "chatty"))
    assert speaker.template == "chat"

    def prompt(line: str) -> str:
        return str(speaker.tokenizer.decode(speaker.prompt(line)[0]))

    assert prompt("One.") == "<user>One.\n<assistant>"
    said = speaker.answer("One.", 0.0, 2)
    assert prompt("Two.") == f"<user>One.\n<assistant>{said}\n<user>Two.\n<assistant>"
    speaker.turns.clear()
    assert prompt("Two.") == "<user>Two.\n<assistant>"


def test_the_template_that_a_run_trained_with_comes_before_the_tokenizers(
    student: Path, tmp_path: Path
) -> None:
    """A tokenizer of a chat model that was trained on other prompts still has its old template."""
    shutil.copytree(student.parents[4], tmp_path / "demo")
    folder = tmp_path / "demo/models" / student.relative_to(student.parents[3])
    shutil.copytree(with_chat_template(folder, tmp_path / "chatty"), folder, dirs_exist_ok=True)
    assert Speaker.load(folder).template == "plain"
    assert Speaker.load(folder, "chat").template == "chat"


def test_new_forgets(student: Path, tmp_path: Path, talk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        module.Speaker, "answer", lambda self, line, *_: (seen.append(len(self.turns)), self.turns.append({}))
    )
    talk("a\nb\n/new\nc\n", with_chat_template(student, tmp_path / "chatty"))
    assert seen == [0, 1, 0]


def test_a_line_that_is_too_long_is_said_and_the_next_is_answered(student: Path, talk: Any) -> None:
    out, err = talk("word " * 200 + "\nSay yes.\n", student, "--max-tokens", 4)
    assert "and the model has 64 positions; write less, or /new" in err and out.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{tmp}/gone"], "{tmp}/gone: no such folder; name the folder of a model"),
        (["{tmp}"], "{tmp}: no tokenizer here (tokenizer.json is missing)"),
        (["{student}", "--template", "chat"], "{student}: its tokenizer has no chat template; choose"),
        (["{student}", "{student}", "{student}"], "one model or two, please"),
        (["{student}", "--temperature", "-1"], "--temperature must be at least 0"),
    ],
)
def test_mistakes_are_one_line(
    student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    names = {"tmp": tmp_path, "student": student}
    assert main(["chat", *(text.format(**names) for text in arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"minillm chat: error: {said.format(**names)}") and error.count("\n") == 1


def test_an_exported_model_needs_transformers_alone(student: Path, tmp_path: Path) -> None:
    """In a process that can import neither this package nor what else it needs; the same greedy tokens."""
    prompt = "Say yes.\n### Response:\n"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(student), prompt],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    speaker = Speaker.load(student)
    ids = torch.tensor([speaker.tokenizer.encode(prompt, add_special_tokens=False)])
    own = speaker.model.generate(ids, do_sample=False, max_new_tokens=8)[0, ids.shape[1] :]
    assert done.stdout.strip() == str(own.tolist())
