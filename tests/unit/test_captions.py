"""What the report shows of results: the main table in its overview, and what each item was made of."""

from __future__ import annotations

import json
from pathlib import Path

from docutils.core import publish_parts

from minillm.publish.captions import SHOWN, details, main_table


def html(text: str) -> str:
    parts = publish_parts(text, writer_name="html", settings_overrides={"report_level": 2, "halt_level": 2})
    return parts["html_body"]


def test_the_main_table_is_a_table(tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    assert main_table(tmp_path) == ""
    (tmp_path / "tables/main.md").write_text(
        "**Teacher: A\\_b 1M**\n\n| Model | Method | Dolly, easy<br>n = 9 |\n|:--|:--|--:|\n"
        '| A\\_b 1M | w/o \\|x\\| | **1.0 ± 0.1 \\[2.0?: -1.0]** |\n\nNotes, "quoted".  \nSampling: no\\_repeat.\n'
    )
    found = html(main_table(tmp_path))
    assert "<th" in found and "Dolly, easy n = 9" in found and found.count("<tr>") == 2
    assert "w/o |x|" in found and "<strong>1.0 ± 0.1 [2.0?: -1.0]</strong>" in found and "A_b 1M" in found
    assert found.count("<p>Notes") == found.count("<p>Sampling: no_repeat.") == 1


def test_an_item_says_its_n_sources_and_settings(tmp_path: Path) -> None:
    assert details(tmp_path, "table", "table3") == ""
    for folder in ("tables", "configs/publish"):
        (tmp_path / folder).mkdir(parents=True)
    sources = [f"metrics/a_{i}.json" for i in range(SHOWN + 2)]
    sidecar = {"caption": "Diversity of *all*.", "n": "Dolly: n = 9", "missing": "", "sources": sources}
    (tmp_path / "tables/table3.json").write_text(json.dumps(sidecar))
    (tmp_path / "configs/publish/table3.json").write_text(json.dumps({"sampling_seeds": [10]}))
    found = html(details(tmp_path, "table", "table3"))
    assert "Diversity of *all*." in found and "Dolly: n = 9" in found and "metrics/a_39.json" in found
    assert "metrics/a_40.json" not in found and "and 2 more" in found and "&quot;sampling_seeds&quot;: [" in found
    (tmp_path / "tables/table3.json").write_text(json.dumps(sidecar | {"missing": "not measured", "sources": []}))
    found = html(details(tmp_path, "table", "table3"))
    assert "not measured" in found and "no measurement of the run" in found
