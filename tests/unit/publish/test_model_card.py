"""What a user takes away: the card of a model, and what `minillm push` would upload."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from takeaway_case import WEIGHTS, make_run

from minillm.cli import main
from minillm.errors import UserError
from minillm.files import PROVENANCE, RECORD, identity, sha256, write_json
from minillm.publish import push as push_module
from minillm.publish.model_card import full_card, trained_template
from minillm.publish.push import push
from minillm.publish.style import number
from minillm.runtime.card import model_card


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("made") / "demo")


@pytest.fixture
def student(made: Path, tmp_path: Path) -> Path:
    """A copy of the run that may be changed; its student."""
    shutil.copytree(made.parents[4], tmp_path / "demo")
    return tmp_path / "demo/models" / WEIGHTS


def header(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): sha256(p) for p in folder.rglob("*") if p.is_file()}


def test_every_model_has_a_card_of_its_provenance_that_is_not_among_its_hashes(student: Path) -> None:
    card = (student / "README.md").read_text()
    assert "# small, kd" in card and "word-level distillation" in card and "lr: 0.001" in card
    assert header(card)["library_name"] == "transformers" and "license" not in header(card)
    assert "README.md" not in json.loads((student / PROVENANCE).read_text())["files"]
    before = identity(student)
    (student / "README.md").write_text("my own words")
    assert identity(student) == before


def test_its_numbers_are_those_of_the_metric_file(student: Path) -> None:
    run = student.parents[4]
    metric = json.loads((run / "metrics/rouge" / f"{WEIGHTS}/easy.json").read_text())
    assert metric["per_seed"]["10"] != metric["per_seed"]["20"]
    card = full_card(student)
    assert f"| easy | rouge | {number(metric['mean'], metric['standard_error'])} | 2 |" in card
    assert "sampling seeds 10, 20" in card


def test_a_number_of_other_weights_is_left_out_and_named(student: Path) -> None:
    meta = student.parents[4] / f"generations/{WEIGHTS}/easy.meta.json"
    write_json(meta, {**json.loads(meta.read_text()), "model": "f" * 64})
    card = full_card(student)
    assert "| easy |" not in card
    assert f"measured on other weights: metrics/rouge/{WEIGHTS}/easy.json" in card


def test_lineage_licences_data_and_prompt(student: Path) -> None:
    card = full_card(student)
    hub = "[OWNER/NAME](https://huggingface.co/OWNER/NAME) at revision `abc123`; licence: not recorded"
    assert f"- base: `small/base`; {hub}" in card
    assert "- teacher: `big/base`; the folder `published-teacher`; licence: apache-2.0" in card
    assert str(student.parents[5]) not in card
    assert header(card)["base_model"] == "OWNER/NAME"
    assert "16 rows of 16" in card and "INSTRUCTION\nINPUT\n### Response:" in card
    assert header(full_card(student, "mit"))["license"] == "mit"


def test_a_licence_in_the_configuration_comes_before_that_of_a_card(student: Path) -> None:
    run = student.parents[4]
    for name, licence in (("small", "mit"), ("big", "llama3.2")):
        path = run / f"models/{name}/base" / PROVENANCE
        record = json.loads(path.read_text())
        record["settings"]["model"]["licence"] = licence
        write_json(path, {key: value for key, value in record.items() if key != RECORD})
    card = full_card(student)
    assert "at revision `abc123`; licence: mit" in card
    assert "the folder `published-teacher`; licence: llama3.2" in card


def test_a_parent_that_was_made_again_is_no_ancestor(student: Path) -> None:
    shutil.rmtree(student.parents[4] / "models/big/base")
    assert "`small/base`" in full_card(student) and "`big/base`" not in full_card(student)


def test_the_template_is_that_of_the_data_it_was_trained_on(student: Path) -> None:
    run = student.parents[4]
    assert trained_template(student) == "plain"
    assert trained_template(run / "models/small/base") == ""
    path = run / "configs/data/letters.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "template": "alpaca"}))
    assert trained_template(student) == "" and "### Response" not in full_card(student)


def test_the_command_that_made_a_model_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    from minillm.runtime import provenance

    monkeypatch.setattr("sys.argv", ["/somewhere/minillm/__main__.py", "kd", "--out", "a b"])
    assert provenance.command() == "minillm kd --out 'a b'"
    monkeypatch.setattr("sys.argv", ["/somewhere/my_trainer.py", "x"])
    assert provenance.command() == ""


def test_the_command_card_prints_or_writes(student: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["card", str(student), "--licence", "mit"]) == 0
    printed = capsys.readouterr().out
    assert printed == full_card(student, "mit")
    assert main(["card", str(student), "--licence", "mit", "--out", str(student / "README.md")]) == 0
    assert (student / "README.md").read_text() == printed
    identity(student)


# --- push
class Hub:
    """Stands in for huggingface_hub.HfApi."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.calls, self.files = error, [], {}

    def create_repo(self, repo: str, **options: object) -> None:
        self.calls.append((repo, options))

    def create_commit(self, repo: str, operations: list, **options: object) -> None:
        if self.error:
            raise self.error
        for operation in operations:
            with operation.as_file() as file:
                self.files[operation.path_in_repo] = file.read()


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    return "hf_secretsecret"


def test_without_really_everything_is_shown_and_nothing_is_sent(student: Path, token: str) -> None:
    (student / ".snakemake_timestamp").write_text("")
    hub, before = Hub(), contents(student)
    text = "\n".join(push(student, "me/small", api=hub))
    for name in ("README.md", "model.safetensors", "tokenizer.json", "provenance.json", "metrics.jsonl"):
        assert f"  {name}\n" in text
    assert full_card(student) in text and "add --really" in text and "node7" in text
    assert ".snakemake_timestamp" not in text and "names no licence" in text
    assert not hub.calls and not hub.files and contents(student) == before


def test_really_uploads_the_folder_with_the_whole_card(student: Path, token: str) -> None:
    (student / ".snakemake_timestamp").write_text("")
    hub, before = Hub(), contents(student)
    push(student, "me/small", really=True, private=True, licence="mit", api=hub)
    assert hub.calls == [("me/small", {"private": True, "exist_ok": True, "token": token})]
    assert hub.files.pop("README.md").decode() == full_card(student, "mit")
    own = {path.name: path.read_bytes() for path in student.iterdir()}
    assert hub.files == {n: b for n, b in own.items() if n not in ("README.md", ".snakemake_timestamp")}
    assert contents(student) == before


def test_a_folder_that_is_not_what_its_record_says_is_not_uploaded(student: Path, token: str) -> None:
    (student / "config.json").write_text("{}")
    hub = Hub()
    with pytest.raises(UserError, match="config.json is not what provenance.json says"):
        push(student, "me/small", really=True, api=hub)
    assert not hub.calls


def test_a_refusal_is_one_line_without_the_token(student: Path, token: str) -> None:
    with pytest.raises(UserError) as refused:
        push(student, "me/small", really=True, api=Hub(RuntimeError(f"403 for {token}\nmore")))
    assert str(refused.value).startswith("me/small: the hub did not take it (403 for ***")
    assert token not in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["card", "{tmp}/gone"], "{tmp}/gone: no such folder; name the folder of a model"),
        (["card", "{tmp}"], "{tmp}/provenance.json: no such file; name the folder of a model of this"),
        (["push", "{student}", "no good"], "'no good': not the name of a repository of the hub; write OWNER"),
        (["push", "{student}", "alone"], "'alone': not the name of a repository of the hub; write OWNER"),
        (
            ["push", "{student}", "me/small", "--really"],
            "no token of the Hugging Face hub here; run `hf auth",
        ),
    ],
)
def test_mistakes_are_one_line(
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert main([text.format(tmp=tmp_path, student=made) for text in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"minillm {arguments[0]}: error: {said.format(tmp=tmp_path)}")
    assert error.count("\n") == 1


def test_what_is_uploaded_has_no_readme_of_its_own(made: Path) -> None:
    assert "README.md" not in push_module.files_of(made) and "config.json" in push_module.files_of(made)


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({"stage": "kd"}, "word-level distillation on the training rows"),
        (
            {"stage": "kd", "method": "hpd"},
            "word-level distillation on the training rows, variant `hpd`",
        ),
        ({"stage": "minillm", "method": "gkd"}, "on-policy distillation, variant `gkd`"),
    ],
)
def test_a_variant_is_named_after_what_trains_it(settings: dict[str, str], method: str) -> None:
    assert f"| method | {method} |" in model_card({"settings": settings})
