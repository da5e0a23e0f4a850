"""The package by itself: its public names, and a wheel that runs outside of the checkout."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from embedded_data import DATA

import minillm

ROOT = Path(__file__).parents[2]


# --- public names
def test_every_public_name_resolves_and_says_what_it_is() -> None:
    for name in minillm.__all__:
        assert (getattr(minillm, name).__doc__ or "").strip(), name
    assert set(minillm.__all__) <= set(dir(minillm))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'minillm' has no attribute 'forward_kll'"):
        minillm.forward_kll  # noqa: B018


def test_every_public_name_is_documented_and_nothing_else() -> None:
    rows = re.findall(r"^\| (`[^|]+) \| \S.* \|$", (ROOT / "docs" / "package.md").read_text(), re.MULTILINE)
    documented = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(documented) == minillm.__all__


def test_import_is_cheap_and_public_names_need_no_deepspeed() -> None:
    code = """if True:
        import sys
        import minillm
        heavy = ("torch", "numpy", "pydantic", "transformers", "deepspeed", "snakemake")
        print([name for name in sys.modules if name in heavy or name.startswith("minillm.")])
        for name in minillm.__all__:
            exec(f"from minillm import {name}")
        print([name for name in ("deepspeed", "datasets", "snakemake") if name in sys.modules])
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.splitlines() == ["[]", "[]"]


# --- a wheel
@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the package, built from a copy of what it is made of."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "minillm", folder / "minillm", ignore=shutil.ignore_patterns("__pycache__"))
    pip(folder, "wheel", "--no-deps", "--no-build-isolation", "-w", "dist", ".")
    return next((folder / "dist").glob("*.whl"))


def pip(folder: Path, *arguments: object) -> None:
    command = [sys.executable, "-m", "pip", *map(str, arguments), "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    files = {path.relative_to(ROOT) for path in (ROOT / "minillm").rglob("*") if path.is_file()}
    wanted = {str(path) for path in files if "__pycache__" not in path.parts}
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("minillm/")}
    assert held == wanted


SHAPE = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 128}
TRAINING = {"lr": 0.001, "epochs": 1.0, "batch": 8}
BASE = {
    "stage": "base",
    "model": {"source": "scratch", "tokenizer": "small", "architecture": SHAPE, "training": TRAINING},
    "seed": 10,
    "precision": "fp32",
    "sampling": {"max_tokens": 4},
}


def test_an_installed_wheel_trains_outside_of_the_checkout(wheel: Path, tmp_path: Path) -> None:
    site, work = tmp_path / "site", tmp_path / "work"
    pip(tmp_path, "install", "--no-deps", "--no-index", "--target", site, wheel)
    work.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def python(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=work,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def stage(name: str, settings: dict[str, object], *paths: str) -> None:
        (work / f"{name}.json").write_text(json.dumps(settings))
        python("-m", "minillm", name, "--config", f"{name}.json", *paths)

    assert Path(python("-c", "import minillm; print(minillm.__file__)").strip()).is_relative_to(site)
    stage("data", DATA, "--out", "data")
    stage("base", BASE, "--data", "data", "--checkpoints", "checkpoints", "--out", "base")
    record = json.loads((work / "base" / "provenance.json").read_text())
    assert record["git"] == "unknown"
    # DeepSpeed's template, which is package data, was read.
    template = json.loads((ROOT / "minillm" / "runtime" / "deepspeed" / "zero1.json").read_text())
    assert template["zero_optimization"].items() <= record["deepspeed"]["zero_optimization"].items()
