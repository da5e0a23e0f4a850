"""Lengths, diversity and the loss on references, against numbers worked out by hand or computed directly."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, make

from minillm.config.measurements.diversity import DiversitySettings, ReferenceLossSettings
from minillm.config.measurements.lengths import LengthsSettings
from minillm.counts import distinct, repetition, token_counter
from minillm.errors import UserError
from minillm.evaluation import diversity, lengths, reference_loss, rouge
from minillm.files import write_json

WORDS = {"a": 3, "b": 4, "c": 5, "d": 6}


@pytest.fixture
def data(tmp_path):
    """A data folder whose tokenizer makes one token of a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"?": 0, **WORDS}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    (tmp_path / "data" / "tokenizer").mkdir(parents=True)
    tokenizer.save(str(tmp_path / "data" / "tokenizer" / "tokenizer.json"))
    return tmp_path / "data"


# id -> references, response of seed 10, of seed 20
ROWS = {
    1: (["a", "a b c d"], "a", "a b"),
    2: (["a b"], "a b", "c"),
    3: (["a b c"], "a b c", "a b c"),
    4: (["a b c d"], "d", "a b c d"),
}


def generations(folder):
    path = folder / "t.jsonl"
    lines = []
    for place, seed in enumerate((10, 20), 1):
        for id_, row in ROWS.items():
            tokens = [WORDS[word] for word in row[place].split()]
            finished = id_ != 3
            lines.append(
                {"id": id_, "dataset": "t", "references": row[0], "response": row[place], "seed": seed,
                 "response_tokens": [*tokens, 0] if finished else tokens, "finished": finished}
            )  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    path.with_suffix(".meta.json").write_text(
        json.dumps({"dataset": "t", "rows": 4, "seeds": [10, 20], "sampling": {}})
    )
    return path


# --- lengths
def test_buckets():
    assert lengths.buckets((5, 10)) == [(0, 5), (6, 10), (11, None)]
    assert lengths.buckets((2,)) == [(0, 2), (3, None)]


def test_lengths_by_hand(data, tmp_path):
    path, metric, out = generations(tmp_path), tmp_path / "rouge.json", tmp_path / "out.json"
    rouge.run_stage(generations=path, out=metric)
    lengths.run_stage(
        LengthsSettings("lengths", (2, 3, 9)), metric=metric, generations=path, data=data, out=out
    )
    found = json.loads(out.read_text())
    scores = json.loads(metric.read_text())["scores"]
    assert found["reference_tokens"] == [1, 2, 3, 4], "of the first reference"
    assert found["response_tokens"] == [1.5, 1.5, 3.0, 2.5], "without the EOS, mean of two seeds"
    short, middle, long, none = found["buckets"]
    means = [(scores["10"][i] + scores["20"][i]) / 2 for i in range(4)]
    assert found["scores"] == pytest.approx(means) and found["mean"] == pytest.approx(np.mean(means))
    assert (short["low"], short["high"], short["n"]) == (0, 2, 2)
    assert short["mean"] == pytest.approx(np.mean(means[:2]))
    assert short["standard_error"] == pytest.approx(np.std(means[:2], ddof=1) / 2**0.5)
    assert short["per_seed"] == {
        "10": pytest.approx(np.mean(scores["10"][:2])),
        "20": pytest.approx(np.mean(scores["20"][:2])),
    }
    assert short["length_drift"] == pytest.approx(1.5 / 1.5)
    assert (middle["n"], middle["mean"], middle["standard_error"], middle["length_drift"]) == (
        1,
        100.0,
        None,
        1.0,
    )
    assert (long["low"], long["high"], long["n"]) == (4, 9, 1) and long["length_drift"] == pytest.approx(
        2.5 / 4
    )
    assert (none["low"], none["high"], none["n"], none["mean"]) == (10, None, 0, None)
    assert found["sources"] == [str(metric), str(path), str(data)]


def test_scores_of_other_rows_are_refused(data, tmp_path):
    path, metric = generations(tmp_path), tmp_path / "rouge.json"
    rouge.run_stage(generations=path, out=metric)
    whole = json.loads(metric.read_text())
    settings, rest = (
        LengthsSettings("lengths", (5,)),
        {"generations": path, "data": data, "out": tmp_path / "o.json"},
    )
    for change, said in (
        ({"ids": [1, 2, 3, 5]}, "its rows or seeds are not those of"),
        (
            {
                "scores": {"10": whole["scores"]["10"]},
                "per_seed": {"10": whole["per_seed"]["10"]},
                "mean": whole["per_seed"]["10"],
            },
            "its rows or seeds are not those of",
        ),
        ({"ids": [1]}, "not one score per row"),
        ({"scores": None}, "'scores' is missing or of the wrong type"),
        ({"per_seed": whole["per_seed"] | {"10": 1.0}}, "damaged: .*per_seed of 10 is 1.0"),
        ({"mean": 1.0}, "damaged: .*mean is 1.0, but"),
    ):
        write_json(metric, whole | change)
        with pytest.raises(UserError, match=f"rouge.json: {said}.*score again"):
            lengths.run_stage(settings, metric=metric, **rest)
    metric.write_text(json.dumps(whole | {"mean": 1.0}))
    with pytest.raises(UserError, match="rouge.json: changed since it was written"):
        lengths.run_stage(settings, metric=metric, **rest)
    with pytest.raises(UserError, match="tokenizer.json is missing"):
        token_counter(tmp_path)


# --- diversity
def test_distinct_by_hand():
    assert distinct([[1, 2, 1, 2], [2, 1]], 2) == (2, 4), "12 21 12, and 21"
    assert distinct([[1, 2, 3], [4, 5]], 3) == (1, 1), "none across a border, none from two tokens"
    assert distinct([["a"], []], 4) == (0, 0)
    assert repetition([1, 1, 1, 1], 2) == pytest.approx(2 / 3)
    assert repetition(np.array([1, 2, 3, 1, 2]), 2) == pytest.approx(1 / 4)
    assert repetition([1], 2) == 0.0


def test_diversity_by_hand(tmp_path):
    path, out = generations(tmp_path), tmp_path / "d.json"
    for unit in ("tokens", "words"):
        diversity.run_stage(DiversitySettings("diversity", 2, unit), generations=path, out=out)
        found = json.loads(out.read_text())
        ten, twenty = found["per_seed"]["10"], found["per_seed"]["20"]
        # Seed 10: a | a b | a b c | d gives ab, ab, bc.
        # Seed 20: a b | c | a b c | a b c d gives ab, ab, bc, ab, bc, cd.
        assert (ten["distinct"], ten["total"], ten["dist"]) == (2, 3, pytest.approx(200 / 3))
        assert (twenty["distinct"], twenty["total"], twenty["dist"]) == (3, 6, pytest.approx(50))
        assert found["mean"] == pytest.approx((200 / 3 + 50) / 2)
        assert found["standard_error"] == pytest.approx(np.std([200 / 3, 50], ddof=1) / 2**0.5)
        assert (
            ten["response_tokens"] == pytest.approx(7 / 4)
            and ten["finished"] == 0.75
            and ten["repetition"] == 0.0
        )
        assert found["means"]["total"] == 4.5 and found["unit"] == unit
    diversity.run_stage(DiversitySettings("diversity", 5, "tokens"), generations=path, out=out)
    found = json.loads(out.read_text())
    assert found["mean"] is None and found["per_seed"]["10"] == {
        **found["per_seed"]["10"],
        "total": 0,
        "dist": None,
    }


def test_generations_without_tokens_are_refused(tmp_path):
    path = generations(tmp_path)
    path.write_text(path.read_text().replace('"response_tokens"', '"other"'))
    with pytest.raises(
        UserError, match="t.jsonl: seed 10, id 1: 'response_tokens' or 'finished' is missing or of the wrong"
    ):
        diversity.run_stage(
            DiversitySettings("diversity", 2, "tokens"), generations=path, out=tmp_path / "d.json"
        )


# --- loss on references
@pytest.mark.parametrize("kind", FAMILIES)
def test_reference_loss_against_a_direct_computation(kind):
    model, rng = make(kind, 3), np.random.default_rng(2)
    examples = [
        (rng.integers(0, 11, n).astype(np.int32), rng.integers(0, 11, m).astype(np.int32))
        for n, m in ((1, 5), (6, 1), (3, 3))
    ]
    expected = []
    for prompt, reference in examples:
        ids = torch.tensor([[*prompt, *reference]]).long()
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1, :11]
        expected.append(
            torch.nn.functional.cross_entropy(logits, ids[0, len(prompt) :], reduction="sum").item()
        )
    for batch, pad in ((3, 0), (2, 7), (1, 0)):
        assert reference_loss.losses(model, examples, vocabulary=11, pad=pad, batch=batch) == pytest.approx(
            expected, abs=1e-4
        )


def test_means_and_errors_by_hand():
    mean, error = reference_loss.summary([2.0, 9.0], [1, 3], "tokens")
    assert mean == pytest.approx(11 / 4)
    assert error == pytest.approx(np.sqrt(2 * (0.75**2 + 0.75**2)) / 4)
    mean, error = reference_loss.summary([2.0, 9.0], [1, 3], "released")
    assert mean == pytest.approx(2.5) and error == pytest.approx(np.std([2, 3], ddof=1) / 2**0.5)
    assert reference_loss.summary([2.0], [1], "tokens") == (2.0, None)
    same = reference_loss.summary([1.0, 5.0, 3.0], [2, 2, 2], "tokens")
    assert same[1] == pytest.approx(np.std([0.5, 2.5, 1.5], ddof=1) / 3**0.5), (
        "rows of one length: the usual error"
    )


def test_what_is_a_target():
    """Training's tokens with their EOS.

    As released, a BOS in front is a target, the EOS and its like are not (D21).
    """

    class Letters(SimpleNamespace):
        def encode(self, text, add_special_tokens=True):
            return [1] * add_special_tokens + [{"E": 0}.get(c, ord(c)) for c in text]

    row = {"prompt": "xy", "prompt_tokens": [120, 121], "references": ["abE", "other"]}
    settings = {
        name: ReferenceLossSettings("reference_loss", name, 4, "fp32") for name in ("tokens", "released")
    }
    prompt, reference = reference_loss.examples_of(Letters(eos_token_id=0), row, settings["tokens"])
    assert (prompt.tolist(), reference.tolist()) == ([120, 121], [97, 98, 0])
    prompt, reference = reference_loss.examples_of(Letters(eos_token_id=0), row, settings["released"])
    assert (prompt.tolist(), reference.tolist()) == ([120, 121], [1, 97, 98])
    prompt, reference = reference_loss.examples_of(Letters(eos_token_id=1), row, settings["released"])
    assert reference.tolist() == [97, 98, 0], "where BOS and EOS are one, it is no target either"


def test_the_stage_from_files_to_a_metric(tmp_path):
    from minillm.config.launch import Launch
    from minillm.data.tokenizers import train_tokenizer
    from minillm.models.loading import save_model
    from minillm.runtime import provenance

    tokenizer = train_tokenizer(["a few words of text, over and over"] * 5, 280)
    model = make("gpt2", 1)
    model.resize_token_embeddings(len(tokenizer))
    (tmp_path / "model").mkdir()
    save_model(model, tokenizer, tmp_path / "model")
    provenance.write(tmp_path / "model", {}, {}, {})
    rows = [
        {
            "id": i,
            "dataset": "t",
            "prompt": "words ",
            "prompt_tokens": tokenizer.encode("words "),
            "references": [text, "else"],
        }
        for i, text in ((4, "of text"), (2, ""), (9, "over"))
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = {}
    for name in ("tokens", "released"):
        settings = ReferenceLossSettings("reference_loss", name, 16, "fp32")
        out = tmp_path / f"{name}.json"
        reference_loss.run_stage(
            settings, Launch(micro_batch=2), test=tmp_path / "t.jsonl", model=tmp_path / "model", out=out
        )
        found[name] = json.loads(out.read_text())
    assert found["tokens"]["ids"] == [2, 4, 9] and found["tokens"]["tokens"][0] == 1, "the EOS alone"
    assert found["tokens"]["mean"] == pytest.approx(
        sum(found["tokens"]["nll"]) / sum(found["tokens"]["tokens"])
    )
    tokens = [len(tokenizer.encode(text, add_special_tokens=False)) for text in ("of text", "", "over")]
    for metric in found.values():
        assert metric["reference_tokens"] == pytest.approx(sum(tokens) / 3), (
            "of every row, the EOS not counted"
        )
    assert tokens[0] == token_counter(tmp_path / "model")("of text")
    assert found["released"]["ids"] == [4, 9] and found["released"]["without_reference"] == 1
    ratios = [a / b for a, b in zip(found["released"]["nll"], found["released"]["tokens"], strict=True)]
    assert found["released"]["mean"] == pytest.approx(np.mean(ratios))
