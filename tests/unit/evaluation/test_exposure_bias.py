"""ExAccErr: exact on Markov models by enumeration, close by sampling.

Nothing depends on padding, and equal models have none.
"""

import json
from itertools import product

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, make

from minillm.config.launch import Launch
from minillm.config.measurements.exposure_bias import ExposureBiasSettings, SamplesSettings
from minillm.config.sections import Sampling
from minillm.errors import UserError
from minillm.evaluation.accumulated_error import band, bootstrap, curve, last_length, mean_kl, totals
from minillm.evaluation.exposure_bias import measure, run_stage, score, token_kl
from minillm.evaluation.teacher_samples import Sampled, draw_samples, read_samples
from minillm.evaluation.teacher_samples import run_stage as run_samples
from minillm.objectives import kl
from minillm.runtime import provenance
from minillm.runtime.processes import World

VOCABULARY, EOS, HORIZON = 4, 0, 5
WORLD = World(0, 1, torch.device("cpu"))
PROMPTS = {7: np.array([3, 2, 1], dtype=np.int32), 9: np.array([2], dtype=np.int32)}
HOW = {"vocabulary": VOCABULARY, "pad": EOS, "batch": 16}


def markov(seed, sharpness=1.0):
    """A real model whose next token depends on the last one alone: attention adds nothing."""
    model = make("llama", seed, layers=1)
    torch.nn.init.zeros_(model.model.layers[0].self_attn.o_proj.weight)
    with torch.no_grad():
        model.lm_head.weight.mul_(sharpness)
    return model


def table(model):
    """Log-probabilities of the next token (column) after each token (row), (vocabulary, vocabulary)."""
    with torch.no_grad():
        return (
            model(input_ids=torch.arange(VOCABULARY).unsqueeze(1))
            .logits[:, 0, :VOCABULARY]
            .log_softmax(-1)
            .double()
        )


def exact(sampler, student, teacher, prompt):
    """(mean KL at each position over what is alive, share alive), by the forward recursion over states."""
    p, q = table(teacher), table(student)
    divergence, step = kl(p, q).numpy(), table(sampler).exp().numpy()
    state = np.eye(VOCABULARY)[prompt[-1]]
    means, alive = [], []
    for _ in range(HORIZON):
        alive.append(state.sum())
        means.append((state @ divergence) / state.sum())
        state = state @ step
        state[EOS] = 0.0
    return np.array(means), np.array(alive)


def everything(model, prompt):
    """All responses of a prompt up to the horizon, with their probabilities."""
    log_p = table(model).numpy()
    found = []
    for length in range(1, HORIZON + 1):
        for tokens in product(range(VOCABULARY), repeat=length):
            if EOS in tokens[:-1] or (tokens[-1] != EOS and length < HORIZON):
                continue
            before = (prompt[-1], *tokens[:-1])
            weight = np.exp(sum(log_p[a, b] for a, b in zip(before, tokens, strict=True)))
            found.append((np.array(tokens, dtype=np.int32), weight))
    return found


def enumerated(sampler, student, teacher):
    """Totals of all responses, scored by the code and weighted by their probabilities."""
    responses = {id_: everything(sampler, prompt) for id_, prompt in PROMPTS.items()}
    assert all(sum(w for _, w in found) == pytest.approx(1.0) for found in responses.values())
    examples = [(PROMPTS[id_], tokens) for id_, found in responses.items() for tokens, _ in found]
    values = token_kl(student, teacher, examples, **HOW)
    count = len(responses[7])
    return totals(
        [values[:count], values[count:]], HORIZON, [[w for _, w in found] for found in responses.values()]
    )


@pytest.fixture(scope="module")
def pair():
    return markov(1, 0.6), markov(2, 0.6)


def test_enumeration_equals_the_recursion(pair):
    student, teacher = pair
    found = [enumerated(model, student, teacher) for model in pair]
    exactly = [[exact(model, student, teacher, prompt) for prompt in PROMPTS.values()] for model in pair]
    expected = {"alive": [], "zero": []}
    for kind, rows in zip(found, exactly, strict=True):
        for i, (means, alive) in enumerate(rows):
            assert kind.alive[i] == pytest.approx(alive, rel=1e-6)
            assert kind.kl[i] == pytest.approx(means * alive, rel=1e-5)
        sums = sum(means * alive for means, alive in rows)
        expected["alive"].append(np.cumsum(sums / sum(alive for _, alive in rows)))
        expected["zero"].append(np.cumsum(sums / len(rows)))
    for finished, (r, base) in expected.items():
        values = curve(*found, np.ones(2), finished=finished, semantics="paper")
        assert values.r == pytest.approx(r, rel=1e-5)
        assert values.epsilon == pytest.approx(base / np.arange(1, HORIZON + 1), rel=1e-5)
        assert values.error == pytest.approx((r - base) / base * 100, rel=1e-4, abs=1e-4)
        assert values.error[0] == pytest.approx(0.0, abs=1e-4), "the first prefix is the prompt alone"


def test_zero_adds_up_to_the_divergence_of_whole_responses(pair):
    """On the teacher's prefixes the chain rule holds.

    At the horizon, l eps(l) is KL of the distributions of responses.
    """
    student, teacher = pair
    found = enumerated(teacher, student, teacher)
    base = mean_kl(found, np.ones(2), finished="zero", semantics="paper").sum()
    whole = 0.0
    for prompt in PROMPTS.values():
        ps, qs = (np.array([w for _, w in everything(model, prompt)]) for model in (teacher, student))
        whole += (ps * np.log(ps / qs)).sum() / len(PROMPTS)
    assert base == pytest.approx(whole, rel=1e-5)


def settings(responses=4, seed=3, **sampling):
    drawn = Sampling(max_tokens=HORIZON, **sampling)
    return SamplesSettings("samples", 0, responses, seed, "fp32", drawn)


def bias(drawn, **changes):
    values = {"finished": "alive", "semantics": "paper", "resamples": 200, "level": 0.95} | changes
    return ExposureBiasSettings("exposure_bias", drawn, **values)


class Tokenizer:
    eos_token_id = pad_token_id = EOS

    def get_vocab(self):
        return {str(i): i for i in range(VOCABULARY)}

    def decode(self, tokens, **_):
        return " ".join(map(str, tokens))


def test_sampling_agrees_with_the_exact_values(pair, tmp_path):
    student, teacher = pair
    many = {id_: PROMPTS[7 + 2 * (id_ % 2)] for id_ in range(500)}
    found = []
    for i, model in enumerate(pair):
        drawn, launch = settings(responses=4), Launch(eval_batch=500)
        samples = draw_samples(model, Tokenizer(), many, drawn, launch, WORLD, tmp_path / str(i))
        assert [entry.id for entry in samples] == list(range(500))
        found.append(score(student, teacher, samples, HORIZON, WORLD, **(HOW | {"batch": 1000})))
    exactly = [enumerated(model, student, teacher) for model in pair]
    for kind, true in zip(found, exactly, strict=True):
        for i in range(2):
            assert kind.alive[i::2].mean(0) / 4 == pytest.approx(true.alive[i], abs=4 * 0.5 / 1000**0.5)
    for finished in ("alive", "zero"):
        how = {"finished": finished, "semantics": "paper"}
        ours, true = curve(*found, np.ones(500), **how), curve(*exactly, np.ones(2), **how)
        low, high = band(bootstrap(*found, 200, 1, **how), 0.9999)
        assert ours.r == pytest.approx(true.r, rel=0.08)
        assert ours.epsilon == pytest.approx(true.epsilon, rel=0.08)
        assert (low[1:] < true.error[1:]).all() and (true.error[1:] < high[1:]).all()
        assert (high[1:] - low[1:] < 40).all(), "percentage points"


def test_a_student_that_is_its_teacher_has_no_error(pair):
    examples = [(PROMPTS[9], tokens) for tokens, _ in everything(pair[1], PROMPTS[9])][:60]
    found = totals([token_kl(pair[0], pair[0], examples[i::2], **HOW) for i in range(2)], HORIZON)
    values = measure(bias(settings()), found, found)
    json.dumps(values, allow_nan=False)
    assert values["epsilon"] == [0.0] * HORIZON and values["R"] == [0.0] * HORIZON
    for key in ("ex_acc_err", "low", "high"):
        assert values[key] == [None] * HORIZON, key
    assert values["mean"] is None and values["standard_error"] is None


def test_released_semantics_by_hand():
    """Two prompts, two responses each (D23).

    Means of a prompt come first, the first position is left out, and it is 0 where nothing is left.
    """
    student = totals([[[9, 1, 2], [9, 3]], [[9, 4], [9]]], 3)
    teacher = totals([[[9, 1, 1], [9, 1, 1]], [[9, 2, 2], [9, 2, 2]]], 3)
    found = curve(student, teacher, np.ones(2), finished="alive", semantics="released")
    assert found.r == pytest.approx([(2 + 4) / 2, (2 + 4) / 2 + 2 / 2], rel=1e-3)
    assert found.epsilon == pytest.approx([1.5, 1.5], rel=1e-3)
    assert found.error == pytest.approx([100.0, 100 / 3], rel=4e-3)
    values = measure(bias(settings(responses=2), semantics="released"), student, teacher)
    assert values["lengths"] == [1, 2] and values["alive"]["student"] == [3, 1]


def test_alive_and_zero_by_hand():
    student = totals([[[1, 3, 5], [1]]], 3)
    alive, zero = (
        mean_kl(student, np.ones(1), finished=name, semantics="paper") for name in ("alive", "zero")
    )
    assert alive == pytest.approx([1, 3, 5]) and zero == pytest.approx([1, 1.5, 2.5])
    assert last_length(student, student, 2, semantics="paper") == 1
    assert last_length(student, student, 1, semantics="paper") == 3


def test_draws_of_two_students_are_of_the_same_prompts():
    """The second student's KL is the first's and the teacher's together.

    So its error is 100 points above the first's in every draw.
    """
    rng = np.random.default_rng(4)
    kl_of = {name: rng.gamma(2.0, 1.0, (30, 1, 5)) for name in ("first", "teacher")}
    kl_of["second"] = kl_of["first"] + kl_of["teacher"]
    found = {name: totals(values, 5) for name, values in kl_of.items()}
    first, second = (
        measure(bias(settings(responses=1)), found[name], found["teacher"]) for name in ("first", "second")
    )
    assert set(first["draws"]) == {"1", "2", "3", "4", "5"}
    for at, draws in first["draws"].items():
        assert len(draws) == first["resamples"] and np.std(draws) > 3
        assert np.array(second["draws"][at]) - np.array(draws) == pytest.approx(100, abs=2e-3)
    assert first["standard_error"] == pytest.approx(np.std(first["draws"]["5"], ddof=1), abs=1e-2)


def test_the_curve_ends_where_no_response_is_left():
    student, teacher = totals([[[1.0, 2.0]], [[1.0]]], 4), totals([[[1.0, 1.0, 1.0]], [[1.0]]], 4)
    values = measure(bias(settings(responses=1)), student, teacher)
    assert values["lengths"] == [1, 2] and values["ex_acc_err"] == pytest.approx([0, 50])
    assert values["mean"] == pytest.approx(50) and values["mean_at"] == 2


def test_the_band_is_of_prompts_and_covers(pair):
    """Both kinds of prefixes of a prompt are drawn together, so that what they share leaves no spread."""
    rng = np.random.default_rng(0)
    level = rng.gamma(1.0, size=200)
    same = totals([[[x, x]] for x in level], 2)
    double = totals([[[x, 2 * x]] for x in level], 2)
    draws = bootstrap(double, same, 300, 5, finished="alive", semantics="paper")
    assert draws[:, 1] == pytest.approx(np.full(300, 50.0))
    noisy = totals([[[x, 2 * x + e]] for x, e in zip(level, rng.normal(size=200), strict=True)], 2)
    draws = bootstrap(noisy, same, 300, 5, finished="alive", semantics="paper")
    low, high = band(draws, 0.95)
    assert low[1] < 50 < high[1] and high[1] - low[1] == pytest.approx(4 * 0.5 / 200**0.5 * 100, rel=0.3)
    again = bootstrap(noisy, same, 300, 5, finished="alive", semantics="paper")
    assert np.array_equal(draws, again)


@pytest.mark.parametrize("kind", FAMILIES)
def test_scoring_does_not_depend_on_padding_batch_or_order(kind):
    student, teacher = make(kind, 1), make(kind, 2)
    rng = np.random.default_rng(1)
    examples = [
        (rng.integers(1, 11, 1 + i).astype(np.int32), rng.integers(0, 11, 9 - i).astype(np.int32))
        for i in (0, 3, 8, 5)
    ]
    alone = [token_kl(student, teacher, [e], vocabulary=11, pad=0, batch=1)[0] for e in examples]
    together = token_kl(student, teacher, examples, vocabulary=11, pad=0, batch=4)
    other = token_kl(student, teacher, examples[::-1], vocabulary=11, pad=5, batch=3)[::-1]
    for (_, response), a, b, c in zip(examples, alone, together, other, strict=True):
        assert a.shape == response.shape
        assert a == pytest.approx(b, abs=1e-5) and a == pytest.approx(c, abs=1e-5)
    prompt, response = examples[1]
    with torch.no_grad():
        ids = torch.tensor([[*prompt, *response]])
        logs = [
            m(input_ids=ids).logits[0, len(prompt) - 1 : -1, :11].log_softmax(-1) for m in (student, teacher)
        ]
    assert alone[1] == pytest.approx(kl(logs[1], logs[0]).numpy(), abs=1e-5)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Models as stages leave them, and a test set."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from minillm.data.tokenizers import train_tokenizer
    from minillm.models.loading import save_model

    folder = tmp_path_factory.mktemp("made")
    tokenizer = train_tokenizer(["a few words of text, over and over"] * 5, 280)
    end = tokenizer.eos_token_id
    for seed, name in enumerate(("student", "teacher")):
        torch.manual_seed(seed)
        shape = GPT2Config(
            n_embd=16,
            n_layer=1,
            n_head=2,
            n_positions=64,
            vocab_size=len(tokenizer) + 3,
            initializer_range=0.4,
            bos_token_id=end,
            eos_token_id=end,
        )
        (folder / name).mkdir()
        save_model(GPT2LMHeadModel(shape), tokenizer, folder / name)
        provenance.write(folder / name, {}, {}, {})
    rows = [
        {
            "id": i,
            "dataset": "t",
            "prompt": text,
            "prompt_tokens": tokenizer.encode(text),
            "references": ["a"],
        }
        for i, text in ((2, "words"), (5, "a few"), (8, "text and text"))
    ]
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_the_two_stages_from_files_to_a_metric(made, tmp_path):
    drawn = settings(responses=3)
    samples, out = tmp_path / "samples.jsonl", tmp_path / "m" / "t.json"
    run_samples(drawn, Launch(eval_batch=4), test=made / "t.jsonl", model=made / "teacher", out=samples)
    meta, found = read_samples(samples, drawn)
    assert meta["dataset"] == "t" and [entry.id for entry in found] == [2, 5, 8]
    assert isinstance(found[0], Sampled) and all(len(entry.responses) == 3 for entry in found)
    assert len({tuple(r.tolist()) for entry in found for r in entry.responses}) > 6, (
        "every response has its own numbers"
    )
    paths = {"samples": samples, "model": made / "student", "teacher": made / "teacher"}
    run_stage(bias(drawn), Launch(micro_batch=2), **paths, out=out)
    metric = json.loads(out.read_text())
    assert metric["metric"] == "exposure_bias" and metric["dataset"] == "t" and metric["n"] == 3
    assert metric["lengths"] == list(range(1, len(metric["ex_acc_err"]) + 1)) and metric["ids"] == [2, 5, 8]
    assert metric["ex_acc_err"][0] == pytest.approx(0.0, abs=1e-3), (
        "the first prefix is the prompt, the same for both"
    )
    assert metric["alive"]["student"][0] == metric["alive"]["teacher"][0] == 9
    assert metric["sources"] == [str(path) for path in paths.values()]
    assert (
        sorted(p.name for p in out.parent.iterdir()) == ["t.json"] and len(list(tmp_path.iterdir())) == 3
    ), "no journal stays"
    before = out.read_bytes()
    run_stage(bias(drawn), Launch(micro_batch=8, eval_batch=2), **paths, out=out)
    again, first = json.loads(out.read_text()), json.loads(before)
    assert again["ex_acc_err"] == pytest.approx(first["ex_acc_err"], abs=1e-3), (
        "launch values change nothing but rounding"
    )


def test_a_seeded_subset_of_prompts(made, tmp_path):
    drawn = SamplesSettings("samples", 2, 1, 4, "fp32", Sampling(max_tokens=2))
    run_samples(drawn, Launch(), test=made / "t.jsonl", model=made / "teacher", out=tmp_path / "s.jsonl")
    assert len(read_samples(tmp_path / "s.jsonl", drawn)[1]) == 2


def test_samples_of_others_are_refused(made, tmp_path):
    drawn, samples = settings(responses=1), tmp_path / "s.jsonl"
    run_samples(drawn, Launch(), test=made / "t.jsonl", model=made / "student", out=samples)
    paths = {
        "samples": samples,
        "model": made / "student",
        "teacher": made / "teacher",
        "out": tmp_path / "m.json",
    }
    with pytest.raises(
        UserError, match="s.jsonl: not drawn from the weights in .*teacher; draw the samples again"
    ):
        run_stage(bias(drawn), Launch(), **paths)
    with pytest.raises(
        UserError, match="s.jsonl: drawn with other settings .*; remove it and draw the samples again"
    ):
        run_stage(bias(settings(responses=1, seed=9)), Launch(), **paths)
    samples.write_text(samples.read_text()[:-20] + "\n")
    with pytest.raises(UserError, match=r"s.jsonl:3: not JSON .*; remove it"):
        run_stage(bias(drawn), Launch(), **paths)
    with pytest.raises(UserError, match="gone.meta.json: no such file; run the samples stage first"):
        read_samples(tmp_path / "gone.jsonl", drawn)
