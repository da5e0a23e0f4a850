"""A step of one shape as a CUDA graph: recorded once, then started as one instead of kernel by kernel."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Step = Callable[[Tensor, Tensor], Tensor]
# Before it is recorded a step runs so often: libraries allocate what they need on first use.
WARM_UP = 2


def captured(step: Step, tokens: Tensor, columns: Tensor, pool: Any) -> Step:
    """`step` as a graph with memory of `pool`; its results are overwritten by the next call.

    The warm-up and the recording are steps for these tokens: what a step stores it must store again alike.
    """
    given = tokens.clone(), columns.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            step(*given)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        result = step(*given)

    def replay(tokens: Tensor, columns: Tensor) -> Tensor:
        for static, values in zip(given, (tokens, columns), strict=True):
            static.copy_(values)
        graph.replay()
        return result

    return replay


class Graphs:
    """The graphs of one decoder by name, in one pool of memory; if one fails, steps run as they are."""

    def __init__(self) -> None:
        self.steps: dict[Any, Step] = {}
        self.pool: Any = None
        self.failed = False

    @staticmethod
    def possible(device: torch.device) -> bool:
        """Whether there is a GPU of NVIDIA's or AMD's."""
        return device.type == "cuda" and torch.cuda.is_available()

    def run(self, name: Any, step: Step, tokens: Tensor, columns: Tensor) -> Tensor:
        """What `step` returns; `name` stands for its shapes."""
        if name not in self.steps and not self.failed:
            self._capture(name, step, tokens, columns)
        if self.failed:
            return step(tokens, columns)
        # The graph's own memory is overwritten by its next run.
        return self.steps[name](tokens, columns).clone()

    def _capture(self, name: Any, step: Step, tokens: Tensor, columns: Tensor) -> None:
        if self.pool is None:
            self.pool = torch.cuda.graph_pool_handle()
        try:
            self.steps[name] = captured(step, tokens, columns, self.pool)
        except RuntimeError as error:
            self.clear()
            self.failed = True
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            warnings.warn(f"cuda_graphs: a step cannot be captured: {reason}; sampling without", stacklevel=2)

    def clear(self) -> None:
        """Forget the graphs: the tensors that they use are replaced."""
        self.steps.clear()
        # A pool that no graph uses any more cannot be used again.
        self.pool = None
