"""Every key of a configuration is described, and what is generated from the descriptions is current."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from minillm.config import reference
from minillm.config.strict import parse

REPO = Path(__file__).parents[3]
KEYS = [(cls, field.name) for cls in reference.classes().values() for field in dataclasses.fields(cls)]


@pytest.mark.parametrize(("cls", "key"), KEYS, ids=lambda value: getattr(value, "__name__", value))
def test_every_key_is_described(cls: type, key: str) -> None:
    field = next(field for field in dataclasses.fields(cls) if field.name == key)
    description = getattr(field.default, "description", None)
    assert description, f"{cls.__name__}.{key} has no Field(description=...)"
    assert description.endswith(".") and "  " not in description and "\n" not in description
    words = re.findall(r"\w+", description.lower())
    assert len(words) > 1 and words != key.split("_"), "the description only repeats the key's name"


def test_every_section_has_a_place_in_the_reference() -> None:
    assert set(reference.HEADINGS) == set(reference.classes())
    links = re.findall(r"\]\(#([\w-]+)\)", reference.text())
    assert set(links) == {reference._anchor(heading) for heading in reference.HEADINGS.values()}


def test_the_page_is_current() -> None:
    page = (REPO / "docs" / "configuration.md").read_text()
    assert page == reference.text() + "\n", "run `python -m minillm.config.reference > docs/configuration.md`"
    for cls, key in KEYS:
        section = page.split(f"\n## {reference.HEADINGS[cls.__name__]}\n")[1].split("\n## ")[0]
        assert f"| `{key}` |" in section


def test_defaults_are_written_as_yaml_reads_them() -> None:
    """5e-06 would be text to YAML."""
    assert "| `lr` | number > 0 | `5.0e-06` |" in reference.text()
    assert not re.search(r"`\d+e-\d+`", reference.text().split("## Top level")[1])


def test_described_keys_are_loaded_as_strictly_as_before() -> None:
    launch = reference.classes()["Launch"]
    assert parse(launch, {"micro_batch": 2}, "x") == launch(micro_batch=2) and launch().micro_batch == 8
    assert dataclasses.asdict(dataclasses.replace(launch(), zero=3)) == {
        **dataclasses.asdict(launch()),
        "zero": 3,
    }
