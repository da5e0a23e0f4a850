"""The page of a run: what was measured and what not, and nothing that a result says is mark-up."""

from __future__ import annotations

import base64
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from minillm.config import layout
from minillm.errors import UserError
from minillm.publish import page
from minillm.publish.style import markdown

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
HOSTILE = "<script>alert(1)</script> **x** $y$ | <img src=x onerror=alert(2)> .. raw:: html"


class Elements(HTMLParser):
    """Every element with its attributes, and all text."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def made(run: Path, label: str = "Embedded") -> Elements:
    """A run with the main table, one measured table, one measured figure and a figure that is missing."""
    for path in (layout.figure("main", "png"), layout.figure("figure8", "png")):
        (run / path).parent.mkdir(parents=True, exist_ok=True)
        (run / path).write_bytes(PIXEL)
    cells = f"| Model | {markdown(label)}<br>n = 3 |\n|:--|--:|\n| A | 1.0 ± 0.1 |\n"
    for name in ("main", "table3"):
        path = run / layout.table(name, "md")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"**Caption of {name}**\n\n{cells}\nA note.  \n{markdown(label)}\n")
    for name, path_of, missing in (
        ("table3", layout.table, ""),
        ("figure8", layout.figure, ""),
        ("figure6", layout.figure, "not measured in this run"),
        ("figure4", layout.figure, "no annotations"),
        ("table6", layout.table, "not measured: in this configuration every student is of one family"),
    ):
        sidecar = {"shows": f"Shows {name}", "caption": label, "n": "n = 3", "missing": missing}
        (run / path_of(name, "json")).write_text(json.dumps(sidecar))
    page.run_stage(run_folder=run, out=run / "index.html")
    elements = Elements()
    elements.feed((run / "index.html").read_text())
    return elements


def test_the_page_shows_what_was_measured_in_order_and_then_what_is_missing(tmp_path: Path) -> None:
    elements = made(tmp_path)
    ids = [attributes["id"] for tag, attributes in elements.elements if tag == "h2"]
    assert ids == ["main", "table3", "figure8", "missing"]
    assert [tag for tag, _ in elements.elements].count("table") == 2
    images = [attributes["src"] or "" for tag, attributes in elements.elements if tag == "img"]
    assert len(images) == 2
    assert all(image.startswith("data:image/png;base64,") for image in images)
    assert "Shows figure6: not measured in this run. Set exposure_bias.tests to measure it." in elements.text
    assert "Shows figure4: no annotations. Set human.test to measure it." in elements.text
    assert "every student is of one family." in elements.text and "judge.tests" not in elements.text
    assert page.READING["table3"] in elements.text
    assert "1.0 ± 0.1" in elements.text


def test_the_page_needs_no_network_and_no_other_file_to_be_read(tmp_path: Path) -> None:
    tags = {tag for tag, _ in made(tmp_path).elements}
    assert not tags & {"script", "link", "iframe"}
    assert "http" not in (tmp_path / "index.html").read_text()


def test_what_a_result_says_is_text(tmp_path: Path) -> None:
    elements = made(tmp_path, HOSTILE)
    assert [tag for tag, _ in elements.elements].count("img") == 2
    assert "script" not in {tag for tag, _ in elements.elements}
    assert not any(name.startswith("on") for _, attributes in elements.elements for name in attributes)
    assert elements.text.count(HOSTILE) == 5


def test_a_damaged_result_is_one_line(tmp_path: Path) -> None:
    made(tmp_path)
    path = tmp_path / layout.table("table3", "json")
    path.write_text("{")
    with pytest.raises(UserError, match=rf"^{path}: not JSON .*; remove it and make it again$"):
        page.run_stage(run_folder=tmp_path, out=tmp_path / "index.html")
