"""Chat templates: what is rendered, which token ends an answer, and rows that two templates share."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from chat_case import EOS, HEADERS, MARKS, SPECIAL, conversations, make_tokenizer, settings, spec, turns
from data_case import card, message
from transformers import AutoTokenizer

from minillm.config.chat import Chat
from minillm.config.data import Dataset
from minillm.config.stage_settings import TestSettings
from minillm.data.chat import rendered, with_chat
from minillm.data.prepare import run_stage as prepare
from minillm.data.prompts import encode, render
from minillm.data.rows import Corpus, Rows
from minillm.data.sources import Row, read_rows, read_tests
from minillm.data.teacher_prompts import TeacherPrompts, exchanged
from minillm.data.test_set import run_stage as prepare_test
from minillm.errors import UserError

FOLDERS: dict[str, Path] = {}


@pytest.fixture(scope="module", autouse=True)
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("tokenizers")
    for name, template in (("marks", MARKS), ("headers", HEADERS), ("none", None)):
        FOLDERS[name] = make_tokenizer(base / name, template)


def loaded(name="marks", **chat):
    tokenizer = AutoTokenizer.from_pretrained(FOLDERS[name])
    with_chat(tokenizer, Chat(**chat))
    return tokenizer


def shown(tokenizer, *contents, **more):
    return rendered(tokenizer, turns(*contents, **more), "here")


# --- what is rendered
def test_prompts_of_both_templates():
    asked = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert shown(loaded(), "Hi") == asked
    assert shown(loaded(thinking=False), "Hi") == asked + "<think>\n\n</think>\n\n"
    assert shown(loaded(thinking=True), "Hi") == asked
    system = "<|im_start|>system\nBe brief.<|im_end|>\n"
    assert shown(loaded(system="Be brief."), "Hi") == system + asked
    assert shown(loaded(system="Be long."), "Hi", system="Be brief.") == system + asked
    both = "<|start|><|header|>user<|head_end|>\n\nHi<|eot|><|header|>assistant<|head_end|>\n\n"
    assert shown(loaded("headers"), " Hi ") == both
    again = "Yo<|eot|><|header|>user<|head_end|>\n\nBye<|eot|><|header|>assistant<|head_end|>\n\n"
    assert shown(loaded("headers"), "Hi", "Yo", "Bye") == both + again


def test_any_system_prompt_and_a_template_with_a_first_line_of_its_own(tmp_path):
    text = "Say \"no\" to 'x', {{ y }}, {% z %}, \\n, a\nnew line, \u00fc, \u4e2d and \U0001f600."
    assert shown(loaded(system=text), "Hi").startswith(f"<|im_start|>system\n{text}<|im_end|>")
    # A line that begins with a block keeps losing its indentation, and the first line end stays.
    odd = "\n  {% for turn in messages %}\n[{{ turn['content'] }}]\n  {% endfor %}\n"
    (tmp_path / "odd.jinja").write_text(odd)
    file = str(tmp_path / "odd.jinja")
    assert shown(loaded("none", template=file), "Hi") == "\n[Hi]\n"
    assert shown(loaded("none", template=file, thinking=False, system="S"), "Hi") == "\n[S]\n[Hi]\n"


def test_a_date_is_the_same_every_day(tmp_path):
    (tmp_path / "t.jinja").write_text("{{ strftime_now(\"%d %b %Y\") }} {{ strftime_now('%Y') }}" + MARKS)
    tokenizer = loaded("none", template=str(tmp_path / "t.jinja"))
    assert shown(tokenizer, "Hi").startswith("26 Jul 2024 2024<|im_start|>user")


def test_a_saved_tokenizer_renders_alike_with_transformers_alone(tmp_path):
    """System prompt, thinking and end travel with the folder."""
    tokenizer = loaded(system='Be "brief".', thinking=False)
    tokenizer.save_pretrained(tmp_path / "saved")
    alone = AutoTokenizer.from_pretrained(tmp_path / "saved")
    text = alone.apply_chat_template(turns("Hi"), tokenize=False, add_generation_prompt=True)
    assert text == shown(tokenizer, "Hi") and text.count("brief") == text.count("</think>") == 1
    assert alone.eos_token == "<|im_end|>"


# --- which token ends an answer
def test_the_end_is_that_of_the_template_or_named(tmp_path):
    assert loaded().eos_token == "<|im_end|>" and loaded("headers").eos_token == "<|eot|>"
    assert loaded(end="<|eot|>").eos_token == "<|eot|>"
    (tmp_path / "t.jinja").write_text("{% for turn in messages %}{{ turn['content'] }}\n{% endfor %}")
    assert loaded("none", template=str(tmp_path / "t.jinja")).eos_token == EOS
    tokenizer = loaded()
    assert tokenizer.decode(tokenizer.encode("x<|im_end|>"), skip_special_tokens=True) == "x"
    assert tokenizer.get_vocab() == loaded("headers").get_vocab()


def test_errors_of_templates_are_one_line(tmp_path):
    assert message(lambda: loaded("none")) == (
        "tokenizers.chat: this tokenizer has no chat template of its own; name a file in "
        "tokenizers.chat.template, or choose another data.template"
    )
    said = message(lambda: loaded("none", template=str(tmp_path / "none.jinja")))
    assert said == f"{tmp_path}/none.jinja: no such file; name a file with a Jinja chat template"
    said = message(lambda: loaded(end="<|end|>"))
    assert said == "tokenizers.chat.end: '<|end|>' is not a token of this vocabulary; name one that is"
    said = message(lambda: loaded("headers", system="Be brief."))
    assert said == (
        "tokenizers.chat.system: the chat template refuses this (no system message here); leave it empty"
    )
    (tmp_path / "bad.jinja").write_text("{% for %}")
    assert message(lambda: loaded("none", template=str(tmp_path / "bad.jinja"))).startswith(
        "tokenizers.chat: the chat template refuses this ("
    )


# --- rows that are conversations
def rows(tmp_path, *lines, every_turn=False, **more):
    dataset = dataclasses.replace(conversations(tmp_path / "rows.jsonl", *lines), **more)
    return read_rows(dataset, "datasets.d", every_turn=every_turn)


def test_messages_in_both_forms(tmp_path):
    (first, columns, second, third) = rows(
        tmp_path,
        turns("Hi", "Yo"),
        {"messages": {"role": ["user", "assistant"], "content": ["Hi", "Yo"]}},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}], "id": 7},
        {"messages": None, "instruction": "Hi", "output": "Yo"},
    )
    assert (first.instruction, first.outputs, first.messages) == ("Hi", ("Yo",), tuple(turns("Hi")))
    assert dataclasses.replace(second, id=0) == dataclasses.replace(columns, id=0) == first
    assert third.messages == ()
    assert first.key == second.key == third.key
    (named,) = rows(tmp_path, {"talk": turns("Hi", "Yo"), "instruction": "x"}, fields={"messages": "talk"})
    assert named.messages == first.messages
    (both,) = rows(tmp_path, {"messages": turns("Hi", "Yo"), "instruction": "x", "output": "y"})
    assert both.instruction == "x" and not both.messages


def test_the_last_answer_or_each(tmp_path):
    talk = turns("A", "B", "C", "D", "E", "F", system="S")
    (last,) = rows(tmp_path, talk)
    assert (last.id, last.outputs, list(last.messages)) == (0, ("F",), talk[:-1])
    every = rows(tmp_path, turns("Q", "R"), talk, every_turn=True)
    assert [(row.id, row.outputs[0]) for row in every] == [
        (0, "R"), (1 + 2 * 2**32, "B"), (1 + 2**32, "D"), (1, "F"),
    ]  # fmt: skip
    assert [list(row.messages) for row in every[1:]] == [talk[:2], talk[:4], talk[:6]]
    # Each answer once, after exactly what came before: the loss on all answers of the conversation.
    assert [[*row.messages, {"role": "assistant", "content": row.outputs[0]}] for row in every[1:]] == [
        talk[:3], talk[:5], talk[:7],
    ]  # fmt: skip
    # A greeting of the assistant before any question is part of the prompt.
    greeting = [{"role": "assistant", "content": "Hello"}, *turns("Q", "R")]
    assert [row.outputs for row in rows(tmp_path, greeting, every_turn=True)] == [("R",)]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ([], "no list of messages in the field 'messages'"),
        ({"messages": "Hi"}, "no list of messages in the field 'messages'"),
        (turns("Hi"), "no message of the assistant in the field 'messages'"),
        (turns("Hi", "Yo", "Bye"), "the last message is the user's, not the assistant's"),
        ([{"role": "assistant", "content": "Yo"}], "no message of the user before the answer"),
        ([{"role": "user"}], "messages.0: 'role' and 'content' must be texts"),
        ([{"role": "user", "content": None}], "messages.0: 'role' and 'content' must be texts"),
        (["Hi"], "messages.0: a message must have 'role' and 'content', or 'from' and 'value'"),
    ],
)
def test_rows_that_are_no_conversations(tmp_path, line, said):
    text = message(lambda: rows(tmp_path, line))
    assert text == f"{tmp_path}/rows.jsonl:1: {said}; fix or delete this row"


def test_other_templates_show_one_message():
    one, two = (
        Row(3, "Hi", "", ("Yo",), "", tuple(turns(*texts))) for texts in (["Hi"], ["Hi", "Yo", "Bye"])
    )
    assert render(one, "plain") == "Hi\n### Response:\n"
    said = message(lambda: render(two, "alpaca", where="data.train"))
    assert said == (
        "data.train row 3: 3 messages before the answer, and the template 'alpaca' shows one; "
        "set data.template: chat"
    )


def test_instruction_rows_are_one_message():
    text = render(Row(0, "Add.", "1 2", ("3",)), "chat", loaded())
    assert text == "<|im_start|>user\nAdd.\n\n1 2<|im_end|>\n<|im_start|>assistant\n"


def test_an_answer_has_the_same_tokens_after_any_template():
    parts = []
    for name in ("marks", "headers"):
        tokenizer = loaded(name)
        prompt, response, notes = encode(tokenizer, shown(tokenizer, "Hi"), "\n\n Yo.\n", 40, chat=True)
        assert prompt == tokenizer.encode(shown(tokenizer, "Hi"), add_special_tokens=False) and not notes
        assert response[-1] == tokenizer.eos_token_id and tokenizer.decode(response[:-1]) == "Yo."
        parts.append(response[:-1])
    assert parts[0] == parts[1]


# --- stages data and testset
@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Data folders of both templates, linked, and where their files are."""
    folder = tmp_path_factory.mktemp("both")
    marks, headers = spec(FOLDERS["marks"], thinking=False), spec(FOLDERS["headers"])
    prepare(settings(folder, marks, headers), out=folder / "marks")
    prepare(settings(folder, headers, marks), out=folder / "headers")
    return folder


def test_two_folders_hold_the_same_rows(both):
    for split, count in (("train", 18), ("dev", 4)):
        ours, theirs = (Rows.open(both / name, split) for name in ("marks", "headers"))
        assert ours.ids == theirs.ids == list(range(count))
        for i in range(count):
            a, b = ours.response(i), theirs.response(i)
            assert a[:-1].tolist() == b[:-1].tolist()
            assert (a[-1], b[-1]) == (SPECIAL.index("<|im_end|>"), SPECIAL.index("<|eot|>"))
            assert ours.records[i]["prompt"].endswith("</think>\n\n")
            assert theirs.records[i]["prompt"].startswith("<|start|><|header|>user")
            for found, name in ((ours, "marks"), (theirs, "headers")):
                tokenizer = AutoTokenizer.from_pretrained(both / name / "tokenizer")
                assert tokenizer.decode(found.prompt(i)) == found.records[i]["prompt"]
    # Documents end as they did before there was a template.
    ends = {int(t) for name in ("marks", "headers") for t in Corpus.open(both / name).tokens if t < 7}
    assert ends == {SPECIAL.index(EOS)}


def test_cards_and_the_template_in_the_folder(both):
    for name, end in (("marks", "<|im_end|>"), ("headers", "<|eot|>")):
        found = card(both / name / "card.json")
        assert found["tokenizer"]["eos"] == SPECIAL.index(end)
        assert found["train"]["rendered_otherwise"] == (18 if name == "marks" else 0)
        assert found["train"]["eos_in_prompt"] == 0
        tokenizer = AutoTokenizer.from_pretrained(both / name / "tokenizer")
        assert (both / name / "chat_template.jinja").read_text() == tokenizer.chat_template


def test_content_follows_the_template(tmp_path, both):
    contents = {card(both / "marks" / "card.json")["content"]}
    for i, chat in enumerate(({}, {"thinking": False, "system": "S"}, {"thinking": False, "end": "<|eot|>"})):
        prepare(settings(both, spec(FOLDERS["marks"], **chat)), out=tmp_path / str(i))
        contents.add(card(tmp_path / str(i) / "card.json")["content"])
    assert len(contents) == 4


def test_what_one_template_drops_is_dropped_for_both(tmp_path):
    lines = [turns("Hi", "Yo"), turns("x " * 30, "Yo"), turns("Hi <|im_end|>", "Yo <|im_end|> no")]
    train = conversations(tmp_path / "train.jsonl", *lines)
    dev = conversations(tmp_path / "dev.jsonl", turns("D", "d"))
    marks, headers = spec(FOLDERS["marks"], system="long " * 8), spec(FOLDERS["headers"])
    more = {"train": train, "dev": dev, "max_prompt": 95}
    prepare(settings(tmp_path, marks, headers, **more), out=tmp_path / "marks")
    prepare(settings(tmp_path, headers, marks, **more), out=tmp_path / "headers")
    dropped = [card(tmp_path / name / "card.json")["train"] for name in ("marks", "headers")]
    assert [part["dropped"] for part in dropped] == [
        {"prompt_too_long": 1}, {"prompt_too_long_in_linked_template": 1},
    ]  # fmt: skip
    assert [part["eos_in_prompt"] for part in dropped] == [1, 0]
    assert [part["eos_inside"] for part in dropped] == [1, 0]
    assert (
        Rows.open(tmp_path / "marks", "train").ids == Rows.open(tmp_path / "headers", "train").ids == [0, 2]
    )
    test = TestSettings(
        "testset", "t", Dataset(source="folder", path=str(tmp_path / "test.jsonl")), "chat", 95, 0
    )
    conversations(tmp_path / "test.jsonl", turns("Test", "ok"), turns("y " * 30, "ok"))
    for name, other in (("marks", "headers"), ("headers", "marks")):
        prepare_test(test, data=tmp_path / name, also=[tmp_path / other], out=tmp_path / f"{name}.jsonl")
        (row,) = read_tests(tmp_path / f"{name}.jsonl")
        assert (row["id"], row["messages"], row["references"]) == (0, turns("Test"), ["ok"])


def test_vocabularies_that_differ(tmp_path):
    other = make_tokenizer(tmp_path / "other", HEADERS, vocabulary=300)
    said = message(
        lambda: prepare(settings(tmp_path, spec(FOLDERS["marks"]), spec(other)), out=tmp_path / "out")
    )
    assert said.startswith(f"{FOLDERS['marks']}: its vocabulary does not match that of {other} (320 and 300")
    assert not (tmp_path / "out").exists()


def test_a_row_that_a_template_refuses_is_named(tmp_path):
    line = [*turns("Hi"), *turns("Hi", "Yo")]
    train = conversations(tmp_path / "train.jsonl", turns("A", "b"), line)
    conversations(tmp_path / "dev.jsonl", turns("D", "d"))
    said = message(
        lambda: prepare(settings(tmp_path, spec(FOLDERS["headers"]), train=train), out=tmp_path / "o")
    )
    problem = "the chat template refuses this (roles must alternate)"
    assert said == f"data.train row 1: {problem}; fix the row or the template"


# --- the teacher's prompts
def test_teacher_prompts(both, tmp_path):
    assert TeacherPrompts.open(both / "marks", None) is None
    found = TeacherPrompts.open(both / "marks", both / "headers")
    assert found.swap == (2, 6)
    rows, theirs = Rows.open(both / "marks", "train"), Rows.open(both / "headers", "train")
    examples = [(rows.prompt(i), rows.response(i)) for i in (4, 2)]
    for (prompt, response), i in zip(found.of("train", [4, 2], examples), (4, 2), strict=True):
        assert prompt.tolist() == theirs.prompt(i).tolist() and response.tolist() == rows.response(i).tolist()
    assert exchanged(theirs.response(3), (6, 2)).tolist() == rows.response(3).tolist()
    assert exchanged(rows.response(3)[:-1], (6, 2)).tolist() == rows.response(3)[:-1].tolist()
    fewer = dataclasses.replace(settings(both, spec(FOLDERS["headers"])), max_prompt=70)
    prepare(fewer, out=tmp_path / "fewer")
    with pytest.raises(UserError, match=f"{tmp_path}/fewer: its train rows are not those of {both}/marks"):
        TeacherPrompts.open(both / "marks", tmp_path / "fewer")


def test_every_turn_is_a_row_of_the_training_data(both, tmp_path):
    every = settings(both, spec(FOLDERS["marks"]), turns="all")
    prepare(every, out=tmp_path / "all")
    rows = Rows.open(tmp_path / "all", "train")
    # Every third of 18 conversations has two answers; dev rows ask for the last.
    assert len(rows) == 24 and len(set(rows.ids)) == 24 and len(Rows.open(tmp_path / "all", "dev")) == 4
    lines = [json.loads(line)["messages"] for line in (both / "train.jsonl").read_text().splitlines()]
    answers = [turn["content"] for line in lines for turn in line if turn["role"] == "assistant"]
    assert [record["response"] for record in rows.records] == answers
