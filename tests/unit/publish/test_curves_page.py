"""curves.html: every number of the logs at its place, also while a training writes its log."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from minillm.cli import main
from minillm.errors import UserError
from minillm.publish.curves_page import write_curves
from minillm.publish.svg import BOTTOM, HEIGHT, LEFT, POINTS, RIGHT, TOP, WIDTH, Line, chart
from minillm.publish.training_logs import read_logs

LOSS = [{"step": step, "seconds": 1.0, "loss": 1.0 / (step + 1), "lr": 0.1} for step in range(0, 50, 10)]
ROLLOUTS = [
    {
        "step": step,
        "response_length": 20.0 + step,
        "rollout_reverse_kl": 0.5,
        "entropy": 0.4,
        "finished": 0.9,
        "repetition": 0.1,
        "sampled_tokens": 640,
    }
    for step in range(0, 40, 4)
]
SHOWN = (
    "Loss: sft",
    "Loss: minillm/big",
    "Reverse KL to the teacher, nats per token",
    "Length of responses, tokens",
    "Entropy of the model, nats per token",
    "Share of responses that end",
    "Share of 4-grams that repeat earlier ones",
)


def log(run: Path, folder: str, lines: list[dict], end: str = "") -> Path:
    (run / "configs").mkdir(parents=True, exist_ok=True)
    path = run / folder / "metrics.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + end)
    return path


def made(run: Path) -> str:
    """SFT, which leaves two models, finished; MiniLLM in the middle of a line."""
    log(run, "models/small/sft/seed10", LOSS)
    log(run, "models/small/init/seed10", LOSS)
    lines = [*ROLLOUTS, {"step": 36, "loss": 0.5}]
    running = log(run, "checkpoints/minillm-abc", lines, end='{"step": 40, "response_le')
    said = {"weights": "small/minillm/big/seed10", "stage": "minillm", "steps": 80}
    running.with_name("training.json").write_text(json.dumps(said))
    return write_curves(run).read_text()


def charts(page: str) -> dict[str, ElementTree.Element]:
    found = [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]
    return {element.attrib["aria-label"]: element for element in found}


def lines_of(element: ElementTree.Element) -> list[list[tuple[float, float]]]:
    """Points of each line, in the units of the axes, which are read off their labels."""
    ticks = {}
    for kind, size in (("x", "x"), ("y", "y")):
        texts = [t for t in element.iter("text") if t.attrib["class"] == kind and t.text != "step"]
        ticks[kind] = [(float(t.attrib[size]), float(t.text or "")) for t in (texts[0], texts[-1])]

    def value(kind: str, place: str) -> float:
        (a, low), (b, high) = ticks[kind]
        return low + (float(place) - a) / (b - a) * (high - low)

    paths = [p.attrib["d"] for p in element.iter("path") if p.attrib["class"] == "line"]
    return [[(value("x", x), value("y", y)) for x, y in map(str.split, d[1:].split("L"))] for d in paths]


def test_every_training_is_shown_while_one_is_running(tmp_path):
    page = made(tmp_path / "demo")
    assert set(SHOWN) <= charts(page).keys()
    assert "minillm/big/seed10 (not finished): step 36 of 80, last line 2" in page
    assert "sft/seed10: 40 steps; also init/seed10" in page
    assert "http-equiv" in page and "Written 2" in page
    # One file without network: nothing is loaded.
    assert not re.search(r"(src|href)=|@import|url\(|<script", page)


def test_a_finished_run_has_the_same_page_whenever_it_is_written(tmp_path):
    log(tmp_path, "models/small/sft/seed10", LOSS)
    first = write_curves(tmp_path).read_text()
    assert "http-equiv" not in first and "Written" not in first
    assert write_curves(tmp_path, tmp_path / "again.html").read_text() == first


def test_the_numbers_of_the_log_are_those_of_the_lines(tmp_path):
    found = charts(made(tmp_path))
    (loss,) = lines_of(found["Loss: sft"])
    assert [x for x, _ in loss] == pytest.approx([0, 10, 20, 30, 40], abs=0.2)
    assert [y for _, y in loss] == pytest.approx([line["loss"] for line in LOSS], abs=0.01)
    (length,) = lines_of(found["Length of responses, tokens"])
    assert [y for _, y in length] == pytest.approx([line["response_length"] for line in ROLLOUTS], abs=0.2)


def test_a_value_that_was_not_finite_leaves_a_gap_and_is_counted(tmp_path):
    lines = [{**line, "loss": None if line["step"] == 20 else line["loss"]} for line in LOSS]
    log(tmp_path, "models/small/kd/big/seed10", lines)
    page = write_curves(tmp_path).read_text()
    assert [len(points) for points in lines_of(charts(page)["Loss: kd/big"])] == [2, 2]
    assert "kd/big/seed10: 40 steps; 1 values not finite" in page


def test_a_training_of_an_earlier_version_is_named_by_its_checkpoints(tmp_path):
    log(tmp_path, "checkpoints/kd-abc", LOSS)
    (found,) = read_logs(tmp_path)
    assert (found.weights, found.steps, found.running, found.step) == ("kd-abc", 0, True, 40)


def test_names_are_text(tmp_path):
    log(tmp_path, "models/<script>/sft/seed10", LOSS)
    page = write_curves(tmp_path).read_text()
    assert "<script" not in page and "&lt;script&gt;" in page


def test_a_peak_among_thousands_of_points_is_drawn():
    points = [(float(i), 9.0 if i == 7001 else i % 7 / 7) for i in range(20_000)]
    element = ElementTree.fromstring(chart("many", [Line("a", "#000", points)]))
    (line,) = lines_of(element)
    assert len(line) <= POINTS + 2 and max(y for _, y in line) == pytest.approx(9, abs=0.05)
    assert [x for x, _ in line] == sorted(x for x, _ in line)


@pytest.mark.parametrize("values", [[0.0], [3.0, 3.0], [1e9, 1e9 + 1e-3], [-5.0, 1e-12], [1e-9, 2e-9]])
def test_every_line_is_inside_of_the_axes(values):
    """One point, equal values, large values that hardly differ, negative and tiny ones."""
    text = chart("edge", [Line("a", "#000", list(enumerate(values)))])
    places = [(float(x), float(y)) for x, y in re.findall(r"[ML](\d[\d.]*) (-?\d[\d.]*)(?=[L\"])", text)]
    places += [(float(x), float(y)) for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', text)]
    assert len(places) == len(values)
    assert all(LEFT <= x <= WIDTH - RIGHT and TOP <= y <= HEIGHT - BOTTOM for x, y in places)


def test_mistakes_are_one_line(tmp_path, capsys):
    assert main(["curves", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"minillm curves: error: {tmp_path}: no run here (no folder configs); name one like results/demo\n"
    )
    path = log(tmp_path, "models/small/sft/seed10", [*LOSS, {"loss": 1.0}])
    with pytest.raises(UserError, match=rf"^{path}:6: .*step"):
        write_curves(tmp_path)


def test_a_run_without_a_training_has_a_page_that_says_so(tmp_path, capsys):
    (tmp_path / "configs").mkdir()
    assert main(["curves", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/curves.html\n"
    assert "No training has logged a step." in (tmp_path / "curves.html").read_text()
