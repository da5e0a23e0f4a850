"""What both the test and the processes that it starts know of the steps in zero_steps.py."""

from minillm.config.sections import Training

STEPS = 20
KINDS = ("sft", "kd", "minillm")
LAUNCH = {
    "0": {"zero": 0},
    "1": {"zero": 1},
    "2": {"zero": 2},
    "3": {"zero": 3},
    "2-offload": {"zero": 2, "offload": True},
    "3-offload": {"zero": 3, "offload": True},
    "1-sharded-teacher": {"zero": 1, "shard_teacher": True},
    "3-sharded-teacher": {"zero": 3, "shard_teacher": True},
}
CASES = [
    *((kind, name) for kind in ("sft", "minillm") for name in ("0", "1", "2", "3")),
    *(("sft", name) for name in ("2-offload", "3-offload")),
    *((kind, name) for kind in ("kd", "minillm") for name in ("1-sharded-teacher", "3-sharded-teacher")),
]
# Saved under one stage, taken up under another.
CHANGED = [("1", "2"), ("2", "1")]


def supervised() -> Training:
    return Training(lr=1e-3, epochs=1, batch=8, warmup=2, dropout=False)
