"""Parts of the on-policy objective: each may be combined with any divergence, and is off if it is not set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from minillm.config.strict import STRICT, Count, Natural, NonNegative, Positive, Share

if TYPE_CHECKING:
    from minillm.config.onpolicy import OnPolicy

# Divergences between teacher and student, summed over a token's vocabulary (objectives.py).
Divergence = Literal[
    "forward_kl",
    "reverse_kl",
    "jensen_shannon",
    "skew_forward_kl",
    "skew_reverse_kl",
    "total_variation",
    "alpha_beta",
    "token_wise_kl",
    "squared_log_ratio",
    "teacher_token",
]


@dataclass(frozen=True, config=STRICT)
class AlphaBeta:
    """Parameters of `objective: alpha_beta` (ABKD, arXiv 2505.04560)."""

    alpha: NonNegative = Field(
        default=0.2, description="Exponent of the teacher's probabilities; 0 is the limit. ABKD, GPT-2: 0.2."
    )
    beta: NonNegative = Field(
        default=0.7, description="Exponent of the student's probabilities; 0 is the limit. ABKD, GPT-2: 0.7."
    )


@dataclass(frozen=True, config=STRICT)
class Signal:
    """Which entries of the vocabulary the divergence sums over at each token (docs/method.md)."""

    tokens: Literal["all", "student_topk", "teacher_topk", "union", "intersection", "sampled"] = Field(
        default="all",
        description="All entries; the `top_k` likeliest of the student, of the teacher, of either, or of "
        "both; or the sampled token, which only `objective: squared_log_ratio` can do with.",
    )
    top_k: Natural = Field(
        default=0,
        description="How many entries of a model belong to the set; from the vocabulary's size on, all do.",
    )
    renormalise: bool = Field(
        default=False,
        description="Compare the two distributions given that the entry is in the set, rather than sum the "
        "terms of the whole distributions that belong to it.",
    )
    weight: Literal["student", "teacher", "none"] = Field(
        default="student",
        description="What weighs the entries in `objective: squared_log_ratio`: the probabilities of student "
        "or teacher, or nothing; the weights of a set sum to 1. Other divergences have weights of their own.",
    )


@dataclass(frozen=True, config=STRICT)
class Taid:
    """The teacher's place is taken by softmax((1 - t) z_q + t z_p), z_q constant (TAID, arXiv 2501.16937).

    t rises with the steps, and faster where the loss falls faster.
    """

    start: Share = Field(default=0.4, description="t at the first step. TAID: 0.2 to 0.4.")
    end: Share = Field(default=1.0, description="t at the last step, and its largest value. TAID: 1.")
    adaptive: bool = Field(
        default=True, description="Move t by the loss too; otherwise linearly from `start` to `end`."
    )
    step: NonNegative = Field(
        default=5e-4, description="Largest adaptive step, as a share of 1 - t. TAID: 5e-4."
    )
    momentum: float = Field(
        default=0.99, ge=0, lt=1, description="Momentum of the relative change of the loss. TAID: 0.99."
    )


@dataclass(frozen=True, config=STRICT)
class Assistant:
    """A mixture of teacher and student takes the place of one of them (AMiD, arXiv 2510.15982)."""

    replaces: Literal["student", "teacher"] = Field(
        default="student",
        description="The model whose place it takes: then the objective compares it with the other one.",
    )
    alpha: float = Field(
        default=-1.0,
        ge=-10,
        le=10,
        description="Kind of mean: -1 arithmetic (as in the skewed divergences), 1 geometric, 3 harmonic.",
    )
    share: float = Field(
        default=0.1, gt=0, lt=1, description="The teacher's share in the mixture (AMiD's lambda). AMiD: 0.1."
    )


@dataclass(frozen=True, config=STRICT)
class TokenWeights:
    """Factors that the loss of each token is multiplied by (docs/method.md).

    Values are those recorded when the token was drawn; entropies and divergences are in nats.
    """

    first: float = Field(
        default=1.0, gt=0, le=1, description="Only this share of each response's tokens, from its start."
    )
    discount: float = Field(default=1.0, gt=0, le=1, description="Its power by the position, from 0.")
    prefix_discrepancy: NonNegative = Field(
        default=0.0,
        description="1 plus this times the part of the response's discrepancy that lies at or after the "
        "token (IW-OPD's gamma, there 0.5).",
    )
    advantage: Literal["any", "positive", "not_positive"] = Field(
        default="any", description="Only tokens whose log-ratio, teacher over student, has this sign (AOPD)."
    )
    student_entropy_above: NonNegative | None = Field(
        default=None, description="Only where the student's entropy is above this."
    )
    student_entropy_at_most: NonNegative | None = Field(
        default=None, description="Only where the student's entropy is at most this."
    )
    teacher_entropy_above: NonNegative | None = Field(
        default=None, description="Only where the teacher's entropy is above this. EOPD's forward KL: 0.8."
    )
    teacher_entropy_at_most: NonNegative | None = Field(
        default=None, description="Only where the teacher's entropy is at most this."
    )
    reverse_kl_above: NonNegative | None = Field(
        default=None, description="Only where the reverse KL to the teacher is above this."
    )
    reverse_kl_at_most: NonNegative | None = Field(
        default=None, description="Only where the reverse KL to the teacher is at most this."
    )
    uncertain_or_wrong: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Only this share of each response's tokens: of highest entropy or divergence (TIP).",
    )
    mask_special: bool = Field(
        default=False,
        description="Leave out the tokenizer's special tokens, the EOS too: the student then learns only "
        "from other positions when to stop.",
    )
    truncated: Share = Field(
        default=1.0, description="Factor of responses that were cut at `max_tokens`; 0 leaves them out."
    )
    normalise: bool = Field(
        default=False, description="Divide by the sum of a mini-batch's weights instead of its tokens."
    )

    @property
    def of_teacher(self) -> bool:
        """Whether the teacher's log-probabilities of the sampled tokens, or its divergence, are needed."""
        bounds = (self.reverse_kl_above, self.reverse_kl_at_most)
        chosen = self.prefix_discrepancy > 0 or self.advantage != "any" or self.uncertain_or_wrong < 1
        return chosen or any(bound is not None for bound in bounds)

    @property
    def of_student(self) -> bool:
        """Whether values are needed that only samples of the current student have."""
        bounds = (self.student_entropy_above, self.student_entropy_at_most)
        return self.of_teacher or any(bound is not None for bound in bounds)

    @property
    def of_teacher_entropy(self) -> bool:
        """Whether the teacher's entropy is needed."""
        return self.teacher_entropy_above is not None or self.teacher_entropy_at_most is not None


@dataclass(frozen=True, config=STRICT)
class Term:
    """A further divergence to the teacher, with a set of entries and token weights of its own."""

    objective: Divergence = Field(description="The divergence, as `objective` of the on-policy phase.")
    coefficient: Positive = Field(default=1.0, description="What it is multiplied by.")
    until: Count | None = Field(
        default=None,
        description="The coefficient falls linearly to 0 over so many optimizer steps; empty: it stays.",
    )
    beta: Share = Field(default=0.5, description="Beta of the Jensen-Shannon divergence.")
    skew: float = Field(default=0.1, gt=0, lt=1, description="Alpha of the skewed divergences.")
    alpha_beta: AlphaBeta | None = Field(default=None, description="Parameters of `alpha_beta`.")
    signal: Signal | None = Field(default=None, description="Its set of entries; `null`: all.")
    token_weights: TokenWeights | None = Field(default=None, description="Its token weights; `null`: none.")


def problem(s: OnPolicy) -> str:
    """What is wrong with the combination of parts, after their key; "" if nothing is."""
    own = _problem_of_signal(s) or _problem_of_target(s) or _problem_of_weights(s)
    further = ((i, problem(term)) for i, term in enumerate(s.further_terms()))
    return own or next((f"also.{i}.{text}" for i, text in further if text), "")


def _problem_of_signal(s: OnPolicy) -> str:
    if s.signal is None:
        return ""
    tokens, k = s.signal.tokens, s.signal.top_k
    fixed = tokens in ("all", "sampled")
    if fixed and k:
        return f"signal.top_k: '{tokens}' takes no number; set 0, or other tokens"
    if not fixed and not k:
        return f"signal.top_k: '{tokens}' needs a number; how many entries belong to the set?"
    if s.signal.renormalise and (fixed or (k == 1 and tokens != "union")):
        what = (
            "all entries sum to 1 anyway" if tokens == "all" else "a single entry has probability 1 in both"
        )
        return f"signal.renormalise: {what}; set false"
    if s.signal.weight != "student" and s.objective != "squared_log_ratio":
        return "signal.weight: only objective 'squared_log_ratio' has weights to choose; leave it out"
    if s.objective == "minillm" and not s.single_step:
        return "signal: it is the single-step term's, which single_step: false leaves out"
    if tokens != "sampled":
        return ""
    if s.objective != "squared_log_ratio":
        return (
            "signal.tokens: one sampled token is no divergence; 'sampled' needs objective 'squared_log_ratio'"
        )
    if s.alpha or s.student_share < 1 or s.adaptive or s.replay:
        key = "alpha" if s.alpha else "student_share, adaptive and replay"
        return f"signal.tokens: the 'sampled' token must be the current student's; leave {key} off"
    return ""


def _problem_of_target(s: OnPolicy) -> str:
    part = "taid" if s.taid else "assistant"
    if s.taid and s.assistant:
        return "assistant: 'taid' has an intermediate teacher already; leave one of them out"
    if (s.taid or s.assistant) and s.objective == "minillm":
        return f"{part}: the long term's rewards are the teacher's own; choose another objective"
    if s.taid and s.taid.start > s.taid.end:
        return f"taid.start: {s.taid.start:g} is above taid.end, {s.taid.end:g}"
    for name in ("alpha", "beta"):
        if s.alpha_beta and 0 < (value := getattr(s.alpha_beta, name)) < 0.01:
            return f"alpha_beta.{name}: {value:g} divides by almost 0; set 0 for the limit, or at least 0.01"
    return ""


def _problem_of_weights(s: OnPolicy) -> str:
    w = s.token_weights
    if w is None:
        return ""
    for name in ("student_entropy", "teacher_entropy", "reverse_kl"):
        above, at_most = getattr(w, f"{name}_above"), getattr(w, f"{name}_at_most")
        if above is not None and at_most is not None and above >= at_most:
            return f"token_weights.{name}_above: nothing is above {above:g} and at most {at_most:g}"
    if w.of_student and (s.student_share < 1 or s.adaptive or s.replay):
        return (
            "token_weights: log-ratios, reverse KL and the student's entropy are recorded only for samples "
            "of the current student; leave student_share, adaptive and replay off"
        )
    if w.normalise and s.normaliser == "sequences":
        return "token_weights.normalise: the loss is divided by responses; set normaliser: tokens"
    return ""
