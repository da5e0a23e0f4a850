"""Rules, package and results/README.md agree on where the files of a run lie."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from minillm.config import layout

REPO = Path(__file__).resolve().parents[3]
# Parts of other paths, folders whose files are listed one by one, and questions about paths.
NO_PATHS = (
    "base_weights",
    "teacher_weights",
    "init_weights",
    "student_weights",
    "run_folder",
    "tables",
    "figures",
)
NO_PATHS += ("grid_key",)
NO_PATHS += ("benchmark_of", "is_metric", "is_generations", "place_of", "place_of_model")
FUNCTIONS = {
    name: function
    for name, function in inspect.getmembers(layout, inspect.isfunction)
    if name not in NO_PATHS
}
BELOW = (
    r"(?:configs|hub|grid|local|data|models|checkpoints|generations|samples|metrics|judge-cache|human|tables|figures"
    r"|logs|benchmarks)"
)


BESIDE = {
    "meta": "generations/<weights>/<test>.jsonl",
    "card": "data/<tokenizer>/tests/<test>.jsonl",
    "key": "human/<a>/<b>.html",
}


def example(name: str) -> str:
    """A path as a function of layout.py makes it, each argument standing for itself in <>."""
    if name in BESIDE:
        return str(FUNCTIONS[name](BESIDE[name]))
    arguments = [
        f"<{p.name}>" for p in inspect.signature(FUNCTIONS[name]).parameters.values() if p.default is p.empty
    ]
    return str(FUNCTIONS[name](*arguments))


def documented() -> list[str]:
    """The paths of results/README.md's table, with alternatives written out."""
    cells = re.findall(r"^\| (`.*?) \|", (REPO / "results/README.md").read_text(), re.MULTILINE)
    paths = [path for cell in cells for path in re.findall(r"`([^`]+)`", cell)]
    every: list[str] = []
    while paths:
        path = paths.pop()
        if found := re.search(r"\{([^{}]+)\}", path):
            paths += [path.replace(found[0], choice, 1) for choice in found[1].split(",")]
        else:
            every.append(path)
    return every


def as_pattern(path: str) -> str:
    """A regular expression in which every <name> stands for anything."""
    return "/?".join(
        [
            "".join(
                ".+" if part.startswith("<") else re.escape(part) for part in re.split(r"(<[^>]+>)", path)
            ),
            "",
        ]
    )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_path_is_documented(name: str) -> None:
    path = example(name)
    assert any(
        re.fullmatch(as_pattern(line), path) or re.fullmatch(as_pattern(path), line) for line in documented()
    ), path


@pytest.mark.parametrize("line", documented())
def test_every_documented_path_is_one_of_the_layout(line: str) -> None:
    examples = [*map(example, FUNCTIONS), layout.metric("<kind>", "<weights>", "<name>", "<teacher>")]
    examples += [layout.subset_rows("<subset>", "<part>"), layout.card(layout.subset_rows("<subset>"))]
    examples += [layout.meta(layout.samples("<teacher>", "<test>"))]
    assert any(re.fullmatch(as_pattern(path), line.rstrip("/")) for path in examples), line


def test_the_weights_of_each_kind_of_model() -> None:
    weights = (
        layout.base_weights("big"),
        layout.teacher_weights("big"),
        layout.init_weights("small", 10),
        layout.student_weights("small", "sft", "big", 10),
        layout.student_weights("small", "kd", "big", 10),
    )
    assert weights == (
        "big/base",
        "big/teacher",
        "small/init/seed10",
        "small/sft/seed10",
        "small/kd/big/seed10",
    )


def test_no_rule_and_no_module_writes_such_a_path_by_hand() -> None:
    by_hand = re.compile(rf"""[f"'/]{BELOW}/[{{<]|["']{BELOW}/|results/{{|/ "{BELOW}" /""")
    job = re.compile(
        r"layout\.(log|benchmark|settings_file)\("
    )  # the name of a job, which may begin like a path
    found = [
        f"{path.relative_to(REPO)}:{number}: {line.strip()}"
        for path in [
            *(REPO / "rules").glob("*.smk"),
            REPO / "workflow/Snakefile",
            *(REPO / "minillm").rglob("*.py"),
        ]
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if path.name not in ("layout.py", "__init__.py") and by_hand.search(line) and not job.search(line)
    ]
    # a message, docstrings, and what asks a path whether it is one
    allowed = ("config/stages.py", "plan.py", "run_models.py", "main_cells.py", "report_texts.py")
    assert not [
        line
        for line in found
        if not any(f"minillm/{name}" in line or f"/{name}:" in line for name in allowed)
    ]
