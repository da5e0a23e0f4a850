"""What comes from the hub: fetched once, recorded with its hashes, and read with the hub switched off.

No network: the cache is laid out by hand as the hub's client lays it out, and the client itself reads it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import GatedRepoError

REPO = Path(__file__).resolve().parents[3]
REFUSED: Any = SimpleNamespace(headers={}, request=None, status_code=401)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def cached(home: Path, kind: str, name: str, files: dict[str, bytes]) -> Path:
    """A repository at COMMIT, which "main" points to, in the cache below `home`; the folder of its files."""
    root = home / "hub" / f"{kind}s--{name.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs/main").write_text(COMMIT)
    for file, content in files.items():
        blob = root / "blobs" / hashlib.sha256(content).hexdigest()
        blob.parent.mkdir(exist_ok=True)
        blob.write_bytes(content)
        link = root / "snapshots" / COMMIT / file
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return root / "snapshots" / COMMIT


def stage(home: Path, *arguments: object, offline: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HOME": str(home), "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    if offline:
        environment["HF_HUB_OFFLINE"] = "1"
    command = [sys.executable, "-m", "minillm", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def fetch(tmp_path: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    config = tmp_path / "fetch.json"
    config.write_text(
        json.dumps({"stage": "fetch", "revision": "main", "subset": "", "split": "", **settings})
    )
    return stage(tmp_path / "home", "fetch", "--config", config, "--out", tmp_path / "record.json")


def test_a_model_is_recorded_with_its_commit_and_hashes(tmp_path: Path) -> None:
    files = {"config.json": b"{}", "model.safetensors": b"weights", "onnx/model.onnx": b"other"}
    cached(tmp_path / "home", "model", "owner/name", files)
    done = fetch(tmp_path, kind="model", path="owner/name")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["commit"] == COMMIT and record["revision"] == "main" and record["path"] == "owner/name"
    assert record["files"]["model.safetensors"] == hashlib.sha256(b"weights").hexdigest()


def test_one_file_of_a_data_set(tmp_path: Path) -> None:
    cached(tmp_path / "home", "dataset", "owner/set", {"deep/valid.jsonl": b'{"instruction": "a"}\n'})
    done = fetch(tmp_path, kind="dataset", path="owner/set/deep/valid.jsonl")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["commit"] == COMMIT and list(record["files"]) == ["deep/valid.jsonl"]


def test_a_revision_that_moved_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The download itself, which needs a network, is replaced: it finds that "main" is another commit now."""
    import huggingface_hub
    from huggingface_hub import constants

    from minillm.config.stage_settings import FetchSettings
    from minillm.data.fetch import run_stage

    folder = cached(tmp_path, "dataset", "owner/set", {"valid.jsonl": b"{}"})
    moved = folder.with_name("f" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    settings = FetchSettings("fetch", "dataset", "owner/set/valid.jsonl", "main", "", "")
    for commit in (COMMIT, moved.name):
        found = str(folder.with_name(commit) / "valid.jsonl")
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, found=found, **__: found)
        run_stage(settings, out=tmp_path / "record.json")
        record = json.loads((tmp_path / "record.json").read_text())
        assert record["commit"] == commit and record.get("moved_from") in (None, COMMIT)
        folder.rename(moved) if commit == COMMIT else None
    assert record["moved_from"] == COMMIT
    said = capfd.readouterr().out
    assert said.count("\n") == 1 and f"revision 'main' moved from commit {COMMIT} to {moved.name}; " in said


def test_a_token_is_in_no_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    from minillm.config.stage_settings import FetchSettings
    from minillm.data.fetch import run_stage
    from minillm.errors import UserError

    def refuses(*_: object, **__: object) -> None:
        raise RuntimeError(f"401 for 'authorization: Bearer {token.upper()}'")

    token = "hf_abcdefghijklmnop"
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuses)
    settings = FetchSettings("fetch", "dataset", "owner/set/valid.jsonl", "main", "", "")
    with pytest.raises(UserError, match=r"cannot be fetched \(401 for 'authorization: Bearer \*\*\*'\)"):
        run_stage(settings, out=tmp_path / "record.json")


@pytest.mark.parametrize(
    ("kind", "known", "error", "page"),
    [
        (
            "dataset",
            None,
            GatedRepoError("401", response=REFUSED),
            "https://huggingface.co/datasets/o/set",
        ),
        ("model", True, OSError("no network"), "https://huggingface.co/o/set"),
        ("model", None, OSError("no network"), None),
    ],
)
def test_a_gated_repository_says_what_to_do(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    known: bool | None,
    error: Exception,
    page: str | None,
) -> None:
    """The hub says so, or the configuration knows it, whatever went wrong."""
    import huggingface_hub

    from minillm.config.stage_settings import FetchSettings
    from minillm.data.fetch import run_stage
    from minillm.errors import UserError

    def refuses(*_: object, **__: object) -> None:
        raise error

    for name in ("hf_hub_download", "snapshot_download"):
        monkeypatch.setattr(huggingface_hub, name, refuses)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    settings = FetchSettings("fetch", kind, "o/set/a.jsonl", "main", "", "", known)
    with pytest.raises(UserError) as refused:
        run_stage(settings, out=tmp_path / "record.json")
    said = str(refused.value)
    assert "\n" not in said and ("accept its licence at" in said) == bool(page)
    assert page is None or f"at {page}, then `hf auth login`" in said


def test_every_catalogue_entry_names_a_commit_or_is_listed_as_open() -> None:
    """An entry that may change under a run has to be named in docs/data.md."""
    import yaml

    open_ones = {"datasets.self_inst", "datasets.vicuna", "datasets.sni", "datasets.sst2", "datasets.boolq"}
    open_ones |= {
        "datasets.gsm8k",
        "datasets.gsm8k_train",
        "datasets.xsum",
        "datasets.dialogsum",
        "subsets.sni",
    }
    found, listed = set(), (REPO / "docs/data.md").read_text(encoding="utf-8")
    for file in ("models", "datasets"):
        for section, entries in yaml.safe_load((REPO / f"config/{file}.yaml").read_text()).items():
            # Shapes come from no source.
            for name, entry in entries.items() if section != "shapes" else ():
                if entry["source"] == "hub" and not re.fullmatch("[0-9a-f]{40}", entry.get("revision", "")):
                    found.add(f"{section}.{name}")
    assert found == open_ones
    assert not [name for name in open_ones if f"`{name.split('.')[1]}`" not in listed]


def test_the_folders_by_length_of_a_data_set(tmp_path: Path) -> None:
    """Fetched, and made into one file from the cache, with the hub switched off."""
    row = b'{"instruction": "a", "output": "b"}\n'
    files = {"0_2/valid.jsonl": row, "11_/valid.jsonl": row, "11_/valid.txt": b"a"}
    folder = cached(tmp_path / "home", "dataset", "owner/set", files)
    done = fetch(tmp_path, kind="subsets", path="owner/set")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["commit"] == COMMIT and {"0_2/valid.jsonl", "11_/valid.jsonl"} <= set(record["files"])
    config, out = tmp_path / "subsets.json", tmp_path / "made/all.jsonl"
    rows = {"source": "hub", "path": "owner/set", "revision": COMMIT}
    config.write_text(json.dumps({"stage": "subsets", "rows": rows}))
    done = stage(tmp_path / "home", "subsets", "--config", config, "--out", out, offline=False)
    assert done.returncode == 0, done.stderr
    assert (
        json.loads(out.with_suffix(".card.json").read_text())["subsets"] == {"0_5": 1, "6_10": 0, "11_": 1}
        and folder.is_dir()
    )


@pytest.mark.parametrize("kind", ["model", "tokenizer", "dataset"])
def test_what_cannot_be_had_is_one_line_and_leaves_nothing(tmp_path: Path, kind: str) -> None:
    done = fetch(tmp_path, kind=kind, path="nobody/nothing", revision="abc")
    assert done.returncode == 2 and not (tmp_path / "record.json").exists()
    assert (
        done.stderr.count("\n") == 1
        and f"{kind} 'nobody/nothing' at revision 'abc': cannot be fetched (" in done.stderr
    )


def test_other_stages_use_the_cache_and_never_the_network(tmp_path: Path) -> None:
    """`base` takes a hub model at its revision with no HF_HUB_OFFLINE given.

    It reads the cache, or says in one line that the model is not there.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    from minillm.data.tokenizers import train_tokenizer
    from minillm.files import data_content, hashes, write_json

    tokenizer = train_tokenizer(["a b c"], 300)
    data = tmp_path / "data"
    tokenizer.save_pretrained(data / "tokenizer")
    write_json(data / "card.json", {"content": data_content(hashes(data))})
    made = GPT2LMHeadModel(
        GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=len(tokenizer), n_positions=64)
    )
    made.save_pretrained(tmp_path / "made")
    files = {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()}
    cached(tmp_path / "home", "model", "owner/name", files)
    model = {"source": "hub", "tokenizer": "t", "path": "owner/name", "revision": COMMIT}
    settings = {"stage": "base", "model": model, "seed": 1, "precision": "fp32", "sampling": {}}
    config = tmp_path / "base.json"
    for path, code in (("owner/name", 0), ("owner/other", 2)):
        config.write_text(json.dumps({**settings, "model": {**model, "path": path}}))
        out = ["--out", tmp_path / "base", "--checkpoints", tmp_path / "checkpoints"]
        done = stage(tmp_path / "home", "base", "--config", config, "--data", data, *out, offline=False)
        assert done.returncode == code, done.stderr
    assert (tmp_path / "base/model.safetensors").is_file()
    assert "'owner/other' of the hub: no model here (config.json is missing)" in done.stderr
