"""What the report shows of results: the main table in its overview, and what each item was made of."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from docutils.core import publish_parts

from minillm.config.layout import benchmark_of
from minillm.publish.origins import origins
from minillm.publish.report_texts import captions, details, main_table

REPO = Path(__file__).resolve().parents[3]


def html(text: str) -> str:
    parts = publish_parts(text, writer_name="html", settings_overrides={"report_level": 2, "halt_level": 2})
    return parts["html_body"]


def test_the_main_table_is_a_table(tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    assert main_table(tmp_path) == ""
    (tmp_path / "tables/main.md").write_text(
        "**Teacher: A\\_b 1M**\n\n| Model | Method | Dolly, easy<br>n = 9 |\n|:--|:--|--:|\n"
        "| A\\_b 1M | w/o \\|x\\| | **1.0 ± 0.1 \\[2.0?: -1.0]** |\n\n"
        'Notes, "quoted".  \nSampling: no\\_repeat.\n'
    )
    found = html(main_table(tmp_path))
    assert "<th" in found and "Dolly, easy n = 9" in found and found.count("<tr>") == 2
    assert "w/o |x|" in found and "<strong>1.0 ± 0.1 [2.0?: -1.0]</strong>" in found and "A_b 1M" in found
    assert found.count("<p>Notes") == found.count("<p>Sampling: no_repeat.") == 1


def test_an_item_says_its_n_sources_and_settings(tmp_path: Path) -> None:
    assert details(tmp_path, "table", "table3") == ""
    for folder in ("tables", "configs/publish"):
        (tmp_path / folder).mkdir(parents=True)
    sources = [f"metrics/diversity/m/seed{i}/{test}.json" for i in range(500) for test in ("a_b", "c")]
    sidecar = {
        "caption": "Diversity of *all*.",
        "n": "Dolly: n = 9",
        "missing": "",
        "sources": [*sources, "top.json"],
    }
    sidecar |= {"origins": ["generations/m/seed0/c.jsonl"], "sampling": ["top_k 0; sampling seeds 10, 20"]}
    sidecar |= {"seconds": {"generate": {"jobs": 2, "seconds": 100000.4}}}
    (tmp_path / "tables/table3.json").write_text(json.dumps(sidecar))
    (tmp_path / "configs/publish/table3.json").write_text(json.dumps({"sampling_seeds": [10]}))
    found = html(details(tmp_path, "table", "table3"))
    assert (
        "Diversity of *all*." in found
        and "Dolly: n = 9" in found
        and "&quot;sampling_seeds&quot;: [" in found
    )
    assert (
        "metrics/diversity</tt> (1000)" in found
        and ">metrics/diversity/m/seed499</tt>: a_b.json, c.json" in found
    )
    assert (
        found.count('<div class="max-h-40 overflow-y-auto docutils container">') == 2
        and ">generations/m/seed0</tt>: c.jsonl" in found
    )
    assert "</strong>: top_k 0; sampling seeds 10, 20" in found and "generate 27:46:40 (2 jobs)" in found
    (tmp_path / "tables/table3.json").write_text(
        json.dumps(sidecar | {"missing": "not measured", "sources": []})
    )
    found = html(details(tmp_path, "table", "table3"))
    assert "not measured" in found and "no measurements of the run" in found
    older = {key: sidecar[key] for key in ("caption", "n", "missing", "sources")}
    (tmp_path / "tables/table3.json").write_text(json.dumps(older))
    assert "(1000)" in html(details(tmp_path, "table", "table3"))


# Each would be markup, or end what it stands in, if it were not escaped.
HOSTILE = [
    "x\n\n.. raw:: html\n\n   <script>alert(1)</script>\n",
    ".. include:: /etc/hostname",
    ".. image:: http://example.org/a.png",
    "<script>alert(1)</script> <img src=x onerror=alert(1)>",
    "`x <javascript:alert(1)>`_ Workflow_ `Statistics`_ http://example.org a@example.org",
    "*a* **b** ``c`` |d| :sup:`e` [1]_ _`f` ::",
    "- a\n- b",
    "x\u2028.. raw:: html\u2028\u2028   <b>x</b>",
    "x\x85.. raw:: html\x85\x85   <b>x</b>",
    "\0<b>\0",
    "====\nTitle\n====",
    "costs $5 {x} 100% | \\ & 中文 עברית",
]
ALLOWED = {"a", "p", "strong", "tt", "em", "pre", "ul", "li", "div"}
ALLOWED |= {"table", "colgroup", "col", "thead", "tbody", "tr", "th", "td"}


class Elements(HTMLParser):
    """The elements of a page, its links, and its text as a reader sees it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.links: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.links += [value or "" for name, value in attributes if name in ("href", "src")]
        assert not [name for name, _ in attributes if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data


def shown(page: str, text: str) -> bool:
    return " ".join(text.replace("\0", "").split()) in " ".join(Elements(page).text.split())


@pytest.mark.parametrize("text", HOSTILE)
def test_text_of_users_is_no_markup(tmp_path: Path, text: str) -> None:
    """Wherever it stands; with docutils as it comes, which reads files and takes HTML as it is."""
    sidecar = {"caption": text, "n": text, "missing": "", "sources": [f"metrics/{text}/a.json", text]}
    sidecar |= {"origins": [text], "sampling": [text], "seconds": {text: {"jobs": 1, "seconds": 2}}}
    put(tmp_path / "tables/table2.json", sidecar)
    put(tmp_path / "configs/publish/table2.json", {text: [text]})
    page = html(details(tmp_path, "table", "table2"))
    found = Elements(page)
    assert found.names <= ALLOWED and not found.links
    assert shown(page, text)
    sidecar["missing"] = text
    put(tmp_path / "tables/table2.json", sidecar)
    assert shown(html(details(tmp_path, "table", "table2")), text)


@pytest.mark.parametrize("text", HOSTILE)
def test_labels_of_the_main_table_are_no_markup(tmp_path: Path, text: str) -> None:
    from minillm.publish.style import markdown

    cell = markdown(text)
    put(
        tmp_path / "tables/main.md",
        f"**Teacher: {cell}**\n\n| Model | Method | {cell}<br>n = 9 |\n|:--|:--|--:|\n"
        f"| {cell} | {cell} | **1.0** |\n\n{cell}  \n{cell}\n",
    )
    page = html(main_table(tmp_path))
    found = Elements(page)
    assert found.names <= ALLOWED and not found.links and "<strong>1.0</strong>" in page
    seen = " ".join(found.text.split())
    assert seen.count(" ".join(text.replace("\0", "").split())) == 6


def test_a_main_table_that_somebody_wrote_is_no_markup(tmp_path: Path) -> None:
    for text in HOSTILE:
        put(tmp_path / "tables/main.md", f"{text}\n\n| {text} |\n|:--|\n| **{text}** |\n")
        found = Elements(html(captions(tmp_path, {})["main_table"]))
        assert found.names <= ALLOWED and not found.links


def test_the_report_takes_no_html_and_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the escapes: what rules/common.smk tells docutils."""
    secret = tmp_path / "secret.txt"
    secret.write_text("host file")
    text = f".. raw:: html\n\n   <b>x</b>\n\n.. include:: {secret}\n\n.. csv-table::\n   :file: {secret}\n"
    before = publish_parts(text, writer_name="html", settings_overrides={"report_level": 5})["body"]
    assert "<b>x</b>" in before and before.count("host file") == 2
    monkeypatch.setenv("DOCUTILSCONFIG", str(REPO / "workflow/report/docutils.conf"))
    after = publish_parts(text, writer_name="html", settings_overrides={"report_level": 5})["body"]
    assert "<b>" not in after and "host file" not in after


def put(path: Path, text: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
    path.write_text(content, encoding="utf-8", newline="")


def test_what_an_item_came_from(tmp_path: Path) -> None:
    """Generations by way of their metrics, how they were sampled, and the jobs' times.

    Files that are not there add nothing.
    """
    run, how = tmp_path / "results/r", {"top_k": 0, "max_tokens": 8}
    answers = [f"generations/m/{weights}/t.jsonl" for weights in ("teacher", "base")]
    metrics = [path.replace("generations", "metrics/rouge").replace("jsonl", "json") for path in answers]
    for path, metric in zip(answers, metrics, strict=True):
        put(run / metric, {"sampling": how, "seeds": [10, 20], "sources": [str(run / path)]})
        put(run / benchmark_of(path), "s\th:m:s\n2.5\t0:00:02\n")
    put(run / "metrics/judge/m/teacher/t.json", {"sources": [str(run / answers[0]), "elsewhere/key.json"]})
    put(run / "generations/m/teacher/t.meta.json", {"sampling": how, "seeds": [10, 20]})
    put(run / "metrics/calibration/m/teacher/t.json", "{")
    put(run / "benchmarks/calibration/m/teacher/t.tsv", "s\n-\n")
    sources = [
        *metrics,
        "metrics/judge/m/teacher/t.json",
        "metrics/calibration/m/teacher/t.json",
        "metrics/gone.json",
    ]
    assert origins(run, sources) == {
        "origins": [*answers, "elsewhere/key.json"],
        "sampling": ["top_k 0, max_tokens 8; sampling seeds 10, 20"],
        "seconds": {"generate": {"jobs": 2, "seconds": 5.0}},
    }
    assert origins(run, answers[:1])["sampling"] == ["top_k 0, max_tokens 8; sampling seeds 10, 20"]
    assert origins(run, []) == {"origins": [], "sampling": [], "seconds": {}}


def test_the_benchmark_of_a_result() -> None:
    for path, benchmark in (
        ("models/big/teacher/provenance.json", "benchmarks/teacher/big.tsv"),
        ("models/big/base", "benchmarks/base/big.tsv"),
        ("models/small/sft/seed10/metrics.jsonl", "benchmarks/sft/small/seed10.tsv"),
        ("models/small/kd/big/seed10", "benchmarks/kd/small/big/seed10.tsv"),
        (
            "metrics/exposure_bias/big/small/sft/seed10/t.json",
            "benchmarks/exposure_bias/big/small/sft/seed10/t.tsv",
        ),
        ("samples/big/t.jsonl", "benchmarks/samples/big/t.tsv"),
        ("data/letters/pseudo/big.jsonl", "benchmarks/pseudo/letters/big.tsv"),
        ("data/letters/tests/t.jsonl", "benchmarks/testset/letters/t.tsv"),
        ("benchmarks/base/big.tsv", "benchmarks/base/big.tsv"),
        ("human/key.json", ""),
    ):
        assert benchmark_of(path) == benchmark


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tables/main.md", b"|\n"),
        ("tables/main.md", b"| M\xfcller |\n|:--|\n"),
        ("tables/table2.json", b'{"caption": 3, "n": 4, "missing": null, "sources": 5}'),
        ("tables/table2.json", b"[" * 100_000),
        ("configs/publish/table2.json", b"\xff"),
    ],
    ids=["no cell", "not UTF-8", "numbers for texts", "deep", "settings"],
)
def test_a_damaged_result_stops_no_command(tmp_path: Path, file: str, content: bytes) -> None:
    """Captions are made whenever Snakemake starts, for `--unlock` too."""
    good = b'{"caption": "c", "n": "", "missing": "", "sources": []}'
    for path, text in {
        "tables/table2.json": good,
        "configs/publish/table2.json": b"{}",
        file: content,
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(text)
    made = captions(tmp_path, {"table2": "table", "figure2": "figure"})
    damaged = made["main_table"] if file == "tables/main.md" else made["details"]["table2"]
    assert damaged == "" or damaged.startswith("*damaged (")
    assert made["details"]["figure2"] == ""
