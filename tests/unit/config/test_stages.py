"""The register of stages: every entry can be called as the command line calls it, and names what exists."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from minillm.config.stages import COMMANDS, MEASUREMENTS, STAGES, names_of

REPO = Path(__file__).resolve().parents[3]


def entry_point(target: str) -> ast.FunctionDef:
    """The function that an entry names, read and not imported: some import torch."""
    module, _, name = target.partition(":")
    tree = ast.parse((REPO / f"{module.replace('.', '/')}.py").read_text())
    return next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)


@pytest.mark.parametrize("stage", COMMANDS.values(), ids=list(COMMANDS))
def test_an_entry_point_takes_what_the_command_line_gives_it(stage) -> None:
    assert stage.target.endswith(":run_stage")
    arguments = entry_point(stage.target).args
    positional = [argument.arg for argument in arguments.args]
    assert positional == ["settings"] * bool(stage.settings) + ["launch"] * stage.launched
    config = {"config"} if stage.settings else set()
    required = {path.replace("-", "_") for path in stage.required} - config
    optional = {path.replace("-", "_") for path in stage.optional} - config
    names = {argument.arg for argument in arguments.kwonlyargs}
    without_default = {
        argument.arg
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        if not default
    }
    # several stages may share an entry point, which then takes more
    assert required | optional <= names and without_default <= required
    assert set(stage.several) <= {*stage.required, *stage.optional}


@pytest.mark.parametrize("stage", [s for s in STAGES.values() if s.settings], ids=lambda stage: stage.name)
def test_settings_are_cut_out_by_the_names_of_their_file(stage) -> None:
    cls = stage.settings_class()
    parameters = list(inspect.signature(cls.of).parameters)
    assert parameters[:2] == ["config", "stage"] and set(stage.key) <= set(parameters[2:])


def test_measurements_say_on_which_sets_they_are_made() -> None:
    assert set(MEASUREMENTS) == {
        *(
            "rouge",
            "rouge1",
            "rouge2",
            "exact_match",
            "numeric",
            "choice",
            "harness",
            "exposure_bias",
            "lengths",
            "diversity",
            "reference_loss",
            "validity",
            "mode_mass",
            "calibration",
            "judge",
            "human",
        ),
    }


def test_names_of_settings_files() -> None:
    assert names_of("generate") == ("generate", {})
    assert names_of("kd/small/big/10") == ("kd", {"model": "small", "teacher": "big", "seed": 10})
    assert names_of("gkd/small/big/20", {"gkd": "minillm"}) == (
        "gkd",
        {"model": "small", "teacher": "big", "seed": 20},
    )
    assert names_of("fetch/models/gpt2") == ("fetch", {"source": "models/gpt2"})
    assert names_of("checkpoint/small/kd/big/seed10") == ("checkpoint", {"weights": "small/kd/big/seed10"})
    for wrong, said in {
        "gkd/small/big/20": "unknown stage 'gkd'",
        "kd/small": "must name model, teacher, seed",
        "generate/easy": "must name nothing",
        "data": "must name tokenizer",
    }.items():
        with pytest.raises(ValueError, match=said):
            names_of(wrong)


def test_the_register_imports_nothing_but_itself() -> None:
    code = "import sys, minillm.config.stages; print([m for m in sys.modules if m.startswith('minillm.')])"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['minillm.config', 'minillm.config.stages']"
