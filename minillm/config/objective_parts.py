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


# Of the texts' own tokens, which only a term of `also` may be.
OfTokens = Literal["cross_entropy"]


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
    # Keys that are newer than others' results: None, and in files.NEWER.
    log_ratio_at_least: float | None = Field(
        default=None,
        description="Only tokens whose log-ratio, teacher over student, is at least this (REOPOLD's first "
        "phase: its floor, log(0.25)).",
    )
    most_uncertain: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Only this share of a collection's tokens: those of the student's highest entropy "
        "(REOPOLD's second phase, there 0.5).",
    )
    switch: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="`log_ratio_at_least` holds in this first share of the collections, `most_uncertain` in "
        "the rest (REOPOLD); `null`: both throughout.",
    )
    drift: NonNegative | None = Field(
        default=None,
        description="Blocks of tokens in which the student has drifted further from the teacher than in the "
        "first one weigh less, others up to 1 plus this (SOD's delta, there 0.2).",
    )
    drift_block: Count | None = Field(
        default=None, description="Tokens of a block of `drift`; SOD has a tool call's step in its place."
    )
    per_response: bool | None = Field(
        default=None,
        description="Divide by the response's length: with `normaliser: sequences` the loss is then the mean "
        "over responses of their means over tokens.",
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
        default=1.0,
        description="Factor of responses that were cut at `max_tokens`, or ended early; 0 leaves them out.",
    )
    normalise: bool = Field(
        default=False, description="Divide by the sum of a mini-batch's weights instead of its tokens."
    )

    @property
    def of_teacher(self) -> bool:
        """Whether the teacher's log-probabilities of the sampled tokens, or its divergence, are needed."""
        bounds = (self.reverse_kl_above, self.reverse_kl_at_most)
        chosen = self.prefix_discrepancy > 0 or self.advantage != "any" or self.uncertain_or_wrong < 1
        newer = (self.log_ratio_at_least, self.drift)
        return chosen or any(bound is not None for bound in (*bounds, *newer))

    @property
    def of_student(self) -> bool:
        """Whether values are needed that only samples of the current student have."""
        bounds = (self.student_entropy_above, self.student_entropy_at_most, self.most_uncertain)
        return self.of_teacher or any(bound is not None for bound in bounds)

    @property
    def of_teacher_entropy(self) -> bool:
        """Whether the teacher's entropy is needed."""
        return self.teacher_entropy_above is not None or self.teacher_entropy_at_most is not None


@dataclass(frozen=True, config=STRICT)
class Term:
    """A further divergence to the teacher, with a set of entries and token weights of its own."""

    objective: Literal[Divergence, OfTokens] = Field(
        description="The divergence, as `objective` of the on-policy phase, or `cross_entropy`: that of the "
        "response's own tokens, for texts that are not the current student's (NPD)."
    )
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


@dataclass(frozen=True, config=STRICT)
class TeacherTexts:
    """The teacher's answers to the same prompts (stage `pseudo`), under a divergence of their own.

    DistiLLM-2 (arXiv 2503.07067): ((2 - b) D(teacher's texts) + b `objective`(student's texts)) / 2.
    """

    objective: Divergence = Field(
        default="skew_forward_kl", description="Divergence on the teacher's texts. DistiLLM-2: this one."
    )
    skew: float = Field(
        default=0.1, gt=0, lt=1, description="Alpha of the skewed divergences. DistiLLM-2: 0.1."
    )
    beta: Share = Field(default=0.5, description="Beta of the Jensen-Shannon divergence.")
    start: float = Field(
        default=1.0, ge=0, le=2, description="b at the first step; the teacher's texts have 2 - b. 1: equal."
    )
    end: float = Field(
        default=1.0,
        ge=0,
        le=2,
        description="b from half of the steps on, reached on a line. DistiLLM-2: 1.5; its released code: 1.",
    )

    def balance(self, progress: float) -> float:
        """b after this share of the steps."""
        return self.start + (self.end - self.start) * min(1.0, 2 * progress)


def problem(s: OnPolicy) -> str:
    """What is wrong with the combination of parts, after their key; "" if nothing is."""
    own = (
        _problem_of_sampled_gradient(s)
        or _problem_of_signal(s)
        or _problem_of_target(s)
        or _problem_of_weights(s)
        or _problem_of_texts(s)
    )
    parts = (_problem_of_signal, _problem_of_target, _problem_of_weights)
    further = (
        (i, next((text for part in parts if (text := part(term))), ""))
        for i, term in enumerate(s.further_terms())
    )
    return own or next((f"also.{i}.{text}" for i, text in further if text), "")


def _problem_of_sampled_gradient(s: OnPolicy) -> str:
    if s.objective == "cross_entropy":
        return "objective: 'cross_entropy' is a term for also; stage sft trains on texts alone"
    if s.baseline_top_k is not None and s.advantage != "centred":
        return "baseline_top_k: only advantage 'centred' has a baseline; leave it out"
    if s.baseline_top_k == 1:
        return "baseline_top_k: a single entry has probability 1 in both; set 2 or more"
    if s.baseline_top_k is not None and s.whiten != "none":
        return "baseline_top_k: it is made with the loss, after whitening; set whiten: none"
    if s.baseline_top_k is not None and s.length_norm:
        return "baseline_top_k: it is that of a sum of rewards; set length_norm: false"
    if s.reward_floor is not None and s.advantage == "expected":
        return "reward_floor: 'expected' takes the mean in place of rewards, which has no floor; leave it out"
    for key in ("baseline_top_k", "reward_floor"):
        if getattr(s, key) is not None and s.objective != "minillm":
            return f"{key}: only objective 'minillm' has rewards; leave it out"
    return ""


def _problem_of_texts(s: OnPolicy) -> str:
    if s.teacher_texts is None:
        return ""
    if s.objective == "minillm":
        return (
            "teacher_texts: the student's texts need a divergence to weigh against; choose another objective"
        )
    for key in ("also", "taid", "assistant", "init_kl"):
        if getattr(s, key):
            return f"teacher_texts: no teacher's text is given to {key}; leave one of them out"
    return ""


def _problem_of_signal(s: OnPolicy) -> str:
    if s.signal is None:
        return ""
    tokens, k = s.signal.tokens, s.signal.top_k
    fixed = tokens in ("all", "sampled")
    if fixed and k:
        return f"signal.top_k: '{tokens}' takes no number; set 0, or other tokens"
    if not fixed and not k:
        return f"signal.top_k: '{tokens}' needs a number; how many entries belong to the set?"
    if s.objective == "cross_entropy":
        return "signal: 'cross_entropy' is of the token alone; leave it out"
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
    uses = (s.objective, s.teacher_texts.objective if s.teacher_texts else "")
    if s.alpha_beta and "alpha_beta" not in uses:
        return f"alpha_beta: objective '{s.objective}' has no such parameters; leave it out"
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
    if w.per_response and s.normaliser != "sequences":
        return "token_weights.per_response: the loss is divided by tokens; set normaliser: sequences"
    if w.switch is not None and (w.log_ratio_at_least is None or w.most_uncertain is None):
        return "token_weights.switch: it is from log_ratio_at_least to most_uncertain; set both"
    if (w.drift is None) != (w.drift_block is None):
        return "token_weights.drift: needs drift_block, and that needs drift; set both or neither"
    return ""
