"""An input is what its own record says, or it is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from data_case import BASE, message

from minillm.data.prepare import run_stage as prepare
from minillm.files import identity, write_json
from minillm.readers import read_json
from minillm.runtime import provenance


def model(folder: Path) -> Path:
    folder.mkdir()
    for name in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes(f"{name}: some bytes".encode())
    provenance.write(folder, {"lr": 1.0}, {"data": "x"}, {"seed": 10})
    return folder


def one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "file", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"]
)
def test_one_bit_of_a_model(tmp_path: Path, file: str) -> None:
    folder = model(tmp_path / "model")
    assert len(identity(folder)) == 64
    one_bit(folder / file)
    assert message(lambda: identity(folder)).startswith(f"{folder}: {file} is not what provenance.json says")


def test_a_model_that_lacks_a_file_and_one_with_another_record(tmp_path: Path) -> None:
    folder = model(tmp_path / "model")
    record = (folder / "provenance.json").read_text()
    (folder / "provenance.json").write_text(record.replace('"lr": 1.0', '"lr": 2.0'))
    assert "provenance.json has changed since it was written" in message(lambda: identity(folder))
    (folder / "provenance.json").write_text(record)
    (folder / "tokenizer_config.json").unlink()
    assert "tokenizer_config.json is gone" in message(lambda: identity(folder))


def test_a_model_of_an_earlier_version(tmp_path: Path) -> None:
    """Its record has one hash over weights, configuration and tokenizer, and no other."""
    folder = model(tmp_path / "model")
    content = read_json(folder / "provenance.json")["content"]
    (folder / "provenance.json").write_text(f'{{"content": "{content}"}}')
    assert identity(folder) == content
    one_bit(folder / "model.safetensors")
    assert "its content is not what provenance.json says" in message(lambda: identity(folder))


@pytest.mark.parametrize(
    "file", ["train.tokens.npy", "dev.jsonl", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"]
)
def test_one_bit_of_a_data_folder(tmp_path: Path, file: str) -> None:
    prepare(BASE, out=tmp_path / "data")
    content = identity(tmp_path / "data")
    assert content == read_json(tmp_path / "data/card.json")["content"]
    one_bit(tmp_path / "data" / file)
    assert f"{file} is not what card.json says" in message(lambda: identity(tmp_path / "data"))


def test_the_hash_of_a_data_folder_is_that_of_earlier_versions(tmp_path: Path) -> None:
    """A run that was begun before is resumed: its checkpoints are named after these hashes."""
    prepare(BASE, out=tmp_path / "data")
    card = read_json(tmp_path / "data/card.json")
    from hashlib import sha256

    def of(path: Path) -> str:
        return sha256(path.read_bytes()).hexdigest()

    names = sorted(p for p in (tmp_path / "data").iterdir() if p.suffix in (".npy", ".jsonl"))
    parts = [of(tmp_path / "data/tokenizer/tokenizer.json"), *(f"{p.name} {of(p)}" for p in names)]
    assert card["content"] == sha256("\n".join(parts).encode()).hexdigest()
    assert card["tokenizer"]["sha256"] == parts[0]


def test_an_object_written_again_has_one_record(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": 1})
    write_json(tmp_path / "b.json", read_json(tmp_path / "a.json"))
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    write_json(tmp_path / "c.json", [1, 2])
    assert read_json(tmp_path / "c.json") == [1, 2]
