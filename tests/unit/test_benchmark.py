"""The benchmark compares like with like.

Its reference computes the loss and gradient that the package computes on the same samples.
"""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from onpolicy_case import OneProcess
from torch.testing import assert_close

from benchmarks import coins, parts, report, stages, workload
from benchmarks.reference import Reference
from benchmarks.shapes import RESPONSES, Shape, Size, real_lengths
from benchmarks.sides import SIDES, Ours
from benchmarks.workload import EOS, FIRST, PAD, Setting, make_model
from minillm.config import onpolicy
from minillm.config.launch import Launch
from minillm.runtime.processes import World
from minillm.training.rollout_losses import micro_batches

# Prompts of several lengths, responses that end early, and padding beyond both; one micro-batch, over which
# the reference whitens.
TINY = Shape(
    vocabulary=37,
    batch=6,
    micro_batch=6,
    prompt=60,
    response=40,
    text=50,
    real=True,
    student=Size(1, 16),
    teacher=Size(2, 32),
)


class Alone(OneProcess):
    """As much of an Engine as a collection asks for, too."""

    def __init__(self, student):
        super().__init__(student, Launch(micro_batch=2 * TINY.batch))
        self.model = student


@pytest.fixture(scope="module")
def setting():
    return Setting(TINY, "fp32", World(0, 1, torch.device("cpu")))


@pytest.fixture
def ours(setting):
    """Random models are all but equal.

    Their weights are made larger, so that rewards, ratios and divergences are far from 0.
    """
    student, setting.teacher = (
        make_model(size, TINY, seed) for seed, size in enumerate((TINY.student, TINY.teacher))
    )
    for model in (student, setting.teacher):
        model.base_model.wte.weight.data[FIRST:] *= 5
    return Ours(setting, TINY, setting.make(), Alone(student))


def given(reference, made):
    """The samples of the package as the reference keeps them, its second generation left out."""
    prompt, attention = reference.prompts(made.prompts)
    tokens, mask = reference.responses(made.responses, reference.response)
    answers = tokens.masked_fill(mask == 0, -1)
    nothing = torch.zeros((*answers.shape, TINY.vocabulary), dtype=torch.bool)
    return reference.score(prompt, attention, answers, nothing, answers, nothing)


def entropy(model, texts):
    """Mean entropy of the model's distribution, over the positions of the texts that have a next token."""
    with torch.no_grad():
        logs = [
            model(torch.from_numpy(text.astype(np.int64))[None]).logits[0, :-1].log_softmax(-1)
            for text in texts
        ]
    return -(torch.cat(logs).exp() * torch.cat(logs)).sum(-1).mean().item()


def gradient(student, loss):
    student.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in student.named_parameters()}


def test_reference_computes_the_loss_and_gradient_of_the_preset_released(setting, ours):
    student = ours.engine.model
    for model in (
        student,
        setting.teacher,
    ):  # EOS like any other token, where it comes by itself: a forced one is not the model's
        model.base_model.wte.weight.data[EOS] = model.base_model.wte.weight.data[FIRST].flip(0)
    ours.data.stops.clear()
    made = ours.rollout()
    assert len({len(response) for response in made.responses}) > 1, "some must be padded"
    reference = Reference(student, setting.teacher, ours.chosen, TINY.prompt, TINY.response, EOS, PAD)
    samples = given(reference, made)
    width = made.mask.shape[1]
    assert_close(samples.mask[:, :width], made.mask.long())
    assert_close(samples.logprobs[:, :width], made.student_logprobs, atol=1e-4, rtol=1e-4)
    for p in student.parameters():  # samples are of an earlier student, as from the second inner epoch on
        p.data += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))

    [part], loss = micro_batches(ours.engine, ours.task, made, list(range(TINY.batch)))
    mine, numbers = loss(part)
    texts = [ours.data.corpus.chunk(i) for i in range(TINY.batch)]  # all there are
    terms = reference.terms(student, samples, texts)
    assert terms["long_term"].item() == pytest.approx(numbers["long_term"].item(), abs=1e-4)
    assert terms["single_step"].item() == pytest.approx(numbers["single_step"].item(), rel=1e-4)
    # its plain-text term has cross-entropy with the teacher where ours has KL: the teacher's entropy lies
    # between, a constant
    constant = ours.chosen.lm_kd_ratio * entropy(setting.teacher, texts)
    assert terms["plain_text"].item() == pytest.approx(numbers["plain_text"].item() + constant, rel=1e-4)
    a, b = gradient(student, mine), gradient(student, sum(terms.values()))
    largest = max(value.abs().max() for value in a.values())
    for name in a:
        assert_close(
            a[name],
            b[name],
            atol=1e-4 * float(largest),
            rtol=1e-3,
            msg=lambda text, name=name: f"{name}: {text}",
        )


@pytest.mark.parametrize("side", SIDES)
def test_responses_end_where_they_are_planned(setting, ours, side):
    chosen = SIDES[side](setting, TINY, ours.data, ours.engine)
    made = chosen.rollout()
    masks = made.mask if side == "ours" else torch.cat([chunk.mask for chunk in made])
    assert [int(n) for n in masks.sum(1)] == ours_lengths(ours, made, side)
    assert any(n < TINY.response for n in masks.sum(1)) and any(n == TINY.response for n in masks.sum(1))


def ours_lengths(ours, made, side):
    prompts = made.prompts if side == "ours" else [ours.data.rows.prompt(i) for i in range(TINY.batch)]
    return [ours.data.stops.get(len(prompt), TINY.response) for prompt in prompts]


def test_real_lengths():
    prompts, responses = real_lengths(16, (256, 256), 0)
    assert len(set(prompts)) == 16 and max(prompts) <= 256 and min(responses) >= 1 and max(responses) <= 256
    assert (prompts, responses) == real_lengths(16, (256, 256), 0) != real_lengths(16, (256, 256), 1)
    many = [n for seed in range(200) for n in real_lengths(16, (256, 256), seed)[1]]
    assert np.mean(many) == pytest.approx(
        np.mean(np.interp(np.linspace(0, 1, 10_001), np.linspace(0, 1, 21), RESPONSES)), rel=0.02
    )


def test_stages_are_judged_by_medians_and_shown_in_full():
    """The slow first run of `kd` decides nothing; `generate` misses its target."""
    times = {
        "kd": {"before": [531.0, 424.0, 429.0], "after": [307.0, 272.0, 278.0]},
        "generate": {"before": [20.0, 21.0, 19.0], "after": [14.0, 15.0, 16.0]},
    }
    found = {"stages": stages.compared(times), "commits": {"before": "aaa", "after": "bbb"}}
    judged = {check.name: (round(check.value, 3), check.met) for check in report.checks(found)}
    assert judged == {"stage kd": (1.543, True), "stage generate": (1.333, False)}
    assert "| kd | 531.0, 424.0, 429.0 | 307.0, 272.0, 278.0 | 1.54 |" in report.stage_table(**found)


def test_stages_go_on_where_they_were_interrupted(monkeypatch, tmp_path, capsys):
    """One side of `kd` and one of `generate` are there.

    `generate` alone is asked for: it resumes, on the one model that it reads, and is reported; `kd` stays as
    it is.
    """
    made = []
    models = []

    def side(commit, folder, linked, precision):
        assert (linked, precision) == (["smollm2-99m/sft/seed10"], "fp32")
        return SimpleNamespace(
            commit=commit,
            seconds=lambda stage: made.append((commit, stage)) or {"old": 3.0, "new": 1.5}[commit],
        )

    monkeypatch.setattr(stages, "snakemake", lambda folder, configs, targets, **more: models.extend(targets))
    monkeypatch.setattr(stages, "git", lambda *words: words[-1].removesuffix("^{commit}"))
    monkeypatch.setattr(stages, "Side", side)
    kept = tmp_path / "stages" / "fp32" / "old-new.json"
    kept.parent.mkdir(parents=True)
    kept.write_text('{"kd": {"before": [9.0]}, "generate": {"before": [3.0]}}')
    asked = [
        "--before",
        "old",
        "--after",
        "new",
        "--only",
        "generate",
        "--precision",
        "fp32",
        "--repeats",
        "2",
    ]
    monkeypatch.setattr("sys.argv", ["stages", *asked, "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="^0$"):
        stages.main()
    assert models == ["results/mini/models/smollm2-99m/sft/seed10"]
    assert made == [("new", "generate"), ("old", "generate"), ("new", "generate")]
    times = json.loads(kept.read_text())
    assert {stage: times[stage] for stage in ("kd", "generate")} == {
        "kd": {"before": [9.0]},
        "generate": {"before": [3.0, 3.0], "after": [1.5, 1.5]},
    }
    assert capsys.readouterr().out.splitlines()[-1] == "bench: stage generate, fp32 2.00 (met: ≥ 1.5)"


def test_rollouts_by_coins_are_measured_in_turns(monkeypatch, capsys):
    """The first turn is not counted; all rows have groups or none has."""
    asked = []

    def seconds(self, alpha, shared, step):
        asked.append((shared, step))
        return {None: 8.0, 8: 4.0, 0: 2.0}[shared] * (100 if step == 0 else step)

    monkeypatch.setattr(sys, "argv", ["coins", "--tiny", "--rows", "4", "--alphas", "0.2", "--response", "6"])
    monkeypatch.setattr(coins.Case, "seconds", seconds)
    coins.main()
    assert asked == [(shared, step) for step in range(4) for shared in (None, 8, 0)]
    assert "| 1 x 64 | 4 | 0.2 | 16.00 (1.00) | 8.00 (2.00) | 4.00 (4.00) |" in capsys.readouterr().out
    monkeypatch.undo()
    case = coins.Case(
        coins.TINY["1 x 64"], Shape(300, 4, prompt=64, response=6, real=True), "fp32", torch.device("cpu")
    )
    assert all(case.seconds(0.2, shared, 1) > 0 for shared in (None, 8, 0))


def test_every_part_is_one_that_the_package_takes():
    assert len(set(parts.PARTS) | set(parts.SAMPLERS)) == len(parts.PARTS) + len(parts.SAMPLERS)
    for keys in (*parts.PARTS.values(), *parts.SAMPLERS.values()):
        chosen = workload.settings(TINY, **(parts.BASE | keys))
        # Raises an error otherwise.
        onpolicy.check_on_policy(chosen, "a part", "stages.minillm")


@pytest.mark.parametrize("part", parts.PARTS)
def test_a_part_runs(part):
    found = parts.run(part, parts.TINY, updates=1)
    assert found["speed"] > 0 and found["memory"] >= 0 and found["held"] > 0


@pytest.mark.parametrize("sampler", parts.SAMPLERS)
def test_a_sampler_runs(sampler):
    assert parts.collect(sampler, parts.TINY, updates=1)["speed"] > 0


def test_who_teaches_a_part_reads_the_gold_answer_and_is_who_it_should_be():
    mine = {
        name: parts.made(parts.TINY, "fp32", parts.PARTS[name]) for name in parts.PARTS if "prompt" in name
    }
    assert len(mine) == 4
    for name, side in mine.items():
        rollouts, task = side.rollout(), side.task
        assert (task.teacher is side.engine.model) == ("itself" in name)
        assert (task.teacher is side.setting.teacher) == name.startswith("teacher")
        if "initial" in name or "mean" in name:
            assert torch.equal(*(next(model.parameters()) for model in (task.teacher, side.engine.model)))
        for i, row in enumerate(rollouts.ids):
            prompt, gold = side.data.rows.prompt(row), side.data.rows.response(row)
            assert rollouts.teacher_prompts[i].tolist() == [*prompt, *gold]


def test_the_table_of_parts_compares_with_plain_reverse_kl():
    results = {
        "reverse KL": {"speed": 200.0, "memory": 30.0, "held": 100.0},
        "sampled token": {"speed": 250.0, "memory": 20.4, "held": 104.0},
    }
    lines = parts.table(Shape(vocabulary=2**20, batch=2, response=4, prompt=3), results).splitlines()
    assert lines[0] == "2 rows of 3 + 4 tokens, vocabulary 1048576; logits: 32 MB"
    assert lines[-2:] == [
        "| reverse KL | 200 | 1.00 | 30 | +0 | +0 |",
        "| sampled token | 250 | 1.25 | 20 | -10 | +4 |",
    ]
    samplers = {"student": {"speed": 200.0}, "top-p 0.9": {"speed": 150.0}}
    assert parts.table_of_samplers(samplers).splitlines()[-1] == "| top-p 0.9 | 150 | 0.75 |"


def test_only_what_is_asked_for_is_measured_next_to_what_it_is_compared_with(monkeypatch, capsys):
    asked = []

    def ask(module, shape, **options):
        asked.append((shape.vocabulary, options))
        return {"speed": 1.0, "memory": 2.0, "held": 3.0}

    monkeypatch.setattr(parts.child, "ask", ask)
    monkeypatch.setattr(sys, "argv", ["parts", "--tiny", "--updates", "1", "--only", "top-p 0.9"])
    parts.main()
    how = {"precision": "fp32", "updates": 1}
    assert asked == [(37, {"sampler": name, **how}) for name in ("student", "top-p 0.9")]
    assert "| top-p 0.9 | 1 | 1.00 |" in capsys.readouterr().out
