"""What a job does, in numbers: its optimizer steps, what it samples and what it reads."""

from __future__ import annotations

from dataclasses import dataclass, field

from minillm.config.sections import Launch
from minillm.fits.passes import Loss
from minillm.fits.sizes import Size


@dataclass(frozen=True)
class Part:
    """Rows of one optimizer step that share a loss: `prompt` and `response` tokens on average.

    width, targets: positions, and tokens with a loss, of the longest row.  reads: share of the rows that the
    teacher reads, the others having its hidden states; scored: whether its output matrix is applied.
    """

    rows: int
    prompt: float
    response: float
    width: int
    targets: int
    loss: Loss
    reads: float = 0.0
    scored: bool = False


@dataclass(frozen=True)
class Draw:
    """Responses drawn `times` times for `rows` prompts, by one model or by two that read along.

    horizon: positions of the longest response; longest: of the longest prompt.
    """

    models: tuple[Size, ...]
    rows: int
    times: int
    prompt: float
    response: float
    longest: int
    horizon: int
    alpha: float = 0.0
    record: bool = False


@dataclass(frozen=True)
class Read:
    """Rows that a model reads without a gradient, `times` times; `targets` of them are scored."""

    model: Size
    rows: int
    times: int
    tokens: float
    targets: float
    longest: int


@dataclass(frozen=True)
class Work:
    """One job.  Without `steps` nothing is trained.

    kept: tokens whose teacher's hidden states lie in the CPU's memory, by rows of a collection and dev sets;
    cached: those that lie on the disk.  trained: whether the stage writes models; answers: responses that it
    writes.
    """

    stage: str
    student: Size
    teacher: Size | None
    launch: Launch
    precision: str
    steps: int = 0
    batch: int = 1
    dropout: bool = False
    parts: tuple[Part, ...] = ()
    draws: tuple[Draw, ...] = ()
    reads: tuple[Read, ...] = ()
    evaluations: int = 0
    kept: float = 0.0
    cached: float = 0.0
    outputs: int = 0
    answers: int = 0
    notes: tuple[str, ...] = field(default=())

    @property
    def models(self) -> tuple[Size, ...]:
        """Every model whose weights the job holds."""
        return (self.student, self.teacher) if self.teacher else (self.student,)

    @property
    def in_use(self) -> tuple[Size, ...]:
        """Models without a gradient."""
        return (self.teacher,) if self.teacher else ()
