"""Operations, hours, disk, and what makes a job fit; the work of a configuration's jobs."""

import dataclasses
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from minillm.config.launch import Launch
from minillm.errors import UserError
from minillm.fits import flops
from minillm.fits.changes import cheapest, fits
from minillm.fits.estimates import Estimates, measured_first, whole
from minillm.fits.hours import disk, saves, seconds, state_bytes
from minillm.fits.jobs import Key, Planner, key_of
from minillm.fits.machines import GPUS, this_cpu
from minillm.fits.memory import memory
from minillm.fits.passes import Loss
from minillm.fits.sizes import build, size_of, text_of
from minillm.fits.work import Draw, Part, Read, Work
from minillm.plan import Job, configuration, estimated

PAPER = Planner(configuration([]))
LLAMA = Key("minillm", "minillm", "llama-7b", "llama-13b")


def small(**changes):
    return size_of(
        text_of(
            {
                "model_type": "gpt2", "vocab_size": 50, "n_positions": 32, "n_embd": 8, "n_layer": 2,
                "n_head": 2, "bos_token_id": 0, "eos_token_id": 0, **changes,
            }
        )
    )  # fmt: skip


# --- operations
def test_operations_of_a_step_counted_by_hand():
    size, teacher = small(), small(n_embd=16)
    part = Part(3, 4, 6, 10, 6, Loss(teacher, 0.5), reads=1.0, scored=True)
    blocks, head = 2 * 12 * 8**2, 50 * 8
    student = 3 * (2 * blocks * 30 + 2 * head * 18) + 3.5 * 3 * 2 * 4 * 8 * 10 * 10
    theirs = 2 * (2 * 12 * 16**2) * 30 + 3 * 2 * 4 * 16 * 10 * 10 + 2 * 50 * 16 * 18
    assert flops.update(part, size, recomputed=False) == student + theirs
    # Recomputed are the blocks without each one's last product, 4 d^2 of 12 d^2.
    more = 2 * (2 * 8 * 8**2) * 30 + 3 * 2 * 4 * 8 * 10 * 10
    assert flops.update(part, size, recomputed=True) == student + theirs + more


@pytest.mark.parametrize("name", ["gpt2", "opt-1.3b", "llama-7b"])
def test_operations_of_a_pass_are_those_that_torch_counts(name):
    from torch._subclasses.fake_tensor import FakeTensorMode

    shape = PAPER.size(name).shape
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        model = build(shape, layers=3)
        model(input_ids=torch.zeros(2, 20, dtype=torch.long), use_cache=False)
    size = dataclasses.replace(
        PAPER.size(name), layers=3, matrices=PAPER.size(name).matrices // PAPER.size(name).layers * 3
    )
    # The fake CPU's attention is unknown to the counter, or counted as products, by version.
    linear = flops.linear(size, 40) + flops.head(size, 40)
    counted = counter.get_total_flops()
    attention = 2 * flops.attention(size, 20, 20)
    assert counted in (pytest.approx(linear, rel=1e-6), pytest.approx(linear + attention, rel=1e-6))


def test_sampling_reads_each_token_once_and_not_the_last():
    size = small()
    draw = Draw((size,), rows=2, times=1, prompt=5, response=4, longest=5, horizon=4)
    linear = flops.linear(size, 5 + 3)
    heads = flops.head(size, 4)
    rest = flops.attention(size, 5, 5) + flops.attention(size, 3, 7)
    assert flops.draw(draw) == 2 * (linear + heads + rest)


def test_by_coins_both_output_matrices_are_applied_again_to_record():
    student, teacher = small(), small(n_embd=16)
    draw = Draw((student, teacher), 3, 1, 5, 4, 5, 4, alpha=0.25, record=True)
    coins = dataclasses.replace(draw, coins=8)
    more = 3 * (0.75 * flops.head(student, 4) + 0.25 * flops.head(teacher, 4))
    assert flops.draw(coins) == pytest.approx(flops.draw(draw) + more)


def test_a_batch_waits_for_the_teacher_where_any_of_its_groups_asks():
    model = small()
    draw = Draw((model, model), 64, 1, 5, 4, 5, 4, alpha=0.25, record=True)
    shares = {coins: dataclasses.replace(draw, coins=coins).shares(16) for coins in (None, 0, 16, 8)}
    assert shares == {None: [1, 1], 0: [1, 0.25], 16: [1, 0.25], 8: [1, 1 - 0.75**2]}
    assert dataclasses.replace(draw, models=(model,), coins=0).shares(16) == [1]


def test_all_operations_are_steps_samples_and_reads():
    size = small()
    part, read = Part(2, 1, 3, 4, 3, Loss()), Read(size, 5, 2, 6, 3, 8)
    draw = Draw((size,), 2, 7, 5, 4, 5, 4)
    work = Work("sft", size, (), Launch(), "bf16", steps=3, parts=(part,), draws=(draw,), reads=(read,))
    expected = 3 * flops.update(part, size, False) + 7 * flops.draw(draw) + 2 * flops.score(read)
    assert flops.total(work) == expected


# --- hours
def on_v100(**changes):
    """The paper's machine: 16 V100, fp16, checkpoints every 500 steps."""
    values = {"processes": 16, "zero": 3, "shard_teacher": True, "gradient_checkpointing": True}
    launch = Launch(**{**values, "micro_batch": 4, "eval_batch": 16, "save_every": 500, **changes})
    return dataclasses.replace(PAPER.work(LLAMA, launch), precision="fp16")


def test_the_paper_trained_13b_to_7b_in_less_than_ten_hours_on_16_v100():
    hours = seconds(on_v100(), GPUS["V100-32G"]).hours
    assert 4 < hours < 10


def test_hours_fall_with_machines_and_rise_with_checkpoints():
    hours = {name: seconds(on_v100(), gpu).hours for name, gpu in GPUS.items()}
    assert hours["V100-32G"] > hours["A100-40G"] > hours["H100"] > 1
    twice = seconds(on_v100(processes=32), GPUS["V100-32G"]).hours
    assert twice < hours["V100-32G"]
    often = seconds(on_v100(save_every=10), GPUS["V100-32G"])
    work = on_v100(save_every=10)
    assert saves(work, 8.0) == 4992 // 10 + 10 and state_bytes(work) == 12 * work.student.parameters
    assert often.saving == saves(work, 8.0) * state_bytes(work) / 2e9 > 5 * 3600


def test_checkpoints_by_time_are_as_many_as_the_hours_have():
    work = on_v100(save_minutes=30, save_every=10)
    # Nine looks at the dev set and a last one.
    assert [saves(work, hours) - 10 for hours in (0.4, 0.6, 8.6)] == [0, 1, 17]
    found = seconds(work, GPUS["V100-32G"])
    working = dataclasses.replace(found, saving=0.0, start=0.0).hours
    assert found.saving == (int(2 * working) + 10) * state_bytes(work) / 2e9
    assert state_bytes(on_v100(zero=0, processes=1, shard_teacher=False)) == 16 * work.student.parameters


def test_coins_shorten_sampling_that_waits_for_weights():
    work, gpu = on_v100(), GPUS["V100-32G"]
    draws = [dataclasses.replace(work.draws[0], coins=coins, horizon=256) for coins in (None, 1, 8, 0)]
    hours = [seconds(dataclasses.replace(work, draws=(draw,)), gpu).sampling for draw in draws]
    # Of 16 rows at a time; groups of one ask nearly everywhere.
    assert hours[0] > hours[1] > hours[2] > hours[3] > hours[0] / 3


def test_a_cpu_is_shared_by_its_processes():
    work = dataclasses.replace(
        PAPER.work(Key("sft", "sft", "gpt2"), Launch(processes=2)), draws=(), precision="bf16"
    )
    cpu = this_cpu("bf16", seconds=0.02)
    one = dataclasses.replace(work, launch=Launch(processes=1))
    assert seconds(work, cpu).reading == pytest.approx(seconds(one, cpu).reading)
    assert cpu.flops["bf16"] > 1e9 and cpu.bandwidth > 1e8 and cpu.memory > 1e9


def test_disk_holds_two_checkpoints_while_a_stage_runs():
    work = PAPER.work(Key("sft", "sft", "gpt2"))
    stays, meanwhile = disk(work)
    n = work.student.parameters
    assert stays == 2 * 2 * n and meanwhile == 2 * 12 * n + 2 * 2 * n
    answers = PAPER.work(Key("generate", "generate", "gpt2", "", "dolly"))
    assert disk(answers) == (500 * 5 * 3000, 0)


# --- what makes it fit
def test_a_job_that_does_not_fit_gets_three_changes_that_each_make_it_fit():
    key, machine = Key("teacher", "teacher", "llama-13b"), GPUS["A100-40G"]
    launch = PAPER.launch(key)
    assert not fits(PAPER.work(key), machine)
    changes = cheapest(lambda values: PAPER.work(key, values), launch, machine)
    assert len(changes) == 3
    for change in changes:
        changed = dataclasses.replace(launch, **change.values)
        assert changed != launch and fits(PAPER.work(key, changed), machine)
        assert change.peak == memory(PAPER.work(key, changed)).peak <= machine.room
        # Each value is needed.
        for name in change.values:
            rest = {other: value for other, value in change.values.items() if other != name}
            assert not fits(PAPER.work(key, dataclasses.replace(launch, **rest)), machine)
    assert [change.cost for change in changes] == sorted(change.cost for change in changes)


def test_nothing_helps_where_both_models_are_whole_while_sampling():
    machine = dataclasses.replace(GPUS["V100-32G"], memory=8 * 2**30)
    key = Key("minillm", "minillm", "gpt2-large", "gpt-j-6b")
    assert cheapest(lambda values: PAPER.work(key, values), PAPER.launch(key), machine) == []


def test_sampling_is_made_to_fit_by_fewer_rows():
    key = Key("generate", "generate", "gpt2-xl", "", "dolly")
    machine = dataclasses.replace(GPUS["V100-32G"], memory=12 * 10**9)
    changes = cheapest(lambda values: PAPER.work(key, values), PAPER.launch(key), machine)
    assert [set(change.values) for change in changes] == [{"eval_batch"}] * len(changes) and changes


# --- a configuration's jobs
@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("teacher/gpt2-xl", Key("teacher", "teacher", "gpt2-xl")),
        ("kd/gpt2/gpt2-xl/seed10", Key("kd", "kd", "gpt2", "gpt2-xl")),
        ("alpha-0.1/gpt2/gpt2-xl/seed10", Key("minillm", "alpha-0.1", "gpt2", "gpt2-xl")),
        ("generate/gpt2/kd/gpt2-xl/seed20/sni", Key("generate", "generate", "gpt2", "", "sni")),
        ("pseudo/gpt2/gpt2-xl", Key("pseudo", "pseudo", "gpt2-xl")),
        (
            "exposure_bias/gpt2-xl/gpt2/sft/seed10/dolly",
            Key("exposure_bias", "exposure_bias", "gpt2", "gpt2-xl", "dolly"),
        ),
        ("data/gpt2", None),
        ("testset/gpt2/sni", None),
    ],
)
def test_a_benchmark_file_names_the_work_of_its_job(path, key):
    assert key_of(PAPER.config, f"results/paper/benchmarks/{path}.tsv") == key


def test_works_follow_the_settings():
    work = PAPER.work(LLAMA)
    assert work.steps == 4992 and work.batch == 128 and work.student.layers == 32
    samples, texts = work.parts
    assert (samples.rows, samples.width, samples.targets, samples.reads) == (64, 512, 256, 0.0)
    assert (texts.rows, texts.width, texts.targets, texts.reads) == (64, 512, 511, 1.0)
    rollouts, dev = work.draws
    assert (len(rollouts.models), rollouts.rows, rollouts.times, rollouts.record) == (2, 256, 312, True)
    assert (len(dev.models), dev.rows, dev.times) == (1, 1000, 11)
    assert work.kept == 256 * 256
    sft = PAPER.work(Key("sft", "sft", "gpt2"))
    assert sft.steps == 20 * (11435 // 32) and sft.outputs == 2 and sft.dropout and not sft.frozen
    kd = PAPER.work(Key("kd", "kd", "gpt2", "gpt2-xl"))
    # Epochs after the first read the teacher's hidden states from the disk.
    assert kd.parts[0].reads == 1 / 20 and kd.cached == 11435 * 72.0


def planned(*names):
    return [Job(name.split("/")[0], (), (), f"results/paper/benchmarks/{name}.tsv") for name in names]


def test_measured_hours_take_the_place_of_estimates():
    key = Key("sft", "sft", "gpt2")
    found = Estimates(PAPER, Counter({key: 2}), [GPUS["H100"]])
    hours = measured_first({0: key, 1: key}, {1: 7.0}, found, GPUS["H100"])
    assert hours[1] == 7.0 and hours[0] == found.hours(key, GPUS["H100"]) < 1


def test_the_report_has_a_line_for_jobs_that_are_alike_and_a_sum():
    jobs = planned("sft/gpt2/seed10", "sft/gpt2/seed20", "generate/gpt2/sft/seed10/dolly", "data/gpt2")
    text = estimated(jobs, {}, PAPER.config)
    assert "| sft gpt2 | 2 | 8 | 0.124B |" in text and "generate (1 models; most: gpt2) | 1 |" in text
    assert "Everything fits into A100-80G" in text and "| hours of the critical path |" in text
    assert "(no data is prepared yet)" in text
    assert estimated(planned("data/gpt2"), {}, PAPER.config).startswith("Nothing is left")


def test_the_report_says_what_makes_a_job_fit():
    text = estimated(planned("teacher/llama-13b"), {}, PAPER.config, "A100-40G")
    assert "Does not fit into A100-40G" in text and "offload: true" in text and "no (" in text


def test_the_report_says_what_is_too_large_if_nothing_helps():
    text = estimated(planned("kd/gpt2-xl/gpt-j-6b/seed10"), {}, PAPER.config, "V100-32G")
    assert "Everything fits into V100-32G" in text
    work = PAPER.work(LLAMA, Launch())
    # 13.0 and 6.7 billion weights of two bytes.
    assert whole(work) == "39.5"


def test_what_the_report_cannot_say_is_one_line():
    with pytest.raises(UserError, match="--machine H1000: unknown; did you mean 'H100'"):
        estimated(planned("sft/gpt2/seed10"), {}, PAPER.config, "H1000")
    mini = configuration(["config/mini.yaml"])
    job = Job("teacher", (), (), "results/mini/benchmarks/teacher/smollm2-135m.tsv")
    mini.shapes.clear()
    assert estimated([job], {}, dataclasses.replace(mini, run="nowhere")).startswith(
        "No estimates: shapes.smollm2-135m: missing"
    )


def test_a_trial_is_a_share_of_its_training_and_offline_methods_sample_nothing():
    demo = configuration([Path("config/demo.yaml"), Path("config/methods-demo.yaml")])
    planner, place = Planner(demo), "results/methods/benchmarks"
    trial, whole_run = (
        planner.work(key_of(demo, f"{place}/{name}.tsv"))
        for name in (
            "trial/vopd/demo-student/demo-teacher/lr0.001",
            "vopd/demo-student/demo-teacher/seed10",
        )
    )
    assert trial.steps == 120 and whole_run.steps == 240
    assert (trial.evaluations, whole_run.evaluations) == (2, 4)
    offline = planner.work(key_of(demo, f"{place}/abkd/demo-student/demo-teacher/seed10.tsv"))
    assert len(offline.draws) == 1 and len(whole_run.draws) == 2
    assert seconds(offline, GPUS["H100"]).sampling > 0
