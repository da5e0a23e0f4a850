"""What a job does, in numbers: its optimizer steps, what it samples and what it reads."""

from __future__ import annotations

from dataclasses import dataclass

from minillm.config.launch import Launch
from minillm.fits.passes import Loss
from minillm.fits.rows import Prompts
from minillm.fits.sizes import Size


@dataclass(frozen=True)
class Part:
    """Rows of one optimizer step that share a loss: `prompt` and `response` tokens on average.

    width, targets: positions, and tokens with a loss, of the longest row.  reads: share of the rows that the
    teacher reads, the others having its hidden states; scored: whether its output matrix is applied; shown:
    the teacher's prompts, if they are others.
    """

    rows: int
    prompt: float
    response: float
    width: int
    targets: int
    loss: Loss
    reads: float = 0.0
    scored: bool = False
    shown: Prompts | None = None

    @property
    def read(self) -> tuple[float, int]:
        """Tokens of a row as the teacher reads it, on average, and positions of the longest such row."""
        if self.shown is None:
            return self.prompt + self.response, self.width
        return self.shown.mean + self.response, self.shown.longest + self.targets


@dataclass(frozen=True)
class Draw:
    """Responses drawn `times` times for `rows` prompts, by one model or by two that read along.

    horizon: positions of the longest response; longest: of the longest prompt.  coins: as in OnPolicy, the
    rows that share the coins that say which model draws; None: all models read every token at once.
    top_k: of the teacher, if it replaces other tokens; top_p: of the student.  shown: the teacher's prompts,
    if they are others.
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
    coins: int | None = None
    top_k: int = 0
    top_p: float = 1.0
    shown: Prompts | None = None

    @property
    def prompts(self) -> list[Prompts]:
        """Those that each model reads."""
        usual = Prompts(self.prompt, self.longest)
        return [usual, *[self.shown or usual] * (len(self.models) - 1)]

    @property
    def width(self) -> int:
        """Positions of the longest row, of whichever model."""
        return max(prompts.longest for prompts in self.prompts) + self.horizon

    def shares(self, rows: int) -> list[float]:
        """Of each model, the positions at which a batch of `rows` rows waits for it, on average."""
        if self.coins is None or len(self.models) == 1:
            return [1.0] * len(self.models)
        groups = -(-rows // self.coins) if self.coins else 1
        return [1.0, 1 - (1 - self.alpha) ** groups]


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
    """One job.  Without `steps` nothing is trained; `frozen` are the other models, the teacher first.

    shared: numbers of the frozen models' weights that are the student's, in memory once.  batch: rows of an
    optimizer step.  kept: tokens whose teacher's hidden states lie in the CPU's memory; cached: those on the
    disk.  mean: numbers of the student's weights that a mean is kept of.  outputs: models that the stage
    writes; answers: its responses.
    """

    stage: str
    student: Size
    frozen: tuple[Size, ...]
    launch: Launch
    precision: str
    shared: int = 0
    steps: int = 0
    batch: int = 1
    dropout: bool = False
    parts: tuple[Part, ...] = ()
    draws: tuple[Draw, ...] = ()
    reads: tuple[Read, ...] = ()
    evaluations: int = 0
    kept: float = 0.0
    cached: float = 0.0
    mean: int = 0
    outputs: int = 0
    answers: int = 0

    @property
    def teacher(self) -> Size | None:
        """The first of the frozen models."""
        return self.frozen[0] if self.frozen else None
