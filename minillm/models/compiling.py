"""What `launch.compile` asks of torch: compiled decoder blocks, only in updates.

It fuses norms, rotations, activations and softmax, which otherwise read and write all hidden states a dozen
times per block.  One program is made for each kind of block, not for each block, whatever the rows and their
lengths: some ten seconds each on first use; torch keeps it on disk for later processes.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

# Each block with the forward pass that replaces its own.
Blocks = list[tuple[nn.Module, Callable[..., Any]]]


def lacking() -> str | None:
    """What torch needs to compile and this machine lacks (a C++ compiler, Python's headers), or None."""
    compiler, header = os.environ.get("CXX", "g++"), Path(sysconfig.get_path("include")) / "Python.h"
    if not shutil.which(compiler):
        return compiler
    return None if header.is_file() else str(header)


def possible(what: str) -> bool:
    """Whether torch can compile here; if not, warns that `what` ("blocks are computed") without compiling."""
    missing = lacking()
    if missing:
        warnings.warn(f"compile: no {missing} on this machine; {what} without compiling", stacklevel=3)
    return not missing


def compiled(blocks: Iterable[nn.Module]) -> Blocks:
    """Each block with its forward pass, which torch compiles on its first call; [] if it cannot compile."""
    if not possible("blocks are computed"):
        return []
    import torch._inductor.config as inductor

    # Dropout as in uncompiled blocks, so that compiling changes only rounding.
    inductor.fallback_random = True
    return [(block, torch.compile(block.forward, dynamic=True)) for block in blocks]


@contextmanager
def in_place(blocks: Blocks) -> Iterator[None]:
    """Inside, the blocks run as compiled programs."""
    for block, forward in blocks:
        # An attribute of the instance, which shadows the method of its class.
        block.forward = forward
    try:
        yield
    finally:
        for block, _ in blocks:
            del block.forward
