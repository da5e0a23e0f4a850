"""Twenty steps of SFT and of MiniLLM (fixed samples) under ZeRO 1, 2 and 3, saved after ten, or taken up there.

    zero_steps.py OUT FOLDER          all twenty steps, by one process or by those of torchrun
    zero_steps.py OUT FOLDER COUNT    the last ten, from what COUNT processes have saved

Rank 0 saves {(kind, zero): (losses, weights)}.
"""

import sys
from pathlib import Path

import torch
from onpolicy_case import COUNT, EOS, PROMPTS, VOCABULARY, Prompts, pair, rollouts, settings, task
from zero_case import STEPS, supervised

from minillm.config import Launch
from minillm.data import collate
from minillm.engine import Engine
from minillm.rollout_losses import step_losses
from minillm.supervised import example_loss
from minillm.world import start


class Spread(Engine):
    """Under ZeRO-3 every weight is spread over the processes, however small, as those of a real model are."""

    def _config(self, precision):
        values = super()._config(precision)
        if self.launch.zero == 3:
            values["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return values


def sft_parts(engine):
    examples = [(prompt, Prompts().response(i)) for i, prompt in enumerate(PROMPTS)]
    tokens = sum(len(response) for _, response in examples)
    for part in engine.mine(examples, length=lambda e: len(e[0]) + len(e[1])):
        yield example_loss(engine.engine, collate(part, EOS), VOCABULARY, tokens, None, 0.0)


def main(out, folder, saved_by=None):
    world = start(0)
    results = {}
    for kind in ("sft", "minillm"):
        for zero in (1, 2, 3):
            student, teacher = (model.float() for model in pair())
            chosen = supervised() if kind == "sft" else settings("paper", lr=1e-3, warmup=2)
            made = rollouts(student, teacher, chosen) if kind == "minillm" else None
            launch = Launch(zero=zero, micro_batch=COUNT // world.size // 2)
            place = Path(folder) / f"{kind}-{zero}-of-{saved_by or world.size}"
            engine = Spread(student, chosen, launch, world, "fp32", place, STEPS)
            losses = []
            if saved_by:
                assert engine.resume() == {"kind": kind} and engine.step == STEPS // 2
            while engine.step < STEPS:
                parts = (
                    sft_parts(engine)
                    if made is None
                    else step_losses(engine, task(teacher, chosen), made, list(range(COUNT)), {})
                )
                losses.append(engine.update(parts)["loss"])
                if engine.step == STEPS // 2:
                    engine.save({"kind": kind})
            with engine.whole():
                results[kind, zero] = losses, torch.cat([p.detach().flatten() for p in engine.model.parameters()])
    if world.rank == 0:
        torch.save(results, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
