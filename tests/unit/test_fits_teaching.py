"""What `minillm plan` says of methods with anchors and other teachers: which models and rows they have."""

import dataclasses

import numpy as np
import pytest

from minillm.config import layout
from minillm.config.methods import Variant
from minillm.fits.hours import seconds
from minillm.fits.jobs import Key, Planner
from minillm.fits.machines import GPUS
from minillm.fits.memory import memory
from minillm.fits.rows import Prompts, shown_of
from minillm.plan import configuration

PLAIN = {"alpha": 0.0, "objective": "reverse_kl", "lm_coef": 0.0}
PROMPT = {"prompt": "demonstration"}
# Settings -> models in memory next to the student's (P: the pair's teacher, S: a copy of the student's size,
# O: another one), and whether the teacher's states are kept for a collection.
METHODS = {
    "plain": ({}, "P", True),
    "gold": ({"gold": {}}, "P", True),
    "fading": ({"also": [{"objective": "teacher_token", "until": 5}]}, "P", True),
    "extrapolated": ({"extrapolate": 1.25}, "PS", True),
    "initial": ({"teacher": {"who": "initial", **PROMPT}}, "PS", True),
    "both": ({"extrapolate": 1.25, "teacher": {"who": "initial", **PROMPT}}, "PS", True),
    "self": ({"teacher": {"who": "self", **PROMPT}}, "P", False),
    "ema": ({"teacher": {"who": "ema", **PROMPT}}, "PS", False),
    "anchored-mean": ({"init_kl": 0.1, "teacher": {"who": "ema", **PROMPT}}, "PSS", False),
    "panel": ({"teacher": {"by_category": {"sum": "demo-other"}}}, "PO", False),
}


@pytest.fixture(scope="module")
def planner():
    config = configuration(["config/demo.yaml"])
    variants = {name: Variant(name, {**PLAIN, **more}) for name, (more, *_) in METHODS.items()}
    models = {**config.models, "demo-other": config.models["demo-teacher"]}
    return Planner(dataclasses.replace(config, models=models, variants=variants))


def own_mean(more):
    return more.get("teacher", {}).get("who") == "ema"


def test_prompts_of_prepared_rows_are_measured(planner, tmp_path):
    folder = tmp_path / "results" / planner.config.run / layout.teaching_data("embedded", "demonstration")
    folder.mkdir(parents=True)
    np.save(folder / "train.lengths.npy", np.array([[10, 3], [20, 4]], np.int32))
    np.save(folder / "dev.lengths.npy", np.array([[31, 3]], np.int32))
    lengths = planner.lengths("demo-student")
    found = shown_of(planner.config, "embedded", "demonstration", lengths, tmp_path)
    assert found == Prompts(15.0, 31)
    assert shown_of(planner.config, "embedded", "usual", lengths, tmp_path) is None


@pytest.mark.parametrize("method", METHODS)
def test_models_and_rows_of_a_method(planner, method):
    more, models, kept = METHODS[method]
    work = planner.work(Key("minillm", method, "demo-student", "demo-teacher"))
    sizes = {"P": planner.size("demo-teacher"), "S": work.student, "O": planner.size("demo-other")}
    assert work.frozen == tuple(sizes[name] for name in models)
    assert (work.kept > 0) == kept and (work.parts[0].reads == 0) == kept
    assert len(work.parts) == 1 + ("gold" in more)
    # The pair's teacher measures the dev set, and who teaches in addition to it.
    dev = [read for read in work.reads if read.times == work.evaluations + 1]
    own = work.student if more.get("teacher", {}).get("who") in ("initial", "self", "ema") else sizes["P"]
    expected = [work.student, sizes["P"]] + ([own] if "teacher" in more else [])
    assert [read.model for read in dev] == expected
    assert work.mean == (work.student.trained if own_mean(more) else 0)
    # The question, the gold answer, and 43 characters around them.
    data, lengths = planner.config.data, planner.lengths("demo-student")
    mean, most = 11 + lengths.prompt + lengths.response, 11 + data.max_prompt + data.max_response
    shown = Prompts(mean, most) if "prompt" in more.get("teacher", {}) else None
    assert work.parts[0].shown == work.draws[0].shown == shown
    if shown:
        assert dev[-1].longest == most + max(data.max_response, 72) and dev[-1].tokens == pytest.approx(
            mean + min(lengths.response, 72)
        )
    assert memory(work).peak > 0
    seconds(work, GPUS["H100"])
