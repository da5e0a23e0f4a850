"""Writing the chosen models of a training run to their output folders."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from minillm.files import whole_folder
from minillm.runtime import provenance
from minillm.runtime.checkpoints import discard
from minillm.runtime.engine import Engine
from minillm.runtime.processes import host
from minillm.training.adapted import merge
from minillm.training.dev_set import Candidates, Dev


def export(
    engine: Engine,
    dev: Dev,
    history: list[dict[str, Any]],
    outputs: dict[str, Path],
    settings: dict[str, Any],
    inputs: dict[str, str],
    seed: int,
    base: Path | None = None,
    grid: dict[str, Any] | None = None,
) -> None:
    """Write the chosen models to their folders (`outputs`: rule -> folder), then remove the checkpoints.

    If adapters were trained, they are merged into `base`.  `grid`: from what the learning rate was chosen,
    which is recorded.
    Under torchrun a signal meanwhile counts as failure, and a failed job's outputs are removed: the
    checkpoints then stay, and the next attempt only writes the outputs again.
    """
    hosts = engine.world.gather(host())
    with engine.interruptible():
        if engine.world.rank == 0:
            run = {
                "seed": seed,
                "world_size": engine.world.size,
                "hosts": hosts,
                "wall_seconds": round(engine.elapsed(), 1),
                "steps": engine.steps,
                "launch": dataclasses.asdict(engine.launch),
                "deepspeed": engine.deepspeed_config,
                **({"grid": grid} if grid else {}),
            }
            candidates = Candidates(engine, dev.tokenizer, list(outputs))
            for rule, folder in outputs.items():
                with whole_folder(folder) as partial:
                    candidates.export(rule, history, partial)
                    if base is not None:
                        merge(partial, base, settings["precision"], dev)
                    provenance.write(partial, settings, inputs, run)
        engine.stop_if_asked(lambda: None)
        if engine.world.rank == 0:
            discard(engine.folder)
    engine.world.barrier()
