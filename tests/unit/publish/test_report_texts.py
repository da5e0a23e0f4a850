"""What the report shows of results: the main table in its overview, and what each item was made of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from docutils.core import publish_parts

from minillm.config.layout import benchmark_of
from minillm.publish.origins import origins
from minillm.publish.report_texts import captions, details, main_table


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
        found.count("<details>") == found.count("</details>") == 2
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


def put(path: Path, text: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if isinstance(text, str) else json.dumps(text))


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
