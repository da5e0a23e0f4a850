"""What local files hold is computed once for a path, size and time of change."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from minillm.data import local_files
from minillm.data.local_files import content_of, is_local


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read for their hash."""
    found: list[str] = []
    original = local_files.sha256
    monkeypatch.setattr(
        local_files, "sha256", lambda path: (found.append(Path(path).name), original(path))[1]
    )
    return found


def model(folder: Path) -> Path:
    folder.mkdir()
    for name in (
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "README.md",
        ".gitignore",
        "tf_model.h5",
    ):
        (folder / name).write_text(name)
    return folder


def content(section: str, path: Path, run: Path) -> str:
    found = content_of(section, str(path), run)
    assert found is not None
    return str(found["content"])


def test_files_are_read_once(tmp_path: Path, reads: list[str]) -> None:
    folder, run = model(tmp_path / "model"), tmp_path / "results/run"
    first = content("models", folder, run)
    assert sorted(reads) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert content("models", folder, run) == first and len(reads) == 3
    os.utime(folder / "model.safetensors", (1, 1))
    assert content("models", folder, run) == first and reads[3:] == ["model.safetensors"]
    (folder / "config.json").write_text("another")
    second = content("models", folder, run)
    assert second != first and reads[4:] == ["config.json"]
    (folder / "README.md").write_text("another")
    assert content("models", folder, run) == second and len(reads) == 5
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    assert content("models", folder, run) != second


def test_a_damaged_record_of_hashes_is_made_again(tmp_path: Path, reads: list[str]) -> None:
    folder, run = model(tmp_path / "model"), tmp_path / "run"
    first = content("models", folder, run)
    for text in ("{", "[]", '{"a": 1}', "\xff", "[" * 10_000):
        (run / "local/.known.json").write_text(text, encoding="latin-1")
        assert content("models", folder, run) == first
    assert len(reads) == 6 * 3


def test_only_what_is_read(tmp_path: Path) -> None:
    """Of a tokenizer its own files, of data what lies below, of a model nothing below."""
    folder, run = model(tmp_path / "model"), tmp_path / "run"
    of_tokenizer, of_model = content("tokenizers", folder, run), content("models", folder, run)
    (folder / "model.safetensors").write_text("another")
    assert content("tokenizers", folder, run) == of_tokenizer and content("models", folder, run) != of_model
    of_model, of_data = content("models", folder, run), content("datasets", folder, run)
    (folder / "below").mkdir()
    (folder / "below/a.jsonl").write_text("a")
    assert content("models", folder, run) == of_model and content("datasets", folder, run) != of_data


def test_what_is_not_here_has_no_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MINILLM_DATA", raising=False)
    for path in (str(tmp_path / "nothing"), "$MINILLM_DATA/a.jsonl", "package:no_such_package/a"):
        assert content_of("datasets", path, tmp_path) is None
        assert is_local("folder", path)
    monkeypatch.chdir(tmp_path)
    assert not is_local("hub", "owner/name") and not is_local("embedded", "") and not is_local("scratch", "")
    (tmp_path / "owner/name").mkdir(parents=True)
    assert is_local("hub", "owner/name")


def test_where_nothing_can_be_written_it_is_computed_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[str]
) -> None:
    folder = model(tmp_path / "model")

    def refuse(path: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(local_files, "whole_file", refuse)
    assert content("models", folder, tmp_path) == content("models", folder, tmp_path)
    assert len(reads) == 6
