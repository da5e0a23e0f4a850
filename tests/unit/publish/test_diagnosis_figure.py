"""The figure `diagnosis`: a line a method in each panel, from what trainings logged, and only that."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import made_up_run
import numpy as np
import pytest
from items_case import drawn, published_item
from made_up_run import DIAGNOSIS, METHODS, config, make
from matplotlib.colors import to_rgba

from minillm.publish.figures.diagnosis import BY_POSITION, MANY, PANELS, POINTS

ON_POLICY = METHODS[2:]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("made") / "run", config())


def lines(figure) -> dict[str, list]:
    """Title -> the (x, y) of its lines."""
    return {
        axes.get_title(): [tuple(np.asarray(line.get_data())) for line in axes.lines]
        for axes in figure.axes
        if axes.get_visible()
    }


def change(folder: Path, change_line) -> None:
    """Every line of every training's log, changed in place."""
    for path in folder.rglob("metrics.jsonl"):
        found = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(change_line(path, line)) + "\n" for line in found))


def test_each_panel_shows_what_its_name_says(run: Path) -> None:
    """The made-up values grow by 0.01 x strength at each of five evaluations."""
    found = lines(drawn("diagnosis", run))
    assert list(found) == list(PANELS) and all(len(of) == len(ON_POLICY) for of in found.values())
    for number, method in enumerate(ON_POLICY):
        growth = 0.01 * 2.0 * METHODS.index(method) * np.arange(5)
        for title, expected in {
            "truncated answers (share)": 1 - DIAGNOSIS["dev_finished"] - growth,
            "repeated 4-grams (share)": DIAGNOSIS["dev_repetition"] + growth,
            "length (tokens)": DIAGNOSIS["dev_length"] + growth,
            "KL to initial student (nats)": growth,
            "entropy, student (nats)": DIAGNOSIS["dev_entropy"] + growth,
            "entropy, teacher (nats)": DIAGNOSIS["dev_teacher_entropy"] + growth,
            "overlap of top 16 (share)": DIAGNOSIS["dev_overlap"] + growth,
            "student's mass on it (share)": DIAGNOSIS["dev_overlap_mass"] + growth,
            "reward, repeated - other": np.full(5, 0.3),
        }.items():
            x, y = found[title][number]
            assert x == pytest.approx(8 * np.arange(5)) and y == pytest.approx(expected), title
        x, y = found[BY_POSITION][number]
        assert x.tolist() == [1, 2, 3, 4] and y == pytest.approx(-0.1 * x + growth[-1])
        assert found["effective samples (share)"][number][1] == pytest.approx([0.9, 0.8])
        assert found["noise in squared gradient"][number][1] == pytest.approx(np.full(8, 0.25))


def test_only_on_policy_methods_of_the_first_pair(run: Path, tmp_path: Path) -> None:
    sidecar = published_item("diagnosis", run, tmp_path)
    assert sidecar["caption"].startswith("GPT-2 120M (GPT-2 1.5B), the first of 4 pairs. On the student's")
    assert "Not logged" not in sidecar["caption"] and sidecar["n"].endswith("one training seed.")
    logs = [source for source in sidecar["sources"] if source.endswith("metrics.jsonl")]
    assert {log.split("/")[2] for log in logs} >= set(ON_POLICY) and not any("seqkd" in log for log in logs)


def test_what_was_not_logged_has_no_panel_and_is_named(run: Path, tmp_path: Path) -> None:
    """As of a run from before these were logged, of which one value was not finite."""
    copy = shutil.copytree(run, tmp_path / "run")
    kept = ("step", "dev_reverse_kl", "dev_finished", "dev_length", "effective_samples", "grad_norm")

    def old(path, line):
        line = {key: value for key, value in line.items() if key in kept}
        return line | ({"dev_length": None} if line["step"] == 16 and "dev_length" in line else {})

    change(copy, old)
    found = lines(drawn("diagnosis", copy))
    assert list(found) == ["truncated answers (share)", "length (tokens)", "effective samples (share)"]
    assert found["length (tokens)"][0][0].tolist() == [0, 8, 24, 32]
    caption = published_item("diagnosis", copy, tmp_path)["caption"]
    assert f"Not logged in this run: {', '.join(title for title in PANELS if title not in found)}." in caption


def test_several_training_seeds_are_a_mean_and_a_band(tmp_path: Path) -> None:
    changed = {"small": True, "training_seeds": [10, 20]}
    run = make(tmp_path / "run", config(**changed))

    def lengths(path, line):
        value = 30.0 if "seed10" in str(path) else 50.0 + line["step"]
        return line | ({"dev_length": value} if "dev_length" in line else {})

    change(run, lengths)
    axes = next(a for a in drawn("diagnosis", run, **changed).axes if a.get_title() == "length (tokens)")
    assert axes.lines[0].get_ydata() == pytest.approx(40 + 4 * np.arange(5))
    band = axes.collections[0].get_paths()[0].vertices
    assert {(x, y) for x, y in band.tolist()} >= {(0, 30), (0, 50), (32, 30), (32, 82)}
    n = published_item("diagnosis", run, tmp_path, **changed)["n"]
    assert "mean over training seeds, bands from least to greatest" in n


def test_what_is_logged_often_is_averaged_over_stretches(run: Path, tmp_path: Path) -> None:
    """A ratio of means: single estimates of the variance may be negative."""
    copy = shutil.copytree(run, tmp_path / "run")
    log = [{"step": 0, "dev_reverse_kl": 1.0, "dev_finished": 1.0}]
    log += [{"step": i, "grad_norm": 1.0 + i % 2, "grad_variance": (-1.0) ** i} for i in range(1, 65)]
    for path in copy.rglob("metrics.jsonl"):
        path.write_text("".join(json.dumps(line) + "\n" for line in log))
    x, y = lines(drawn("diagnosis", copy))["noise in squared gradient"][0]
    assert (
        len(x) == POINTS and x == pytest.approx(2.5 + 4 * np.arange(16)) and y == pytest.approx(np.zeros(16))
    )


def test_many_methods_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ten, those at the ends are in colour and named, MiniLLM is in colour, the others pale."""
    variants = {
        f"v{i}": {"label": f"Method {i}", "settings": {"objective": "reverse_kl", "alpha": 0.0}}
        for i in range(9)
    }
    names = ["sft", *list(variants)[:4], "minillm", *list(variants)[4:]]
    monkeypatch.setattr(made_up_run, "METHODS", names)
    changed = {"variants": variants, "methods": names, "pairs": [{"teacher": "xl", "students": ["base"]}]}
    figure = drawn("diagnosis", make(tmp_path / "run", config(**changed)), **changed)
    axes = next(a for a in figure.axes if a.get_title() == "length (tokens)")
    assert len(axes.lines) == 10 > MANY and [text.get_text() for text in axes.texts] == [
        "Method 0",
        "Method 8",
    ]
    coloured = [i for i, line in enumerate(axes.lines) if to_rgba(line.get_color()) != to_rgba("0.8")]
    assert coloured == [0, names.index("minillm") - 1, 9]
    looks = {(line.get_marker(), line.get_markerfacecolor()) for line in axes.lines}
    assert len(looks) == 10, "markers and their colours tell all of them apart"
