"""Other teachers than the pair's: the student itself, a mean of it, its first weights, teachers by category.

Each reads another prompt of the same rows.  The reference reads each row alone, without padding, in float64.
"""

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from onpolicy_case import (
    COUNT,
    EOS,
    PROMPTS,
    WHOLE,
    OneProcess,
    Prompts,
    Texts,
    Tokenizer,
    engine_of,
    gradient,
    settings,
    task,
)
from parts_case import by_hand
from teaching_case import ByHand, differ, numbers
from tiny_models import make
from torch.testing import assert_close

from minillm.config.launch import Launch
from minillm.config.objective_parts import Signal, TokenWeights
from minillm.config.onpolicy import OnPolicy, check_on_policy
from minillm.config.sections import Sampling
from minillm.config.stage_settings import OnPolicySettings
from minillm.config.strict import parse
from minillm.config.teaching import Teaching
from minillm.data.teacher_prompts import TeacherPrompts
from minillm.errors import UserError
from minillm.training import dev_evaluation, onpolicy, run_state
from minillm.training.dev_set import Dev
from minillm.training.mini_batch import Task
from minillm.training.rollouts import Memory, collect_rollouts
from minillm.training.teaching import MeanTeacher, Panel, by_segment
from minillm.training.who_teaches import check_launch

VOCABULARY = 11
# What who teaches reads: longer and shorter prompts than the student's.
READ = ([1], [7, 7, 3, 10, 2, 4, 6], [5], [9, 8], [4, 1, 1], [2, 3, 2], [6], [10, 3, 1, 4, 5, 9])
SHOWN = {id_: np.array(prompt, dtype=np.int32) for id_, prompt in zip(Prompts.ids, READ, strict=True)}
PRIVILEGED = TeacherPrompts({"train": SHOWN, "dev": SHOWN}, (EOS, EOS))
# Two of the rows' three teachers have the same shape, the third has another.
TEACHERS = {row: [0, 1, 2, 1, 0, 2, 2, 1][i] for i, row in enumerate(Prompts.ids)}


def chosen(who, objective="reverse_kl", alpha=0.0, **more):
    teaching = Teaching(who, prompt="demonstration") if isinstance(who, str) else who
    return settings(
        "default", objective=objective, alpha=alpha, lm_coef=0.0, lm_kd_ratio=0.0, teacher=teaching, **more
    )


def dev_of(prompts=PRIVILEGED, pad=EOS):
    examples = [(PROMPTS[i], Prompts().response(i)) for i in range(COUNT)]
    records = [{"id": id_, "references": ["x"]} for id_ in Prompts.ids]
    return Dev(examples, records, Tokenizer(pad_token_id=pad), Sampling(), VOCABULARY, 3, 0, teacher=prompts)


def work_of(teacher, made, pad=EOS, **more):
    return Task(teacher, None, Texts(), dev_of(pad=pad), made, 5, **more)


def collected(student, teacher, made, launch=WHOLE):
    engine = OneProcess(student, launch)
    engine.model = student
    return collect_rollouts(engine, teacher, Prompts(), dev_of(), made, Memory(made.student_share), 0, 3)


def hand_of(student, teacher_of, samples, name="reverse_kl", **more):
    """The loss by hand; `teacher_of(row id)` is who teaches it."""
    hand, count = ByHand(student), sum(map(len, samples.responses))
    lengths = {len(r) for r in samples.responses}
    assert len(lengths) > 2, "padding, and responses that end early"
    for id_, prompt, response in zip(samples.ids, samples.prompts, samples.responses, strict=True):
        z_p = numbers(teacher_of(id_), SHOWN[id_], response)
        hand.add(
            prompt,
            response,
            lambda z, t, z_p=z_p, y=response: by_hand(name, z, z_p[t], int(y[t]), **more),
            1 / count,
        )
    return hand


SPLITS = (WHOLE, Launch(micro_batch=3), Launch(micro_batch=1), Launch(micro_tokens=40))


# --- the student's own weights
@pytest.mark.parametrize("name", ["reverse_kl", "forward_kl", "squared_log_ratio"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_student_teaches_itself_by_another_prompt(family, name):
    """The teacher's side is a constant: its prompt gives the student no gradient."""
    student = make(family, 1).double()
    more = {"tokens": "sampled"} if name == "squared_log_ratio" else {}
    made = chosen("self", name, signal=Signal(**more) if more else None)
    samples = collected(student, student, made)
    assert samples.teacher_hidden is None, "it moves between the steps of a collection"
    hand = hand_of(student, lambda _: student, samples, name, **more)
    assert hand.value > 0.05
    for launch in SPLITS:
        for pad in (EOS, 7):
            hand.check(gradient(student, samples, work_of(student, made, pad), launch))


def test_the_student_that_teaches_is_the_current_one():
    student, made = make("llama", 1).double(), chosen("self")
    samples = collected(student, student, made)
    before = gradient(student, samples, work_of(student, made))
    with torch.no_grad():
        for weight in student.parameters():
            weight += 0.05 * torch.randn(
                weight.shape, generator=torch.Generator().manual_seed(weight.numel())
            )
    hand = hand_of(student, lambda _: student, samples)
    after = gradient(student, samples, work_of(student, made))
    hand.check(after)
    assert abs(after[0] - before[0]) > 1e-3
    # A copy that stays behind teaches something else.
    first = make("llama", 1).double()
    assert abs(gradient(student, samples, work_of(first, made))[0] - after[0]) > 1e-3


def test_it_teaches_without_dropout():
    student, made = make("gpt2", 1).double(), chosen("self", dropout=True)
    samples = collected(student, student, made)
    still = copy.deepcopy(student)
    torch.manual_seed(0)
    student.train()
    by_itself = gradient(student, samples, work_of(student, made))
    assert student.training
    torch.manual_seed(0)
    assert gradient(student, samples, work_of(still, made))[0] == by_itself[0]
    student.eval()
    assert gradient(student, samples, work_of(student, made))[0] != by_itself[0]


def test_the_initial_student_and_the_pairs_teacher_with_another_prompt():
    student = make("llama", 1).double()
    for who, teacher in (("initial", make("llama", 3).double()), ("pair", make("gpt2", 2).double())):
        made = chosen(who)
        for launch in (WHOLE, Launch(micro_batch=3, teacher_cache=False, eval_batch=3)):
            samples = collected(student, teacher, made, launch)
            assert (samples.teacher_hidden is not None) == launch.teacher_cache, "it stays as it is"
            hand = hand_of(student, lambda _, teacher=teacher: teacher, samples)
            hand.check(gradient(student, samples, work_of(teacher, made), launch))


def test_rewards_of_the_long_term_are_those_of_who_teaches():
    """The student as its own teacher reads along when responses are sampled, mixed or not."""
    student = make("llama", 1).double()
    for alpha in (0.0, 0.3):
        samples = collected(student, student, chosen("self", "minillm", alpha))
        other = collected(student, copy.deepcopy(student), chosen("self", "minillm", alpha))
        assert [r.tolist() for r in samples.responses] == [r.tolist() for r in other.responses]
        for k, (id_, response) in enumerate(zip(samples.ids, samples.responses, strict=True)):
            law = torch.from_numpy(numbers(student, SHOWN[id_], response)).log_softmax(-1)
            expected = law.gather(1, torch.from_numpy(response).long()[:, None])[:, 0]
            recorded = samples.teacher_logprobs[k, : len(response)].double()
            assert_close(recorded, expected, atol=1e-5, rtol=0)


# --- an exponential mean
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_mean_of_the_weights(dtype):
    """(1 - r)^n w_0 + sum of r (1 - r)^(n - k) w_k, in float32 where weights are rounded."""
    rate, steps = 0.05, 20
    student, teacher = (make("gpt2", 1).to(dtype) for _ in range(2))
    path = [{n: p.detach().double().clone() for n, p in student.named_parameters()}]
    mean = MeanTeacher(teacher, student, rate)
    for k in range(steps):
        with torch.no_grad():
            for p in student.parameters():
                p += 0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(k)).to(dtype)
        path.append({n: p.detach().double().clone() for n, p in student.named_parameters()})
        mean.move()
    for name, weight in teacher.named_parameters():
        expected = (1 - rate) ** steps * path[0][name] + sum(
            rate * (1 - rate) ** (steps - k) * path[k][name] for k in range(1, steps + 1)
        )
        tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-5}[dtype]
        assert_close(mean.means[name].double(), expected, atol=tolerance, rtol=tolerance)
        assert torch.equal(weight, mean.means[name].to(dtype)) and (expected - path[0][name]).any()
    assert mean.bytes == sum(p.numel() for p in teacher.parameters()) * (8 if dtype == torch.float64 else 4)


@pytest.mark.parametrize("zero", [0, 1])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_with_a_mean_teacher_resumes_exactly(tmp_path, monkeypatch, zero, precision):
    """Stopped in the middle of a collection: weights, means and losses are those of one that was not."""
    launch = Launch(micro_batch=COUNT, log_every=1, zero=zero)
    teaching = Teaching("ema", rate=0.3, prompt="demonstration")
    more = {
        "objective": "reverse_kl", "alpha": 0.0, "lm_coef": 0.0, "batch": 4, "inner_epochs": 2,
        "teacher": teaching,
    }  # fmt: skip
    monkeypatch.setattr(onpolicy, "evaluate", lambda *_: ({"dev_loss": 1.0, "dev_rouge": 0.0}, {}))

    def run(folder, stop=None):
        engine, _, made = engine_of(folder, "llama", launch, precision=precision, **more)
        engine.steps = 8
        dtype = next(engine.model.parameters()).dtype
        teacher, kept = engine.frozen(make("llama", 1).to(dtype)), []

        class Stopping(MeanTeacher):
            def move(self):
                super().move()
                kept[:] = [self]
                engine._stop = engine.step == stop

        monkeypatch.setattr(run_state, "MeanTeacher", Stopping)
        work = dataclasses.replace(task(teacher, made), dev=dev_of())
        onpolicy.train(engine, work, Prompts(), "ema")
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        weights = torch.cat([p.detach().flatten() for p in engine.model.parameters()])
        means = torch.cat([m.flatten() for m in kept[0].means.values()])
        held = torch.cat([p.detach().flatten() for p in teacher.parameters()])
        return weights, means, held, [line["loss"] for line in lines if "loss" in line]

    whole = run(tmp_path / "whole")
    with pytest.raises(SystemExit):
        run(tmp_path / "parts", stop=3)
    resumed = run(tmp_path / "parts")
    for a, b in zip(whole[:3], resumed[:3], strict=True):
        assert torch.equal(a, b)
    assert whole[3] == resumed[3] and len(whole[3]) == 8
    # The mean is on its way from the initial weights to the student's.
    first = torch.cat([p.detach().flatten() for p in make("llama", 1).parameters()])
    assert (whole[1] - first).norm() > 1e-4 and (whole[0].float() - whole[1]).norm() > 1e-4


# --- teachers by category
def panel():
    models = [make("llama", 2).double(), make("gpt2", 4).double(), wide().double()]
    return models, Panel(models, {"train": TEACHERS, "dev": TEACHERS})


def wide():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(6)
    shape = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=17, initializer_range=0.5, **shape)).eval()


BY = Teaching(by_category={"letter": "one", "sum": "two"})


@pytest.mark.parametrize("name", ["reverse_kl", "squared_log_ratio"])
def test_each_row_has_its_own_teacher(name):
    """Models of several widths, vocabularies with padding; however the rows are split into micro-batches."""
    student, (models, teachers) = make("llama", 1).double(), panel()
    more = {"tokens": "sampled"} if name == "squared_log_ratio" else {}
    made = chosen(BY, name, signal=Signal(**more) if more else None)
    samples = collected(student, models[0], made)
    assert samples.teacher_hidden is None
    hand = hand_of(student, lambda id_: models[TEACHERS[id_]], samples, name, **more)
    for launch in SPLITS:
        for pad in (EOS, 7):
            hand.check(gradient(student, samples, work_of(models[0], made, pad, panel=teachers), launch))
    order = [5, 2, 7, 0, 3, 6, 1, 4]
    hand.check(gradient(student, samples, work_of(models[0], made, panel=teachers), SPLITS[1], order))
    # One teacher for all rows says something else.
    alone = gradient(student, samples, work_of(models[0], made))
    assert abs(alone[0] - hand.value) > 1e-3


def test_a_panel_of_one_model_is_that_model():
    student, teacher = make("llama", 1).double(), make("gpt2", 2).double()
    made = chosen(BY)
    samples = collected(student, teacher, made)
    same = Panel([teacher] * 3, {"train": TEACHERS})
    one = gradient(student, samples, work_of(teacher, made), Launch(micro_batch=3))
    several = gradient(student, samples, work_of(teacher, made, panel=same), Launch(micro_batch=3))
    assert several[0] == pytest.approx(one[0], abs=1e-12) and differ(one[1], several[1]) < 1e-10


def test_tiles_across_teachers():
    parts = [(torch.arange(10.0 * n, 10.0 * n + count), count) for n, count in enumerate((3, 1, 4))]
    made = by_segment([(lambda tile, v=values: v[tile], count) for values, count in parts])
    whole = torch.cat([values for values, _ in parts])
    for start in range(8):
        for stop in range(start + 1, 9):
            assert torch.equal(made(slice(start, stop)), whole[start:stop])


# --- the dev set
@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("several", [False, True])
def test_the_dev_set_is_measured_by_the_pairs_teacher(several, share):
    """KLs by the pair's model with its usual prompts, the objective by who teaches with its own."""
    student, pair = make("llama", 1).double(), make("gpt2", 9).double()
    models, teachers = panel()
    made = chosen(BY if several else "initial", "forward_kl", student_share=share)
    more = {"panel": teachers} if several else {}
    work = work_of(models[0], made, pair=(pair, None), **more)
    engine = OneProcess(student, WHOLE)
    engine.model = student
    found, _ = dev_evaluation.evaluate(engine, dataclasses.replace(work, dev=answering(work.dev)))
    answers = dev_evaluation.answer(student, answering(work.dev), engine.world).examples

    def means(examples, own):
        sums, count = np.zeros(3), 0
        for id_, (prompt, response) in zip(Prompts.ids, examples, strict=True):
            z_q = numbers(student, prompt, response)
            z_u = numbers(pair, prompt, response)
            z_p = numbers(models[TEACHERS[id_]] if several else models[0], SHOWN[id_], response)
            for a, b, c in zip(z_q, z_u, z_p, strict=True):
                sums += [by_hand(n, a, x, 0)[0] for n, x in zip(own, (b, b, c), strict=True)]
            count += len(response)
        return sums / count

    forward, reverse, objective = means(answers, ("forward_kl", "reverse_kl", "forward_kl"))
    gold = means(work.dev.examples, ("forward_kl", "reverse_kl", "forward_kl"))[2]
    assert found["dev_forward_kl"] == pytest.approx(forward, abs=1e-6)
    assert found["dev_reverse_kl"] == pytest.approx(reverse, abs=1e-6)
    assert found["dev_objective"] == pytest.approx(share * objective + (1 - share) * gold, abs=1e-6)
    assert abs(objective - forward) > 1e-2


class Decoding(Tokenizer):
    def decode(self, tokens, skip_special_tokens=True):
        return " ".join(map(str, tokens))


def answering(dev):
    return dataclasses.replace(dev, tokenizer=Decoding(), sampling=Sampling(max_tokens=6))


# --- refusals
def refused(**values):
    made = parse(OnPolicy, {"alpha": 0.0, "objective": "reverse_kl", "lm_coef": 0.0, **values}, "x", "m")
    with pytest.raises(UserError) as caught:
        check_on_policy(made, "x", "m")
    return str(caught.value).removeprefix("x: m.")


def test_what_means_nothing_is_refused():
    name = "name another prompt, such as demonstration"
    for who, why in {
        "pair": "the pair's teacher with its usual prompts is what teaches anyway; leave teacher out, or",
        "initial": "the initial student with the student's prompt only pulls it back; use init_kl, or",
        "self": "the student with its own prompt has nothing to teach itself;",
        "ema": "a mean of the student with its prompt only pulls it back; use init_kl, or",
    }.items():
        assert refused(teacher={"who": who}) == f"teacher.prompt: {why} {name}"
        assert refused(teacher={"who": who, "prompt": "usual"}) == f"teacher.prompt: {why} {name}"
    by = {"by_category": {"a": "big"}}
    for values, said in (
        (
            {"teacher": {"who": "self", "prompt": "p", "rate": 0.1}},
            "teacher.rate: 'self' is no mean; leave it out, or set who: ema",
        ),
        ({"teacher": {"by_category": {}}}, "teacher.by_category: names no category; leave it out"),
        (
            {"teacher": {"who": "ema", "prompt": "p", **by}},
            "teacher.by_category: other models teach, not 'ema'; set who: pair",
        ),
        *(
            (
                {"teacher": by, **more},
                "teacher.by_category: several teachers cannot read along while responses are sampled, which "
                f"{key} needs; leave it off",
            )
            for key, more in {
                "alpha": {"alpha": 0.2},
                "stop_kl": {"stop_kl": 2.0},
                "objective": {"objective": "minillm"},
                "token_weights": {"token_weights": {"advantage": "positive"}},
            }.items()
        ),
        (
            {"teacher": {"who": "self", "prompt": "p"}, "lm_coef": 1.0, "lm_kd_ratio": 0.5},
            "lm_kd_ratio: only the pair's teacher can teach plain text; set 0.0",
        ),
    ):
        assert refused(**values) == said
    entropy = TokenWeights(teacher_entropy_above=0.8)
    assert "token_weights needs" in refused(teacher=by, token_weights=dataclasses.asdict(entropy))


WHOLE_WEIGHTS = "teaches with the student's whole weights, which ZeRO 3 shards; set 2 or less"


@pytest.mark.parametrize(
    ("teaching", "launch", "said"),
    [
        (Teaching("self", prompt="p"), Launch(zero=3), f"launch.zero: 'self' {WHOLE_WEIGHTS}"),
        (Teaching("ema", prompt="p"), Launch(zero=3), f"launch.zero: 'ema' {WHOLE_WEIGHTS}"),
        (
            Teaching("ema", prompt="p"),
            Launch(shard_teacher=True),
            "launch.shard_teacher: a mean of the student cannot be sharded; set false",
        ),
        (
            BY,
            Launch(shard_teacher=True),
            "launch.shard_teacher: a teacher of some rows only cannot be sharded; set false",
        ),
    ],
)
def test_launch_values_that_cannot_be_are_refused(teaching, launch, said):
    made = OnPolicySettings("minillm", "minillm", "small", "big", 1, "fp32", chosen(teaching))
    with pytest.raises(UserError) as caught:
        check_launch(made, launch)
    assert str(caught.value) == said
    check_launch(made, Launch(zero=2))
    check_launch(dataclasses.replace(made, training=settings("default")), Launch(zero=3, shard_teacher=True))


def test_a_mean_that_has_not_moved_teaches_as_the_initial_student():
    student = make("llama", 1).double()
    copies = [make("llama", 1).double() for _ in range(2)]
    mean = MeanTeacher.of(chosen("ema"), copies[0], student, None)
    assert mean is not None and mean.rate == 0.05
    mean.move()
    samples = collected(student, copies[0], chosen("ema"))
    a, b = (gradient(student, samples, work_of(model, chosen("ema"))) for model in copies)
    assert a[0] == pytest.approx(b[0], abs=1e-12)
    assert MeanTeacher.of(chosen("self"), student, student, None) is None
