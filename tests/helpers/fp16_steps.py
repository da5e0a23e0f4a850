"""SFT in fp16 on one process under ZeRO 1 to 3, and again from its checkpoint.

`fp16_steps.py FOLDER` prints one JSON object. DeepSpeed refuses fp16 on most CPUs, though torch can compute
with it there: it is told otherwise here, because the loss scale is the same on every device.
"""

import json
import os
import sys
from pathlib import Path

from onpolicy_case import pair
from zero_case import STEPS, supervised
from zero_steps import Spread, supervised_parts

from minillm.config.launch import Launch
from minillm.runtime.processes import start


def main(folder):
    os.environ["DS_ACCELERATOR"] = "cpu"
    from deepspeed.accelerator import get_accelerator

    get_accelerator().is_fp16_supported = lambda: True
    world = start(0)
    found = {}
    for zero in (1, 2, 3):
        runs = []
        for _ in range(2):  # the second resumes where the first has saved
            student = pair()[0].float()
            place = Path(folder) / str(zero)
            engine = Spread(
                student, supervised(), Launch(zero=zero, micro_batch=4), world, "fp16", place, STEPS
            )
            engine.resume()
            steps = []
            while engine.step < STEPS:
                steps.append(engine.summed(engine.update(*supervised_parts(engine, None))))
                if engine.step == STEPS // 2:
                    engine.save({})
            runs.append(steps)
        found[zero] = runs
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
