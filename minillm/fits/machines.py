"""What processors can do: published figures of GPUs, and a quick measurement of this CPU."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch

from minillm.fits.sizes import kind_of

GB = 10**9
# Shares of the published figures that are assumed to be reached: of the products of a large batch, of the
# memory's bandwidth while a decoder reads its weights, of the links between GPUs.
COMPUTE, BANDWIDTH, LINK = 0.4, 0.7, 0.7
# Seconds between two kernels that Python starts one after the other.
KERNEL = 6e-6
# Bytes that a GPU's context, libraries and NCCL take, which no tensor can have.
RESERVED = 2 * GB
# Bytes a second of the disk, and seconds until a stage's process has imported its libraries.
DISK, STARTUP = 2 * GB, 30.0


@dataclass(frozen=True)
class Machine:
    """One processor: operations a second by precision, bytes of memory, bytes a second of memory and links.

    `share` is what is reached of the operations; 1 if they were measured.
    """

    name: str
    flops: Mapping[str, float]
    memory: int
    bandwidth: float
    link: float
    device: str = "cuda"
    share: float = COMPUTE
    kernel: float = KERNEL

    @property
    def room(self) -> int:
        """Bytes for tensors."""
        return self.memory - (RESERVED if self.device == "cuda" else 0)

    def shared(self, processes: int) -> Machine:
        """What one of several processes has of it."""
        flops = {name: value / processes for name, value in self.flops.items()}
        return dataclasses.replace(
            self,
            flops=MappingProxyType(flops),
            bandwidth=self.bandwidth / processes,
            link=self.link / processes,
        )


def _gpu(name: str, half: float, full: float, mebibytes: int, bandwidth: float, link: float) -> Machine:
    """`half` and `full` in TFLOP/s, bandwidths in GB/s, the link's in one direction."""
    flops = {"fp16": half * 1e12, "bf16": half * 1e12, "fp32": full * 1e12}
    return Machine(name, MappingProxyType(flops), mebibytes * 2**20, bandwidth * GB, link * GB)


# NVIDIA's data sheets: dense tensor cores (RTX 4090: with sums in fp32), fp32 without TF32 (torch's default);
# memory as nvidia-smi says it. V100 has no bf16: its figures are those of fp16. L4 and RTX 4090 are linked by
# PCIe 4.
GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("L4", 121, 30.3, 23034, 300, 32),
        _gpu("RTX4090", 165.2, 82.6, 24564, 1008, 32),
        _gpu("V100-32G", 125, 15.7, 32510, 900, 150),
        _gpu("A100-40G", 312, 19.5, 40536, 1555, 300),
        _gpu("A100-80G", 312, 19.5, 81920, 2039, 300),
        _gpu("H100", 989, 67, 81559, 3350, 450),
        _gpu("H200", 989, 67, 143771, 4800, 450),
    )
}


def this_cpu(precision: str, seconds: float = 0.5) -> Machine:
    """This processor, by its fastest product and copy of `seconds` each; its memory is what is installed."""
    a = torch.randn(1024, 1024).to(kind_of(precision))
    b = torch.randn(64 * 2**20)
    target = torch.empty_like(b)
    product = _fastest(lambda: torch.nn.functional.linear(a, a), seconds)
    copied = _fastest(lambda: target.copy_(b), seconds)
    return Machine(
        "this CPU",
        MappingProxyType({precision: 2 * 1024**3 / product}),
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        2 * b.nbytes / copied,
        2 * b.nbytes / copied,
        "cpu",
        # Products of a training step have less favourable shapes (docs/performance.md).
        0.5,
    )


def _fastest(action: Callable[[], object], seconds: float) -> float:
    """Seconds of one call, the least of those made in `seconds`, after one to warm up."""
    action()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.perf_counter()
        action()
        best = min(best, time.perf_counter() - begin)
    return best
