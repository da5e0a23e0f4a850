"""The page of blind comparisons and what becomes of the answers."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from evaluation_case import generations

from minillm.cli import main
from minillm.config.measurements.human import HumanSettings
from minillm.errors import UserError
from minillm.evaluation.human import run_stage as count
from minillm.evaluation.human import wilson
from minillm.evaluation.human_page import key_file
from minillm.evaluation.human_page import run_stage as export

NASTY = "</script><img src=x onerror=alert(1)> <!-- & {{DATA}} \u2028"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "chrome-headless-shell")


class Page(HTMLParser):
    """Elements, and the text of each script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: set[str] = set()
        self.scripts: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids |= {value for name, value in attrs if name == "id" and value}
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "script":
            self.scripts[-1] += data


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """page.html: answers of ours to 12 prompts against two others."""
    ours = generations(tmp_path / "model-ours/t.jsonl", [f"ours {i} {NASTY}" for i in range(12)])
    others = [
        generations(tmp_path / f"model-{name}/t.jsonl", [f"{name} {i}" for i in range(12)])
        for name in ("kd", "teacher")
    ]
    export(
        HumanSettings(stage="human", prompts=10, seed=3),
        generations=ours,
        against=others,
        out=tmp_path / "page.html",
    )
    return tmp_path / "page.html"


def data(page: Path) -> dict[str, Any]:
    return json.loads(Page(page.read_text()).scripts[0])


def test_the_page_is_one_blind_file(made: Path) -> None:
    text = made.read_text()
    page, key = Page(text), json.loads(key_file(made).read_text())
    assert page.tags.count("script") == 2 and "img" not in page.tags and page.links == []
    inside = text.partition('id="data">')[2].partition("</script>\n")[0]
    assert inside.endswith("}") and not set("<>&") & set(
        inside
    )  # nothing in it can end the script or begin a comment
    assert {
        "left",
        "right",
        "question",
        "progress",
        "annotator",
        "save",
        "choose-left",
        "choose-tie",
        "choose-right",
    } <= page.ids
    for name in ("model-", "kd/", "minillm/", "jsonl", *key["against"]):
        assert name not in text
    pairs = data(made)["pairs"]
    assert len(pairs) == 20 and {p["id"] for p in pairs} == set(key["pairs"])
    assert all(re.fullmatch("[0-9a-f]{12}", p["id"]) and p["question"].startswith("Question ") for p in pairs)
    for pair in pairs:
        entry = key["pairs"][pair["id"]]
        other = "right" if entry["ours"] == "left" else "left"
        assert pair[entry["ours"]] == f"ours {entry['row']} {NASTY}".strip()
        assert pair[other] == ("kd" if "model-kd" in entry["against"] else "teacher") + f" {entry['row']}"
    assert {entry["ours"] for entry in key["pairs"].values()} == {"left", "right"}
    rows = [{e["row"] for e in key["pairs"].values() if e["against"] == path} for path in key["against"]]
    assert rows[0] == rows[1] and len(rows[0]) == 10


def test_the_same_seed_gives_the_same_page(made: Path, tmp_path: Path) -> None:
    key = json.loads(key_file(made).read_text())
    again, other = tmp_path / "again.html", tmp_path / "other.html"
    for seed, out in ((3, again), (4, other)):
        export(
            HumanSettings(stage="human", prompts=10, seed=seed),
            generations=Path(key["ours"]),
            against=[Path(p) for p in key["against"]],
            out=out,
        )
    assert again.read_bytes() == made.read_bytes() != other.read_bytes()


def answers(page: Path, path: Path, name: str, choose: Any, **change: Any) -> Path:
    key = json.loads(key_file(page).read_text())
    chosen = {pair: choose(entry) for pair, entry in key["pairs"].items()}
    values = {"format": key["format"], "study": key["study"], "annotator": name, "answers": chosen, **change}
    path.write_text(json.dumps(values))
    return path


def ours_against_kd(entry: dict[str, Any]) -> str:
    """Ours is better than kd, and ties with the teacher but for its row 0 to 5, where it loses."""
    if "model-kd" in entry["against"]:
        return str(entry["ours"])
    return ("right" if entry["ours"] == "left" else "left") if entry["row"] <= 5 else "tie"


def test_round_trip(made: Path, tmp_path: Path) -> None:
    files = [
        answers(made, tmp_path / "a.json", "A", ours_against_kd),
        answers(made, tmp_path / "b.json", "B", lambda e: "tie"),
    ]
    count(answers=files, key=key_file(made), out=tmp_path / "m.json")
    found = json.loads((tmp_path / "m.json").read_text())
    kd, teacher = found["comparisons"]
    losses = sum(e["row"] <= 5 for e in json.loads(key_file(made).read_text())["pairs"].values()) // 2
    assert (kd["win"]["count"], kd["tie"]["count"], kd["loss"]["count"], kd["n"]) == (10, 10, 0, 20)
    assert (teacher["win"]["count"], teacher["tie"]["count"], teacher["loss"]["count"]) == (
        0,
        20 - losses,
        losses,
    )
    assert kd["win"]["share"] == 50 and kd["win"]["low"] == pytest.approx(29.93, abs=0.01)  # Wilson by hand
    assert (found["metric"], found["n"], found["annotators"], found["agreement"]) == (
        "human",
        40,
        ["A", "B"],
        100 * (10 - losses) / 20,
    )
    assert found["sources"] == [str(key_file(made)), *map(str, files)]


def test_wilson_by_its_formula() -> None:
    z, n, p = 1.959963984540054, 40, 0.25
    middle, half = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    found = wilson(10, 40)
    assert found["low"] == pytest.approx(100 * (middle - half) / (1 + z * z / n))
    assert found["high"] == pytest.approx(100 * (middle + half) / (1 + z * z / n))
    assert wilson(0, 0) == {"share": None, "low": None, "high": None}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("{", r"not JSON \(.*\); save it from the page again"),
        ("[]", "not a file of a comparison page .*"),
        ({"format": "other"}, "not a file of a comparison page .*"),
        ({"study": "f" * 16}, r"answers to another page \(f+\) than that of .*"),
        ({"annotator": " "}, "no 'annotator'; write a name there .*"),
        ({"answers": {}}, "no 'answers' in it; .*"),
        ({"answers": {"beef": "left"}}, "unknown pair 'beef'; .*"),
    ],
)
def test_damaged_or_foreign_answers_are_one_line(made: Path, tmp_path: Path, change: Any, said: str) -> None:
    file = answers(
        made, tmp_path / "a.json", "A", ours_against_kd, **(change if isinstance(change, dict) else {})
    )
    if isinstance(change, str):
        file.write_text(change)
    with pytest.raises(UserError, match=f"^{re.escape(str(file))}: {said}$"):
        count(answers=[file], key=key_file(made), out=tmp_path / "m.json")
    assert not (tmp_path / "m.json").exists()


def test_wrong_choices_and_a_second_file_of_one_annotator(made: Path, tmp_path: Path) -> None:
    wrong = answers(made, tmp_path / "w.json", "A", lambda e: "middle")
    with pytest.raises(UserError, match="'middle' is none of left, tie, right"):
        count(answers=[wrong], key=key_file(made), out=tmp_path / "m.json")
    files = [answers(made, tmp_path / f"{i}.json", "A", ours_against_kd) for i in range(2)]
    with pytest.raises(UserError, match="the annotator 'A' has answered in .*0.json already"):
        count(answers=files, key=key_file(made), out=tmp_path / "m.json")


def test_answers_to_another_page_of_the_run_are_left_to_it(made: Path, tmp_path: Path) -> None:
    key = json.loads(key_file(made).read_text())
    other = tmp_path / "other.html"
    export(
        HumanSettings(stage="human", prompts=4, seed=8),
        generations=Path(key["ours"]),
        against=[Path(key["against"][0])],
        out=other,
    )
    files = [
        answers(made, tmp_path / "a.json", "A", ours_against_kd),
        answers(other, tmp_path / "b.json", "B", ours_against_kd),
    ]
    count(answers=files, key=key_file(other), out=tmp_path / "m.json", also=[key_file(made), key_file(other)])
    found = json.loads((tmp_path / "m.json").read_text())
    assert (found["annotators"], found["n"]) == (["B"], 4)


def test_answers_to_different_prompts_are_not_compared(tmp_path: Path) -> None:
    ours = generations(tmp_path / "a/t.jsonl", ["x", "y"])
    other = generations(tmp_path / "b/t.jsonl", ["x", "y", "z"])
    with pytest.raises(
        UserError,
        match=r"b/t.jsonl: its prompts are not those of .*a/t.jsonl; compare answers to one test set",
    ):
        export(HumanSettings(stage="human"), generations=ours, against=[other], out=tmp_path / "p.html")


def test_by_hand_from_the_command_line(tmp_path: Path) -> None:
    files = [generations(tmp_path / f"{name}/t.jsonl", [name, name]) for name in "abc"]
    page = tmp_path / "p.html"
    words = ["human-export", "--generations", files[0], "--against", *files[1:], "--out", page]
    assert main([str(word) for word in words]) == 0
    given = answers(page, tmp_path / "g.json", "A", lambda e: "tie")
    words = ["human-import", "--answers", given, "--key", key_file(page), "--out", tmp_path / "m.json"]
    assert main([str(word) for word in words]) == 0
    assert [c["tie"]["count"] for c in json.loads((tmp_path / "m.json").read_text())["comparisons"]] == [2, 2]


# --- the page's script
STUB = """
const fs = require("fs"), vm = require("vm");
const page = fs.readFileSync(process.argv[2], "utf8");
const scripts = [...page.matchAll(/<script[^>]*>([\\s\\S]*?)<\\/script>/g)].map((m) => m[1]);
const kept = {}, blobs = [];
function open() {
  const elements = {}, listeners = {};
  const make = () => ({ textContent: "", value: "", handlers: {}, setAttribute() {}, focus() {}, click() {},
    addEventListener(name, f) { this.handlers[name] = f; } });
  const document = { getElementById: (id) => (elements[id] ??= make()), createElement: make,
    addEventListener: (name, f) => { listeners[name] = f; } };
  document.getElementById("data").textContent = scripts[0];
  const localStorage = { getItem: (k) => kept[k] ?? null, setItem: (k, v) => { kept[k] = v; } };
  const Blob = class { constructor(parts) { blobs.push(parts.join("")); } };
  vm.runInNewContext(scripts[1], { document, localStorage, Blob,\
 URL: { createObjectURL: () => "blob:" }, console });
  const press = (key) => listeners.keydown({ key, target: null, preventDefault() {} });
  return { elements, press };
}
let { elements, press } = open();
const first = elements.progress.textContent, left = elements.left.textContent;
press("1"); press("ArrowDown"); press("3"); press("Backspace"); press("2");
elements.save.handlers.click();
const unnamed = blobs.length;
({ elements, press } = open());
const again = elements.progress.textContent;
for (let i = 3; i < 20; i++) elements["choose-right"].handlers.click();
elements.annotator.value = "Anna B."; elements.save.handlers.click();
console.log(JSON.stringify({ first, left, again, unnamed,\
 note: elements.note.textContent, file: JSON.parse(blobs[0]) }));
"""


def test_the_script_with_a_stub_of_a_browser(made: Path, tmp_path: Path) -> None:
    node = shutil.which("node")
    if not node:
        pytest.skip("no node here to run the page's script")
    (tmp_path / "stub.cjs").write_text(STUB)
    done = subprocess.run([node, tmp_path / "stub.cjs", made], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found, pairs = json.loads(done.stdout), data(made)["pairs"]
    assert found["first"] == "Pair 1 of 20, 0 answered" and found["left"] == pairs[0]["left"]
    assert found["again"] == "Pair 4 of 20, 3 answered" and found["unnamed"] == 0
    assert found["note"] == "Saved 20 of 20 answers."
    assert [found["file"]["answers"][p["id"]] for p in pairs] == ["left", "tie", "tie"] + ["right"] * 17
    (tmp_path / "saved.json").write_text(json.dumps(found["file"]))
    count(answers=[tmp_path / "saved.json"], key=key_file(made), out=tmp_path / "m.json")
    assert json.loads((tmp_path / "m.json").read_text())["annotators"] == ["Anna B."]


def test_the_page_in_a_browser(made: Path) -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not browser:
        pytest.skip("no Chromium here to open the page in")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", made.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "Pair 1 of 20, 0 answered" in done.stdout and "<img" not in done.stdout, done.stderr
