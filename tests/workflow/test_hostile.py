"""Names, paths and texts that people bring reach every stage as they are and run nothing."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from checkout import LEFT_OUT, Checkout

from minillm.cli import parser
from minillm.publish.style import markdown

REPO = Path(__file__).resolve().parents[2]
# Of a folder or file: an option, spaces, both quotes, commands in four forms, a comment, other scripts.
NAME = "-x 'y' \"z\" $(touch pwned) `touch pwned` ;touch pwned; & touch pwned # (1) ü中"
ANSWERS = f"answers {NAME}.json"
SCRIPT = "<script>document.title='pwned'</script>"
LABEL = f"{NAME} $5 $$ {{x}} {{{{y}}}} 100% | \\ עברית\n\n.. raw:: html\n\n   {SCRIPT}\n"
CHECKPOINT = {"source": "folder", "tokenizer": "letters", "path": f"{NAME}/model"}


def edit(config: dict[str, Any]) -> None:
    for name in ("easy", "text"):
        config["datasets"][name] = {"source": "folder", "path": f"{NAME}/{NAME}.jsonl"}
    config["datasets"]["easy"]["label"] = LABEL
    config["models"]["big"] |= {"family": LABEL, "size": LABEL}
    config["variants"]["gkd"]["label"] = LABEL
    config["checkpoints"] = {"small/minillm/big/seed10": CHECKPOINT}
    config["judge"] = {"kind": "stand-in", "model": LABEL, "tests": ["easy"]}
    config["human"] = {"test": "easy", "answers": [ANSWERS]}


@pytest.fixture(scope="module")
def hostile(checkout: Checkout, tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkout, str]:
    """A finished run whose folder, configuration and files all have such names; what it said."""
    root = tmp_path_factory.mktemp("hostile") / NAME / "repo"
    shutil.copytree(checkout.root, root, ignore=shutil.ignore_patterns(*LEFT_OUT))
    copy = Checkout(root)
    (root / NAME / "model").mkdir(parents=True)
    for file in (f"{NAME}/{NAME}.jsonl", f"{NAME}/model/config.json", ANSWERS):
        (root / file).write_text("{}\n")
    # Snakemake's own command line takes no name that begins with a dash.
    config = ["--configfile", f"./{copy.write(f'{NAME}/{NAME}.yaml', edit, allow_unicode=True)}"]
    config += ["--config", f"data={json.dumps({'template': 'alpaca'})}"]
    return copy, copy.snakemake("-p", "--cores", "2", *config, "--show-failed-logs").stdout


def test_nothing_that_a_name_says_is_run(hostile: tuple[Checkout, str]) -> None:
    copy, _ = hostile
    assert not [*copy.root.parent.parent.rglob("pwned"), *REPO.glob("pwned")]
    run = copy.root / "results/plan"
    assert {"report.html", "index.md", "metrics.csv"} <= {path.name for path in run.iterdir()}


def test_every_command_is_one_that_the_package_takes(hostile: tuple[Checkout, str]) -> None:
    commands = re.findall(r"^Shell command: (.*-m minillm .*)$", hostile[1], re.MULTILINE)
    lines = [words[words.index("minillm") + 1 :] for words in map(shlex.split, commands)]
    lines = [line[: line.index(">")] for line in lines]
    for line in lines:
        # Ends the test with the message of the command line.
        parser().parse_args(line)
    stages = {line[0] for line in lines}
    assert {"data", "testset", "base", "minillm", "judge", "human-import", "publish", "index"} <= stages
    answers = [
        line[line.index("--answers") + 1 : line.index("--key")] for line in lines if "--answers" in line
    ]
    assert answers == [[ANSWERS]] * 2


def test_texts_reach_the_stages_as_they_are(hostile: tuple[Checkout, str]) -> None:
    run = hostile[0].root / "results/plan"
    table = json.loads((run / "configs/table.json").read_text(encoding="utf-8"))
    assert table["test_labels"]["easy"] == LABEL and table["labels"]["big"] == f"{LABEL} {LABEL}".strip()
    test = json.loads((run / "configs/testset/easy.json").read_text(encoding="utf-8"))
    assert test["dataset"]["path"].endswith(f"{NAME}/{NAME}.jsonl")
    assert json.loads((run / "configs/judge.json").read_text(encoding="utf-8"))["judge"]["model"] == LABEL


class Elements(HTMLParser):
    """Elements and attributes of a page, and its text as a reader sees it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attributes}

    @property
    def names(self) -> set[str]:
        return set(self.tags)

    def handle_data(self, data: str) -> None:
        self.text += data


def scripts(page: Path) -> int:
    """How many script elements a page has."""
    return Elements(page.read_text(encoding="utf-8")).tags.count("script")


def test_the_report_has_no_script_of_theirs(hostile: tuple[Checkout, str], finished: Checkout) -> None:
    page = "results/plan/report.html"
    assert scripts(hostile[0].root / page) == scripts(finished.root / page) > 10


def page_of(checkout: Checkout) -> Path:
    """The report again, of results that hold such texts: in the main table and around another."""
    folder = checkout.root / "results/plan"
    bad = f"{LABEL} <img src=x onerror=\"document.title='pwned'\"> `x <javascript:alert(1)>`_"
    cell = markdown(bad)
    table = (
        f"**Teacher: {cell}**\n\n| Model | {cell} |\n|:--|:--|\n| {cell} | **{cell}** |\n\n{cell}\n{bad}\n"
    )
    sidecar = {"caption": bad, "n": bad, "missing": "", "sources": [bad], "sampling": [bad]}
    for path, text in {"main.md": table, "table2.json": json.dumps(sidecar)}.items():
        (folder / "tables" / path).write_text(text, encoding="utf-8")
    config = ["--configfile", f"./{NAME}/{NAME}.yaml"]
    page = ["results/plan/index.md", "--report", "results/plan/texts.html", "--nolock", "--cores", "1"]
    checkout.snakemake(*page, *config)
    return folder / "texts.html"


@pytest.fixture(scope="module")
def page(hostile: tuple[Checkout, str]) -> Path:
    return page_of(hostile[0])


def test_the_report_shows_texts_as_texts(page: Path, finished: Checkout) -> None:
    assert scripts(page) == scripts(finished.root / "results/plan/report.html")
    text = page.read_text(encoding="utf-8")

    def value(name: str) -> Any:
        start = text.index(f"var {name} = ", text.index(f'<script id="{name.replace("_", "-")}">'))
        return json.JSONDecoder().raw_decode(text[start + len(f"var {name} = ") :])[0]

    caption = value("results")["results/plan/tables/table2.csv"]["caption"]
    allowed = {
        "p",
        "strong",
        "tt",
        "em",
        "pre",
        "ul",
        "li",
        "div",
        "table",
        "colgroup",
        "col",
        "thead",
        "tbody",
    }
    for shown in (caption, value("workflow_desc")):
        found = Elements(shown)
        assert found.names <= allowed | {"tr", "th", "td"} and not found.attributes & {
            "onerror",
            "href",
            "src",
        }
        assert " ".join(LABEL.split()) in " ".join(found.text.split())


def test_no_script_of_theirs_runs_in_a_browser(page: Path, tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium here")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    options += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    options += [f"--user-data-dir={tmp_path}", "--virtual-time-budget=5000", "--dump-dom"]
    done = subprocess.run([browser, *options, page.as_uri()], capture_output=True, text=True, timeout=300)
    assert "<title>Snakemake Report</title>" in done.stdout and "&lt;script&gt;" in done.stdout


@pytest.mark.parametrize("name", ["a\nb.json", "a</script>.json", "a<!--.json"])
def test_what_no_report_can_hold_is_refused(finished: Checkout, name: str) -> None:
    """The report's own script lists the names of inputs."""
    section = {"test": "hard", "answers": [name]}
    config = finished.write("refused.yaml", lambda config: config.update(human=section))
    run = finished.snakemake("-n", "--configfile", config, check=False)
    assert run.returncode and re.search(r"^Error: refused.yaml: human.answers.0: ", run.stdout, re.MULTILINE)


def test_make_takes_names_as_they_are(tmp_path: Path) -> None:
    """DATA and CONFIG, in a checkout whose environment has stand-ins for the commands."""
    shutil.copy(REPO / "Makefile", tmp_path)
    commands = tmp_path / ".venv/bin"
    commands.mkdir(parents=True)
    (commands / "activate").write_text(f"PATH={commands}:$PATH\n")
    for name in ("snakemake", "minillm", "python"):
        lines = ("#!/bin/sh", "printf '%s\\n' \"$@\" > words", 'printf %s "$MINILLM_DATA" > data')
        (commands / name).write_text("\n".join(lines) + "\n")
        (commands / name).chmod(0o755)
    for path in ("pyproject.toml", "requirements.lock", ".venv/.installed", ".venv/.smollm2"):
        (tmp_path / path).touch()
    # Make itself gives "$" a meaning in its variables, and "#" in none.
    name = NAME.replace("$(touch pwned)", "")
    (tmp_path / name).mkdir()
    (tmp_path / name / "a.yaml").write_text("{}")
    (tmp_path / "results/mini/tables").mkdir(parents=True)
    (tmp_path / "results/mini/tables/main.md").touch()

    def make(*words: str) -> list[str]:
        environment = {key: value for key, value in os.environ.items() if key != "MINILLM_DATA"}
        done = subprocess.run(
            ["make", *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return (tmp_path / "words").read_text().splitlines()

    assert make("plan", f"CONFIG={name}/a.yaml")[-1] == f"{name}/a.yaml"
    assert make("plan", "CONFIG=a.yaml b.yaml")[-2:] == ["a.yaml", "b.yaml"]
    assert "config/mini.yaml" in make("mini", f"DATA={name}")
    assert (tmp_path / "data").read_text() == str(tmp_path / name)
    assert not list(tmp_path.rglob("pwned"))
