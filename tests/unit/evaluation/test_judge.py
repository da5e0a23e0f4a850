"""The judge: scores read from replies, the ratio by hand, and an endpoint that misbehaves in every way.

No verdict is paid for twice.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from evaluation_case import generations

from minillm.cli import main
from minillm.config.measurements.judge import Judge, JudgeSettings
from minillm.errors import UserError
from minillm.evaluation.answers import question
from minillm.evaluation.judge import LAYOUT, REQUEST, parse_scores, request
from minillm.evaluation.judge import run_stage as evaluate
from minillm.evaluation.judges import KEPT, ChatEndpoint, _fingerprint
from minillm.scores import rouge_l

KEY = "sk-secret-0123456789"


@pytest.mark.parametrize(
    ("reply", "scores"),
    [
        ("8 7\nBoth are good.", (8, 7)),
        ("\n  7.5 10 \n", (7.5, 10)),
        ("8, 7", (8, 7)),
        ("**8 7**\nBoth are good.", (8, 7)),
        ("**8** **7**", (8, 7)),
        ("`8 7`", (8, 7)),
        ("```\n8 7\n```\nBoth are good.", (8, 7)),
        ("```text\n\n8 7\n```", (8, 7)),
        ("8/10 9/10\nWhy.", (8, 9)),
        ("**8.5 / 10**, **9 / 10**", (8.5, 9)),
        ("Assistant 1: 8, Assistant 2: 7", (8, 7)),
        ("**Assistant 1:** 8/10; **Assistant 2:** 7/10", (8, 7)),
        ("<think>\n3 4 at first sight\n</think>\n\n8 7\nBoth are good.", (8, 7)),
        ("<think>\n3 4\n</think>\n**8/10 7/10**", (8, 7)),
        ("The first is better. So:\n</think>\n8 7", (8, 7)),
        ("8 7\nThe first ends in </think>\nfor no reason.", (8, 7)),
        # Which line the scores are is not clear: none.
        ("3 4\n</think>\n8 7", None),
        ("<think>\n8 7\nand so on", None),
        # Other numbers, or numbers whose order is not the one asked for.
        ("Assistant 2: 7, Assistant 1: 8", None),
        ("Assistant 1: 8", None),
        ("8/9", None),
        ("8 9/10", None),
        ("8/10 9", None),
        ("8/100 9/100", None),
        ("1*0 7", None),
        ("Of 10 points, 8 and 7.", None),
        ("I give 8 7", None),
        ("Scores\n8 7", None),
        ("-8 7", None),
        ("0 7", None),
        ("8 11", None),
        ("8", None),
        ("8 7 6", None),
        ("", None),
    ],
)
def test_scores_of_a_reply(reply: str, scores: tuple[float, float] | None) -> None:
    assert parse_scores(reply) == scores


def test_the_request_is_the_published_one_below_question_and_answers() -> None:
    text = request("Say {a}.", "{first}", "b")
    assert text.startswith("[Instruction]\nSay {a}.\n\n[The Start of Assistant 1's Answer]\n{first}\n")
    assert text.endswith(f"[System]\n{REQUEST}\n") and LAYOUT.count("{request}") == 1
    assert REQUEST.startswith(
        "We would like to request your feedback on the performance of two AI assistants in response to"
    )
    assert REQUEST.endswith(
        "ensuring that the order in which the responses were presented does not affect your judgment."
    )


def test_the_question_is_the_prompt_without_its_wrapper() -> None:
    start = "Below is an instruction that describes a task"
    assert question(f"{start}. Write.\n\n### Instruction:\nAdd.\n\n### Response:\n") == "Add."
    both = "### Instruction:\nAdd.\n\n### Input:\n1 2"
    assert question(f"{start}, paired with an input. Write.\n\n{both}\n\n### Response:\n") == both
    assert question("Add.\n1 2\n### Response:\n") == "Add.\n1 2"


def settings(**values: Any) -> JudgeSettings:
    return JudgeSettings(stage="judge", judge=Judge(tests=("t",), **values), precision="fp32")


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def test_the_stand_in_says_that_it_is_one(tmp_path: Path) -> None:
    file = generations(tmp_path / "t.jsonl", ["red blue green", "pink", "red pink"], seeds=(10, 20))
    evaluate(
        settings(kind="stand-in", rows=2), generations=file, cache=tmp_path / "cache", out=tmp_path / "m.json"
    )
    found = read(tmp_path / "m.json")
    assert found["stand_in"] is True and found["judge"]["kind"] == "stand-in"
    assert (found["n"], found["seeds"], found["missing"], found["sources"]) == (2, [10], [], [str(file)])
    low = round(1 + 0.09 * rouge_l("pink", ["red blue green"]), 1)
    assert found["rows"][1] == {"seed": 10, "id": 1, "response": [low, low], "reference": [10, 10]}
    assert found["totals"] == {"response": 10 + low, "reference": 20}
    assert found["mean"] == pytest.approx(100 * (10 + low) / 20)
    assert found["standard_error"] > 0


# --- an endpoint
class Server(ThreadingHTTPServer):
    """Answers the n-th request with what `script` says ("ok" after its end) and remembers the requests.

    A prompt that holds `unwanted` is always refused by a filter.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[str] = []
        self.prompts: list[str] = []
        self.paid: list[str] = []
        self.keys: set[str] = set()
        self.bodies: list[dict[str, Any]] = []
        self.unwanted = ""
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, *_: Any) -> None:  # a client that has hung up
        pass


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        prompt = body["messages"][0]["content"]
        with self.server.lock:
            self.server.prompts.append(prompt)
            self.server.keys.add(self.headers["authorization"])
            self.server.bodies.append(body)
            what = self.server.script.pop(0) if self.server.script else "ok"
            if what in ("ok", "words"):
                self.server.paid.append(prompt)
        if self.server.unwanted and self.server.unwanted in prompt:
            error = {"message": "The response was filtered.", "code": "content_filter", "param": "prompt"}
            self._reply(400, json.dumps({"error": error}))
        elif "max_tokens" in body and what == "new":
            said = "'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
            error = {"message": said, "code": "unsupported_parameter", "param": "max_tokens"}
            self._reply(400, json.dumps({"error": error}))
        elif what == "parts":
            parts = [{"type": "thinking", "text": "2 2"}, {"type": "text", "text": "4 "}]
            message = {"content": [*parts, {"type": "text", "text": "8\nWhy."}]}
            self._reply(200, json.dumps({"choices": [{"message": message}]}))
        elif what == "withheld":
            choice = {"message": {"content": None}, "finish_reason": "content_filter"}
            self._reply(200, json.dumps({"choices": [choice]}))
        elif what == "forms":
            raw = KEY.encode()
            said = " ".join(
                [KEY.upper(), quote(self.headers["authorization"]), KEY[:12], raw.hex(), KEY[3:].title()]
                + [base64.b64encode(start + raw).decode() for start in (b"", b":", b"me:", b"Bearer ")]
            )
            self._reply(200, json.dumps({"choices": [{"message": {"content": f"4 8\n{said}"}}]}))
        elif what == "400 forms":
            said = f"{base64.b64encode(b'user:' + KEY.encode()).decode()} {KEY.upper()} {KEY[2:-2]}"
            self._reply(400, json.dumps({"error": {"message": said}}))
        elif what == "ok":
            # The reference is worth 8, any response 4.
            first = prompt.split("Assistant 1's Answer]\n")[1]
            scores = "8 4" if first.startswith("red blue green") else "4 8"
            self._reply(200, json.dumps({"choices": [{"message": {"content": f"{scores}\nWhy."}}]}))
        elif what == "repeats":
            why = f"Asked with {self.headers['authorization']}"
            self._reply(200, json.dumps({"choices": [{"message": {"content": f"4 8\n{why}."}}]}))
        elif what == "repeats-garbage":
            padding = "x" * (KEPT - 10)  # the key lies across the place where such a reply is cut
            self._reply(200, f"{padding}{self.headers['authorization']}", "text/html")
        elif what == "words":
            self._reply(200, json.dumps({"choices": [{"message": {"content": "I like the first."}}]}))
        elif what == "garbage":
            self._reply(200, "<html>proxy</html>", "text/html")
        elif what == "broken":
            self._reply(200, '{"choices": [')
        elif what == "close":
            self.close_connection = True
        elif what == "hang":
            time.sleep(1.0)
        elif what == "echo":
            self._reply(
                400, json.dumps({"error": {"message": f"bad request with {self.headers['authorization']}"}})
            )
        else:
            self._reply(int(what), json.dumps({"error": {"message": f"no: {self.headers['authorization']}"}}))

    def _reply(self, status: int, text: str, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(text)))
        if status == 429:
            self.send_header("retry-after", "0.2")
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    pytest.importorskip("openai", reason="openai is not installed here")
    monkeypatch.setenv("JUDGE_KEY", KEY)
    made = Server()
    threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def asked(server: Server, **values: Any) -> JudgeSettings:
    patience = {"backoff": 0.01, "timeout": 0.5, "retries": 4, "concurrency": 3}
    address = {"base_url": server.url, "key_variable": "JUDGE_KEY"}
    return settings(kind="openai", model="m", **{**patience, **address, **values})


def no_key(folder: Path, *texts: str) -> None:
    for text in (*texts, *(path.read_text() for path in folder.rglob("*") if path.is_file())):
        assert KEY not in text and "secret" not in text


RESPONSES = ["red", "pink", "black and white", "none"]


def test_an_endpoint_that_fails_in_every_way(
    server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server.script = ["429", "500", "close", "garbage", "hang", "503", "words", "broken"]
    file = generations(tmp_path / "t.jsonl", RESPONSES)
    evaluate(asked(server), generations=file, cache=tmp_path / "cache", out=tmp_path / "m.json")
    found = read(tmp_path / "m.json")
    assert (found["mean"], found["standard_error"], found["n"], found["missing"]) == (50, 0, 4, [])
    assert found["by_order"] == {"response_first": 50, "reference_first": 50} and found["stand_in"] is False
    assert found["judge"]["temperature"] == 0.7 and server.keys == {f"Bearer {KEY}"}
    assert len(server.prompts) == 8 + 8 and len(set(server.prompts)) == 8
    output = capfd.readouterr()
    assert "judge: 8 verdicts wanted, 0 of them cached, 8 calls to make" in output.out
    # A second run asks nothing, not even for the key.
    before = (tmp_path / "m.json").read_bytes()
    evaluate(asked(server, retries=1), generations=file, cache=tmp_path / "cache", out=tmp_path / "m.json")
    assert len(server.prompts) == 16 and (tmp_path / "m.json").read_bytes() == before
    assert "8 verdicts wanted, 8 of them cached, 0 calls to make" in capfd.readouterr().out
    no_key(tmp_path, output.out, output.err)


def test_a_reply_that_repeats_the_key_is_kept_without_it(server: Server, tmp_path: Path) -> None:
    server.script = ["repeats-garbage", *["repeats"] * 50]
    file = generations(tmp_path / "t.jsonl", RESPONSES)
    evaluate(asked(server), generations=file, cache=tmp_path / "cache", out=tmp_path / "m.json")
    kept = [reply for path in (tmp_path / "cache").rglob("*.json") for reply in read(path)["replies"]]
    assert len(kept) == 9 and sum("Asked with Bearer ***." in reply for reply in kept) == 8
    no_key(tmp_path)
    for text in kept:
        assert KEY[:6] not in text


def no_form_of_the_key(text: str) -> None:
    """Eight characters in a row of it in no case, nor of what base64 and others make of it."""
    raw = KEY.encode()
    forms = [KEY, quote(KEY), raw.hex(), *(base64.b64encode(b"x" * i + raw).decode()[2:-3] for i in range(3))]
    for form in (form.lower() for form in forms):
        assert not [form[i : i + 8] for i in range(len(form) - 7) if form[i : i + 8] in text.lower()]


def test_the_key_is_kept_in_no_form(server: Server, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    file = generations(tmp_path / "t.jsonl", RESPONSES)
    server.script = ["forms"] * 50
    evaluate(asked(server), generations=file, cache=tmp_path / "cache", out=tmp_path / "m.json")
    kept = [reply for path in (tmp_path / "cache").rglob("*.json") for reply in read(path)["replies"]]
    assert len(kept) == 8 and all(reply.startswith("4 8\n***") for reply in kept)
    server.script = ["400 forms"]
    with pytest.raises(UserError, match=r"status 400 for the model 'm': .*\*\*\*") as refused:
        evaluate(asked(server), generations=file, cache=tmp_path / "other", out=tmp_path / "m2.json")
    written = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    trace = "".join(traceback.format_exception(refused.value))
    for text in (*written, *capfd.readouterr(), str(refused.value), trace):
        no_form_of_the_key(text)


@pytest.mark.parametrize("key", ["sk-secret-0123456789\n", "sk-secret 0123", "sk-geheimnis-ä"])
def test_a_key_that_no_header_can_carry_is_one_line(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("JUDGE_KEY", key)
    file = generations(tmp_path / "t.jsonl", RESPONSES)
    with pytest.raises(
        UserError, match=r"^judge.key_variable: the key in \$JUDGE_KEY has a space"
    ) as refused:
        evaluate(asked(server), generations=file, cache=tmp_path / "cache", out=tmp_path / "m.json")
    assert (
        server.prompts == [] and "secret" not in str(refused.value) and "geheimnis" not in str(refused.value)
    )


def test_a_key_in_the_address_is_refused(server: Server, tmp_path: Path) -> None:
    file = generations(tmp_path / "t.jsonl", RESPONSES)
    judge = asked(server, base_url=f"{server.url}/{KEY}")
    with pytest.raises(UserError, match=r"^judge.base_url: contains the key in \$JUDGE_KEY; take it out"):
        evaluate(judge, generations=file, cache=tmp_path / "cache", out=tmp_path / "m.json")
    assert server.prompts == []


def test_an_endpoint_without_a_key_may_say_none() -> None:
    endpoint = ChatEndpoint(Judge(kind="openai", model="m", key_variable="")).endpoint
    pytest.importorskip("openai", reason="openai is not installed here")
    endpoint.client()
    assert endpoint.blanked("none") == "none"


def test_a_reply_in_parts(server: Server, tmp_path: Path) -> None:
    server.script = ["parts"] * 50
    file = generations(tmp_path / "t.jsonl", RESPONSES)
    evaluate(asked(server), generations=file, cache=tmp_path / "cache", out=tmp_path / "m.json")
    found = read(tmp_path / "m.json")
    assert (found["n"], found["missing"], len(server.prompts)) == (4, [], 8)
    assert {(*row["response"], *row["reference"]) for row in found["rows"]} == {(4, 8, 8, 4)}


def test_an_endpoint_with_the_other_name_for_the_longest_reply(server: Server, tmp_path: Path) -> None:
    server.script = ["new"] + ["ok"] * 50
    file = generations(tmp_path / "t.jsonl", RESPONSES)
    evaluate(
        asked(server, concurrency=1, retries=0),
        generations=file,
        cache=tmp_path / "cache",
        out=tmp_path / "m.json",
    )
    assert read(tmp_path / "m.json")["mean"] == 50
    # Refused once, then remembered.
    assert [("max_tokens" in body, body.get("max_completion_tokens")) for body in server.bodies] == [
        (True, None),
        *[(False, 512)] * 8,
    ]


@pytest.mark.parametrize("how", ["status", "withheld"])
def test_a_prompt_that_a_filter_refuses_is_a_missing_verdict(
    server: Server, tmp_path: Path, how: str
) -> None:
    """The others are judged, and it is not asked for again, in this run or the next."""
    if how == "status":
        server.unwanted = "pink"
    else:
        server.script = ["ok", "ok", "withheld", "withheld"]
    file = generations(tmp_path / "t.jsonl", RESPONSES)
    for _ in range(2):
        evaluate(
            asked(server, concurrency=1), generations=file, cache=tmp_path / "cache", out=tmp_path / "m.json"
        )
        found = read(tmp_path / "m.json")
        assert (found["n"], found["mean"], len(server.prompts)) == (3, 50, 8)
        assert [(entry["id"], entry["order"]) for entry in found["missing"]] == [
            (1, "response_first"),
            (1, "reference_first"),
        ]


def test_another_fine_tuning_is_another_judge(tmp_path: Path) -> None:
    """Weights of the same size: what was judged by the one must not be taken for the other's."""
    for name, weights in (("a", b"0000"), ("b", b"0001"), ("c", b"0000")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(weights)
    found = [_fingerprint(tmp_path / name) for name in "abc"]
    assert found[0] == found[2] != found[1]


def test_an_interrupted_run_goes_on_where_it_was(server: Server, tmp_path: Path) -> None:
    server.script = ["ok", "words", "ok", *["500"] * 2]
    file = generations(tmp_path / "t.jsonl", RESPONSES)
    one_by_one = asked(server, concurrency=1, retries=1)
    with pytest.raises(
        UserError,
        match=r"^http://.*/v1: no answer after 2 calls \(last: status 500\); verdicts so far are kept",
    ):
        evaluate(one_by_one, generations=file, cache=tmp_path / "cache", out=tmp_path / "m.json")
    assert not (tmp_path / "m.json").exists() and len(server.paid) == 3
    evaluate(one_by_one, generations=file, cache=tmp_path / "cache", out=tmp_path / "m.json")
    assert read(tmp_path / "m.json")["mean"] == 50
    paid = {prompt: server.paid.count(prompt) for prompt in server.paid}
    assert sorted(paid.values()) == [1] * 7 + [2]  # twice only where the first reply held no scores
    evaluate(
        asked(server, temperature=0.0), generations=file, cache=tmp_path / "cache", out=tmp_path / "m.json"
    )
    assert len(server.paid) == 9 + 8  # another temperature is another judge


def test_a_killed_run_pays_for_nothing_twice(server: Server, tmp_path: Path) -> None:
    server.script = ["ok", "ok", *["hang"] * 50]
    file, config = generations(tmp_path / "t.jsonl", RESPONSES), tmp_path / "c.json"
    config.write_text(json.dumps(dataclasses.asdict(asked(server, concurrency=1, retries=50))))
    paths = ["--generations", file, "--cache", tmp_path / "cache", "--out", tmp_path / "m.json"]
    command = [sys.executable, "-m", "minillm", "judge", "--config", config, *paths]
    with (
        open(tmp_path / "log", "w") as log,
        subprocess.Popen([*map(str, command)], stdout=log, stderr=log) as process,
    ):
        for _ in range(1200):
            if len(server.prompts) >= 3 or process.poll() is not None:
                break
            time.sleep(0.05)
        process.kill()
    assert len(server.paid) == 2, (tmp_path / "log").read_text()
    server.script = []
    evaluate(asked(server), generations=file, cache=tmp_path / "cache", out=tmp_path / "m.json")
    assert len(server.paid) == len(set(server.paid)) == 8 and read(tmp_path / "m.json")["mean"] == 50
    no_key(tmp_path)


def test_replies_without_scores_are_missing_and_stay_so(server: Server, tmp_path: Path) -> None:
    server.script = ["words", *["ok"] * 7, "words"]
    file = generations(tmp_path / "t.jsonl", RESPONSES)
    for _ in range(2):
        evaluate(
            asked(server, concurrency=1, rereads=1),
            generations=file,
            cache=tmp_path / "cache",
            out=tmp_path / "m.json",
        )
        found = read(tmp_path / "m.json")
        assert found["n"] == 3 and len(found["missing"]) == 1 and found["mean"] == 50
        assert len(server.prompts) == 9 and server.prompts[8] == server.prompts[0]


def test_a_run_all_of_whose_verdicts_are_unreadable_fails(server: Server, tmp_path: Path) -> None:
    server.script = ["garbage"] * 100
    with pytest.raises(UserError, match="no row has two readable verdicts of the judge"):
        evaluate(
            asked(server, rereads=0),
            generations=generations(tmp_path / "t.jsonl", RESPONSES),
            cache=tmp_path / "cache",
            out=tmp_path / "m.json",
        )
    assert len(server.prompts) == 8


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("401", r"http://.*: status 401: the key in \$JUDGE_KEY was refused; check it"),
        (
            "404",
            r"http://.*: status 404 for the model 'm': .*no: Bearer \*\*\*.*; "
            r"check judge.model and judge.base_url",
        ),
        ("echo", r"http://.*: status 400 for the model 'm': .*Bearer \*\*\*.*"),
    ],
)
def test_what_a_retry_cannot_mend_is_one_line_without_the_key(
    server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str], what: str, said: str
) -> None:
    server.script = [what] * 8
    config = tmp_path / "c.json"
    judge = {
        "kind": "openai",
        "model": "m",
        "base_url": server.url,
        "key_variable": "JUDGE_KEY",
        "tests": ["t"],
        "concurrency": 1,
    }
    config.write_text(json.dumps({"stage": "judge", "judge": judge, "precision": "fp32"}))
    file = generations(tmp_path / "t.jsonl", RESPONSES)
    arguments = [
        "--config",
        config,
        "--generations",
        file,
        "--cache",
        tmp_path / "cache",
        "--out",
        tmp_path / "m.json",
    ]
    assert main(["judge", *map(str, arguments)]) == 2
    output = capfd.readouterr()
    line = next(line for line in output.err.splitlines() if "error" in line)
    assert re.fullmatch(f"minillm judge: error: {said}", line)
    assert len(server.prompts) == 1
    no_key(tmp_path, output.out, output.err)


def test_without_a_key_nothing_is_asked(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JUDGE_KEY")
    file = generations(tmp_path / "t.jsonl", RESPONSES)
    with pytest.raises(UserError, match=r"^judge.key_variable: \$JUDGE_KEY is not set; export the key there"):
        evaluate(asked(server), generations=file, cache=tmp_path / "cache", out=tmp_path / "m.json")
    assert server.prompts == []


def test_waits_grow_and_follow_the_endpoint() -> None:
    endpoint = ChatEndpoint(Judge(kind="openai", model="m", backoff=1.0)).endpoint
    waits = [endpoint.wait(attempt, None) for attempt in range(9)]
    assert all(0.75 * 2**i <= wait <= 1.25 * 2**i for i, wait in enumerate(waits[:5])) and waits[8] == 60
    assert endpoint.wait(0, "30") == 30 and endpoint.wait(0, "9999") == 60
    assert endpoint.wait(0, "Wed, 21 Oct 2026 07:28:00 GMT") < 2


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda v: "{", "a damaged verdict; remove it"),
        (lambda v: "[" * 10_000, "nesting too deep; a damaged verdict; remove it"),
        (lambda v: {**v, "replies": "8 7"}, "'replies' is missing or of the wrong type; a damaged verdict"),
        (lambda v: {**v, "replies": [8]}, "a reply that is not a text; a damaged verdict"),
        (lambda v: {**v, "scores": [99, 7]}, r"scores \[99, 7\] are not those of its reply; remove it"),
        (lambda v: {**v, "scores": v["scores"][::-1]}, "are not those of its reply; remove it"),
        (lambda v: {**v, "scores": [[1], 7]}, "are not those of its reply; remove it"),
        (lambda v: {**v, "replies": []}, "are not those of its reply; remove it"),
        (lambda v: {**v, "prompt": v["prompt"] + "?"}, "a verdict on another question or by another judge"),
        (lambda v: {**v, "key": "0" * 64}, "a verdict on another question or by another judge"),
        (lambda v: {**v, "judge": {"kind": "openai"}}, "a verdict on another question or by another judge"),
    ],
)
def test_a_verdict_that_is_not_the_judges_is_named(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], problem: str
) -> None:
    file = generations(tmp_path / "t.jsonl", ["red"])
    paths = {"generations": file, "cache": tmp_path / "cache", "out": tmp_path / "m.json"}
    evaluate(settings(kind="stand-in"), **paths)
    before = (tmp_path / "m.json").read_bytes()
    verdict = next((tmp_path / "cache").rglob("*.json"))
    changed = change(read(verdict))
    verdict.write_text(changed if isinstance(changed, str) else json.dumps(changed))
    with pytest.raises(UserError, match=f"^{re.escape(str(verdict))}: .*{problem}") as refused:
        evaluate(settings(kind="stand-in"), **paths)
    assert "\n" not in str(refused.value)
    verdict.unlink()
    evaluate(settings(kind="stand-in"), **paths)
    assert (tmp_path / "m.json").read_bytes() == before


def test_scores_that_are_understood_now_are_not_paid_for_again(server: Server, tmp_path: Path) -> None:
    """A verdict kept as missing by a version that did not read "8/10 4/10"."""
    file = generations(tmp_path / "t.jsonl", RESPONSES)
    paths = {"generations": file, "cache": tmp_path / "cache", "out": tmp_path / "m.json"}
    evaluate(asked(server), **paths)
    before = (tmp_path / "m.json").read_bytes()
    for path in (tmp_path / "cache").rglob("*.json"):
        verdict = read(path)
        a, b = verdict["scores"]
        path.write_text(json.dumps({**verdict, "scores": None, "replies": [f"{a:g}/10 {b:g}/10"] * 3}))
    evaluate(asked(server), **paths)
    assert (tmp_path / "m.json").read_bytes() == before and len(server.prompts) == 8


def test_a_local_model_judges_alike_in_any_batch(tmp_path: Path) -> None:
    """A random model's replies hold no scores.

    What counts is that they are asked for, kept, and do not depend on the batch.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    from minillm.data.tokenizers import train_tokenizer
    from minillm.evaluation.judges import JudgePrompt, make_judge
    from minillm.models.loading import save_model

    tokenizer = train_tokenizer(["8 7 both answers are good", REQUEST], 300)
    end = tokenizer.eos_token_id
    shape = GPT2Config(
        n_embd=16,
        n_layer=1,
        n_head=2,
        n_positions=64,
        vocab_size=len(tokenizer),
        bos_token_id=end,
        eos_token_id=end,
    )
    save_model(GPT2LMHeadModel(shape), tokenizer, tmp_path / "judge")
    asked = [JudgePrompt(f"{i:064x}", f"is {'it ' * i}good", "", "", ()) for i in range(3)]
    replies = []
    for concurrency in (1, 3):
        judge = make_judge(
            Judge(kind="transformers", model=str(tmp_path / "judge"), max_tokens=6, concurrency=concurrency),
            "fp32",
        )
        replies.append({q.key: reply for q, reply in judge.replies(asked)})
        assert judge.identity["kind"] == "transformers" and len(judge.identity["content"]) == 64
    assert replies[0] == replies[1] and len(replies[0]) == 3
