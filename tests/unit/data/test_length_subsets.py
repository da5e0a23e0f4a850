"""Test sets by reference length, from a folder of task files and from the published folders."""

import json

import pytest

from minillm.cli import main
from minillm.config.data import Dataset
from minillm.data.length_subsets import PER_TASK, bucket_of
from minillm.data.length_subsets import run_stage as subsets
from minillm.data.sources import read_rows
from minillm.errors import UserError


def lines(path):
    return [json.loads(line) for line in path.read_text().removesuffix("\n").split("\n")]


@pytest.fixture
def tokenizer(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"w": 0}, unk_token="w"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    (tmp_path / "tokenizer").mkdir()
    words.save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    return tmp_path / "tokenizer"


@pytest.fixture
def tasks(tmp_path):
    """Two test tasks and one that is not, laid out like the Super-NaturalInstructions repository."""
    folder = tmp_path / "natural-instructions"
    (folder / "tasks").mkdir(parents=True)
    (folder / "splits" / "default").mkdir(parents=True)
    (folder / "splits" / "default" / "test_tasks.txt").write_text("task1_one\ntask2_two\n")
    instances = [{"id": "x", "input": f"i{n}", "output": ["w " * n, "w"]} for n in (1, 5, 6, 10, 11)]
    many = [{"input": f"m{n}", "output": "w"} for n in range(PER_TASK + 3)]
    for name, definition, rows in (
        ("task1_one", ["Do."], instances),
        ("task2_two", "Do it.", many),
        ("task3_no", ["No."], many),
    ):
        (folder / "tasks" / f"{name}.json").write_text(
            json.dumps({"Definition": definition, "Instances": rows})
        )
    return folder


def test_task_files(tasks, tokenizer, tmp_path):
    out = tmp_path / "made" / "sni.jsonl"
    subsets(None, source=tasks, out=out, tokenizer=tokenizer)
    rows = lines(out)
    assert len(rows) == 5 + PER_TASK and {row["topic"] for row in rows} == {"task1_one", "task2_two"}
    assert rows[0] == {
        "topic": "task1_one",
        "instruction": "Do.",
        "input": "i1",
        "output": ["w ", "w"],
        "bucket": "0_5",
    }
    assert [row["bucket"] for row in rows[:5]] == ["0_5", "0_5", "6_10", "6_10", "11_"]
    assert [row["input"] for row in lines(out.with_suffix(".6_10.jsonl"))] == ["i6", "i10"]
    card = json.loads(out.with_suffix(".card.json").read_text())
    assert card["subsets"] == {"0_5": 2 + PER_TASK, "6_10": 2, "11_": 1} and card["tasks"] == 2
    long = read_rows(Dataset(source="folder", path=str(out.with_suffix(".11_.jsonl"))), "datasets.sni")
    assert [(row.input, len(row.outputs)) for row in long] == [("i11", 2)]


def test_without_a_tokenizer_there_is_no_subset(tasks, tmp_path):
    out = tmp_path / "made" / "sni.jsonl"
    assert main(["subsets", "--source", str(tasks), "--out", str(out)]) == 0
    assert {row["bucket"] for row in lines(out)} == {""}
    assert sorted(path.name for path in out.parent.iterdir()) == ["sni.card.json", "sni.jsonl"]


def test_published_folders(tmp_path):
    for name, output in (("0_2", "a"), ("3_6", ["b", "c"]), ("6_10", "d"), ("11_", ["e"])):
        (tmp_path / "sinst" / name).mkdir(parents=True)
        row = {"instruction": f"do {name}", "input": "", "output": output, "prompt": "p", "topic": "task9"}
        (tmp_path / "sinst" / name / "valid.jsonl").write_text(json.dumps(row) + "\n")
    subsets(None, source=tmp_path / "sinst", out=tmp_path / "all.jsonl", tokenizer=None)
    assert [(row["bucket"], row["output"]) for row in lines(tmp_path / "all.jsonl")] == [
        ("0_5", ["a"]), ("0_5", ["b", "c"]), ("6_10", ["d"]), ("11_", ["e"]),
    ]  # fmt: skip
    assert [row["instruction"] for row in lines(tmp_path / "all.0_5.jsonl")] == ["do 0_2", "do 3_6"]
    assert json.loads((tmp_path / "all.card.json").read_text())["layout"] == "published"


def test_the_folder_may_be_a_configurations(tmp_path):
    (tmp_path / "sinst/11_").mkdir(parents=True)
    (tmp_path / "sinst/11_/valid.jsonl").write_text(json.dumps({"instruction": "do", "output": "e"}) + "\n")
    config = tmp_path / "c.json"
    config.write_text(
        json.dumps({"stage": "subsets", "rows": {"source": "folder", "path": str(tmp_path / "sinst")}})
    )
    assert main(["subsets", "--config", str(config), "--out", str(tmp_path / "all.jsonl")]) == 0
    assert len(lines(tmp_path / "all.jsonl")) == 1
    assert (tmp_path / "all.0_5.jsonl").read_text() == ""  # a subset without rows is there all the same
    assert main(["subsets", "--out", str(tmp_path / "none.jsonl")]) == 2


def test_buckets():
    assert [bucket_of(n) for n in (0, 5, 6, 10, 11, 400)] == ["0_5", "0_5", "6_10", "6_10", "11_", "11_"]


def test_what_is_refused(tasks, tmp_path):
    out = tmp_path / "o.jsonl"
    with pytest.raises(UserError, match="gone: no such folder"):
        subsets(None, source=tmp_path / "gone", out=out, tokenizer=None)
    (tasks / "tasks" / "task2_two.json").write_text("{")
    with pytest.raises(UserError, match="task2_two.json: not JSON"):
        subsets(None, source=tasks, out=out, tokenizer=None)
    (tasks / "tasks" / "task2_two.json").unlink()
    with pytest.raises(UserError, match="task2_two.json: no such task file"):
        subsets(None, source=tasks, out=out, tokenizer=None)
    (tasks / "tasks" / "task1_one.json").write_text(
        json.dumps({"Definition": ["D"], "Instances": [{"input": "i"}]})
    )
    with pytest.raises(UserError, match=r"task1_one.json: Instances.0: no input, or no output"):
        subsets(None, source=tasks, out=out, tokenizer=None)
    (tasks / "tasks" / "task1_one.json").write_text("{}")
    with pytest.raises(UserError, match="'Definition' or 'Instances' is missing"):
        subsets(None, source=tasks, out=out, tokenizer=None)
    (tasks / "splits" / "default" / "test_tasks.txt").unlink()
    with pytest.raises(UserError, match="test_tasks.txt"):
        subsets(None, source=tasks, out=out, tokenizer=None)
    assert not out.exists()
