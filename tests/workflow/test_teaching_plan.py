"""Methods with other teachers and prompts: what is planned for them, and that nothing else is run again."""

from __future__ import annotations

import re

import pytest
import yaml
from test_rerun import TESTS, settings

from minillm.config.derive import canonical, stage_settings
from minillm.config.experiment import experiment
from minillm.errors import UserError

SHOWS = (
    "publish_", "settings key=publish/", "settings key=metrics", "settings key=table", "curves", "table",
    "figure", "metrics", "index", "checklist", "page", "report",
)  # fmt: skip
DATA = "results/plan/data/letters"
SETTINGS = {"objective": "reverse_kl", "alpha": 0.0, "lm_coef": 0.0}


def variant(config, name, teacher, **more):
    config["variants"][name] = {"label": name, "settings": {**SETTINGS, **more, "teacher": teacher}}
    config["sweeps"] = [{"teacher": "big", "students": ["small"], "methods": [name]}]


def by_itself(config):
    variant(config, "sdft", {"who": "self", "prompt": "demonstration"})


def by_a_text(config):
    config["data"]["prompts"] = {"hint": "{question}\n\nA hint: {output}", "unused": "{question} {output}"}
    variant(config, "hinted", {"who": "pair", "prompt": "hint"})


def by_category(config):
    variant(config, "panel", {"by_category": {"fact": "short", "colour": "big"}})


@pytest.mark.parametrize(
    ("edit", "method", "prompt", "further"),
    [
        (by_itself, "sdft", "demonstration", set()),
        (by_a_text, "hinted", "hint", set()),
        (by_category, "panel", "usual", {"teacher model=short", "settings key=teacher/short"}),
    ],
    ids=["self", "text", "category"],
)
def test_a_new_method_runs_only_itself(finished, edit, method, prompt, further):
    planned = finished.planned(config=finished.write("edited.yaml", edit))
    # What tables and figures show follows from all methods.
    jobs = {job for job in planned if not job.startswith(SHOWS)}
    assert jobs == {
        f"prompts tokenizer=letters prompt={prompt}",
        f"minillm student=small method={method} teacher=big seed=10",
        *further,
        *settings(f"prompts/{prompt}", f"{method}/small/big/10"),
        *(
            f"{rule} weights=small/{method}/big/seed10 test={test}"
            for rule in ("generate", "rouge")
            for test in TESTS
        ),
    }


def test_what_the_commands_get(finished):
    for edit, prompt, panel in (
        (by_itself, "demonstration", None),
        (by_category, "usual", ["results/plan/models/big/teacher", "results/plan/models/short/teacher"]),
    ):
        name = finished.write("edited.yaml", edit)
        output = finished.snakemake("-n", "-p", "--cores", "2", "--configfile", name).stdout
        [command] = re.findall(r"-m minillm minillm (.*?) >", output)
        assert f"--prompts {DATA}/prompts/{prompt}" in command
        assert re.findall(r"--panel (.*?) --out", command) == ([" ".join(panel)] if panel else [])
        [made] = re.findall(r"-m minillm prompts (.*?) >", output)
        assert f"--data {DATA}/training --out {DATA}/prompts/{prompt}" in made


def test_a_text_that_is_edited_runs_its_methods_again(finished):
    config = yaml.safe_load((finished.root / finished.write("edited.yaml", by_a_text)).read_text())
    before = {stage: stage_settings(experiment(config), stage, prompt="hint") for stage in ("prompts",)}
    config["data"]["prompts"]["unused"] += "!"
    assert stage_settings(experiment(config), "prompts", prompt="hint") == before["prompts"]
    config["data"]["prompts"]["hint"] += "!"
    assert stage_settings(experiment(config), "prompts", prompt="hint") != before["prompts"]


def test_settings_of_other_methods_are_as_before(finished):
    plain = yaml.safe_load((finished.root / "tests/config/plan.yaml").read_text())
    names = {"model": "small", "teacher": "big", "seed": 10}
    text = canonical(stage_settings(experiment(plain), "minillm", **names))
    keys = ('"gold"', '"extrapolate"', '"teacher": null', '"until"', '"prompts"')
    assert not any(key in text for key in keys)
    by_a_text(plain)
    assert canonical(stage_settings(experiment(plain), "minillm", **names)) == text


def refused(edit):
    from pathlib import Path

    config = yaml.safe_load((Path(__file__).parents[1] / "config/plan.yaml").read_text())
    edit(config)
    with pytest.raises(UserError) as caught:
        experiment(config, "x")
    return str(caught.value)


def test_names_that_there_are_not():
    said = refused(lambda c: variant(c, "m", {"who": "self", "prompt": "demonstrations"}))
    assert said == "x: variants.m.teacher.prompt: there is no 'demonstrations'; did you mean 'demonstration'?"
    said = refused(lambda c: variant(c, "m", {"by_category": {"fact": "smal"}}))
    assert said == "x: variants.m.teacher.by_category.fact: there is no 'smal'; did you mean 'small'?"

    def another_tokenizer(config):
        config["tokenizers"]["words"] = {"source": "train", "vocabulary": 600}
        config["models"]["other"] = {**config["models"]["big"], "tokenizer": "words"}
        variant(config, "m", {"by_category": {"fact": "other"}})

    assert refused(another_tokenizer) == (
        "x: variants.m.teacher.by_category.fact: other has the tokenizer 'words' and the teacher big "
        "'letters'; teachers of one student read the same prompts"
    )
    assert refused(lambda c: c["data"].update(prompts={"p": "{output}"})).startswith("x: data.prompts.p: ")


def test_a_finished_model_may_teach_a_category(finished):
    config = yaml.safe_load((finished.root / "tests/config/plan.yaml").read_text())
    by_category(config)
    config["checkpoints"] = {"short/teacher": {"source": "folder", "path": "x", "tokenizer": "letters"}}
    assert experiment(config).panel == ("big", "short")
    variant(config, "panel", {"who": "self", "prompt": "demonstration"})
    with pytest.raises(UserError, match="checkpoints.short/teacher: no model of this run has this path"):
        experiment(config)
