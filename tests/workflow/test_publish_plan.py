"""Which tables and figures are planned again where one result is missing or one look is edited."""

from __future__ import annotations

import os

import pytest
from test_plan import commands

from minillm.cli import parser
from minillm.publish.registry import ITEMS

PLAN = "tests/config/plan.yaml"
RUN = "results/plan"
FILES = [f"{RUN}/tables/{name}.json" for name in ("table2", "table6", "table8", "cost")]
FILES += [f"{RUN}/figures/{name}.json" for name in ("figure1", "figure2", "figure6", "size-gap")]


@pytest.fixture(scope="module")
def items(finished):
    """The finished copy, with a choice of tables and figures published."""
    finished.snakemake("--cores", "4", *FILES, "--configfile", PLAN, "--quiet", "--show-failed-logs")
    return finished


def published(*names):
    return {
        f"publish_{'figure' if name.startswith(('figure', 'size')) else 'table'} name={name}"
        for name in names
    }


def test_nothing_to_do_after_publishing(items):
    assert items.planned(*FILES) == set()


def test_the_index_needs_every_item_and_every_command_is_one(items):
    output = items.snakemake(
        "-n", "-p", "--cores", "2", f"{RUN}/index.md", "--forcerun", "publish_table", "--configfile", PLAN
    ).stdout
    found = [words[words.index("minillm") + 1 :] for words in commands(output)]
    parsed = [parser().parse_args(words) for words in found if words[0] in ("publish", "index")]
    tables = {
        name for name, item in ITEMS.items() if item.kind == "table" and not item.if_asked and not item.if_set
    }
    assert {args.config.stem for args in parsed if args.command == "publish"} >= tables and parsed[
        -1
    ].command == "index"
    items.snakemake("--cores", "4", f"{RUN}/index.md", "--configfile", PLAN, "--quiet", "--show-failed-logs")
    assert {path.stem for path in (items.root / RUN / "tables").glob("*.json")} == tables


READERS = ("table6", "cost", "figure1", "size-gap")
METRIC = f"{RUN}/metrics/rouge/small/kd/big/seed10/easy.json"


def test_an_edited_metric_republishes_what_reads_it(items):
    path = items.root / METRIC
    text, times = path.read_text(), (path.stat().st_atime, path.stat().st_mtime)
    path.write_text("other\n")
    try:
        assert items.planned(*FILES) == published(*READERS)
    finally:
        path.write_text(text)
        os.utime(path, times)


def test_style_redraws_figures_alone(items):
    edited = items.write("edited.yaml", lambda c: c["style"].update(dpi=90))
    names = ("figure1", "figure2", "figure6", "size-gap")
    assert items.planned(*FILES, config=edited) == published(*names) | {
        f"settings key=publish/{name}" for name in names
    }


def test_editing_a_drawing_redraws_it(items):
    path = items.root / "minillm/publish/figures/figure2_toy.py"
    text, times = path.read_text(), (path.stat().st_atime, path.stat().st_mtime)
    path.write_text(text + "\n# edited\n")
    try:
        assert items.planned(*FILES) == published("figure2")
    finally:
        path.write_text(text)
        os.utime(path, times)
