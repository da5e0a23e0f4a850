"""What both the test and the processes that it starts know of the steps in zero_steps.py."""

from minillm.config import Training

STEPS = 20


def supervised() -> Training:
    return Training(lr=1e-3, epochs=1, batch=8, warmup=2, dropout=False)
