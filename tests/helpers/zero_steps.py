"""Twenty steps of SFT, of KD and of MiniLLM (fixed samples) under each of zero_case.LAUNCH.

They are saved after ten, or taken up there.

    zero_steps.py OUT FOLDER          all twenty steps, by one process or by those of torchrun
    zero_steps.py OUT FOLDER COUNT    the last ten, from what COUNT processes have saved

Rank 0 saves {(kind, name of the launch values): (losses, weights)}.
"""

import sys
from pathlib import Path

import torch
from onpolicy_case import COUNT, EOS, PROMPTS, VOCABULARY, Prompts, pair, rollouts, settings, task
from zero_case import CASES, CHANGED, LAUNCH, STEPS, supervised

from minillm.config.launch import Launch
from minillm.data.batching import collate
from minillm.runtime.engine import Engine
from minillm.runtime.processes import leave, start
from minillm.training.rollout_losses import micro_batches
from minillm.training.supervised_loss import example_loss


class Spread(Engine):
    """Under ZeRO-3 every weight is spread over the processes, however small, as those of a real model are."""

    def _template(self, zero):
        values = super()._template(zero)
        if zero == 3:
            values["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return values


def supervised_parts(engine, teacher):
    examples = [(prompt, Prompts().response(i)) for i, prompt in enumerate(PROMPTS)]
    tokens = sum(len(response) for _, response in examples)

    def loss(part):
        return example_loss(engine.engine, collate(part, EOS), VOCABULARY, tokens, teacher, 0.5), {}

    return engine.mine(examples, length=lambda e: len(e[0]) + len(e[1])), loss


def case(world, kind, name, place, saved_by, now=None):
    """(losses, weights) of one kind under one set of launch values; it goes on under those of `now`."""
    student, teacher = (model.float() for model in pair())
    chosen = settings("paper", lr=1e-3, warmup=2) if kind == "minillm" else supervised()
    made = rollouts(student, teacher, chosen) if kind == "minillm" else None
    launch = Launch(**LAUNCH[now or name], micro_batch=COUNT // world.size // 2)
    engine = Spread(
        student, chosen, launch, world, "fp32", place / f"{kind}-{name}-of-{saved_by or world.size}", STEPS
    )
    teacher = engine.frozen(teacher) if kind != "sft" else None
    losses = []
    if saved_by:
        assert engine.resume() == {"kind": kind} and engine.step == STEPS // 2
    while engine.step < STEPS:
        work = task(teacher, chosen)
        step = (
            micro_batches(engine, work, made, list(range(COUNT)))
            if made
            else supervised_parts(engine, teacher)
        )
        losses.append(engine.summed(engine.update(*step))["loss"])
        if launch.shard_teacher and world.size > 1:
            assert all(p.numel() == 0 and p.ds_tensor.numel() < p.ds_numel for p in teacher.parameters()), (
                "spread again"
            )
        if engine.step == STEPS // 2:
            engine.save({"kind": kind})
    with engine.whole():
        if launch.shard_teacher:
            for _ in range(1 + world.rank):  # no rank waits for the others
                assert torch.isfinite(teacher(input_ids=torch.tensor([[1, 2]])).logits).all()
        return losses, torch.cat([p.detach().flatten() for p in engine.model.parameters()])


def main(out, folder, saved_by=None):
    world = start(0)
    results = {(kind, name): case(world, kind, name, Path(folder), saved_by) for kind, name in CASES}
    if saved_by and int(saved_by) == world.size:
        for name, now in CHANGED:
            results["sft", f"{name} to {now}"] = case(world, "sft", name, Path(folder), saved_by, now)
    if world.rank == 0:
        torch.save(results, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave(0)
