"""pyproject.toml, requirements.lock, environment.yml and docs/dependencies.md hold together."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def direct() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [Requirement(line) for line in project["dependencies"] + project["optional-dependencies"]["dev"]]


def pins(lines: list[str]) -> dict[str, str]:
    """Name -> version of the lines that pin one; options of pip and comments pin none."""
    found = [line.strip().split("==") for line in lines if re.match(r"\s*[A-Za-z0-9]", line)]
    assert all(len(parts) == 2 for parts in found), [parts for parts in found if len(parts) != 2]
    names = [canonicalize_name(name) for name, _ in found]
    assert len(names) == len(set(names)), "a package is pinned twice"
    return dict(zip(names, (version for _, version in found), strict=True))


def locked() -> dict[str, str]:
    return pins((ROOT / "requirements.lock").read_text().splitlines())


def conda() -> dict[str, str]:
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    return pins(next(entry["pip"] for entry in dependencies if isinstance(entry, dict)))


def explained() -> dict[str, SpecifierSet]:
    """Name -> bounds of the rows `| name | bounds | why |`, all of which say why."""
    rows = re.findall(
        r"^\| ([a-z0-9-]+) \| (>=[^|]+) \| \S.+ \|$",
        (ROOT / "docs/dependencies.md").read_text(),
        re.MULTILINE,
    )
    return {name: SpecifierSet(bounds.replace("&lt;", "<")) for name, bounds in rows}


@pytest.mark.parametrize("requirement", direct(), ids=lambda requirement: requirement.name)
def test_direct_dependency_is_bounded_pinned_alike_and_explained(requirement: Requirement) -> None:
    name = canonicalize_name(requirement.name)
    operators = {specifier.operator for specifier in requirement.specifier}
    assert operators & {"<", "<=", "=="} and operators & {">", ">=", "=="}, (
        "give it a lower and an upper bound"
    )
    assert locked()[name] == conda()[name]
    assert requirement.specifier.contains(locked()[name])
    assert explained()[name] == requirement.specifier


def test_nothing_else_is_explained_or_pinned_for_conda() -> None:
    names = {canonicalize_name(requirement.name) for requirement in direct()}
    assert set(explained()) == names
    assert set(conda()) == names


def test_lock_is_portable() -> None:
    text = (ROOT / "requirements.lock").read_text()
    assert not re.search(r"://|\s/|\+cpu|\+cu", re.sub(r"#.*", "", text)), (
        "a path, an address or a local build"
    )


def test_one_python_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    python = Requirement(f"python{project['project']['requires-python']}").specifier
    assert {s.operator for s in python} == {">=", "<"}
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    version = next(entry for entry in dependencies if str(entry).startswith("python=")).removeprefix(
        "python="
    )
    assert python.contains(f"{version}.0")
    assert project["tool"]["mypy"]["python_version"] == version


def test_makefile_installs_the_locked_torch() -> None:
    assert f"TORCH ?= torch=={locked()['torch']}\n" in (ROOT / "Makefile").read_text()
