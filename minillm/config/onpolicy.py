"""Settings of the on-policy phase, and which of them do not go together (presets.py has its presets)."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from minillm.config.objective_parts import (
    AlphaBeta,
    Assistant,
    Divergence,
    OfTokens,
    Signal,
    Taid,
    TeacherTexts,
    Term,
    TokenWeights,
    problem,
)
from minillm.config.sampler import Sampler
from minillm.config.sampler import problem as problem_of_sampler
from minillm.config.sampling import COLDEST, Backend
from minillm.config.strict import STRICT, Count, Natural, NonNegative, Positive, Share
from minillm.config.teaching import Gold, Teaching, problem_of_teaching
from minillm.errors import UserError

Objective = Literal["minillm", Divergence, OfTokens]


@dataclass(frozen=True, config=STRICT)
class OnPolicy:
    """The on-policy phase: where samples come from, their loss, and how to train (docs/method.md)."""

    semantics: Literal["default", "paper", "released", "first_release"] = Field(
        default="default",
        description="Preset for all keys that the configuration sets nowhere. `paper`: the objective as "
        "printed; `released`: the authors' code of 2025; `first_release`: that under the schedule of 2023, "
        "which made the published numbers; `default`: the defaults listed here.",
    )
    lr: Positive = Field(default=5e-6, description="Learning rate after warm-up. The paper: 5e-6.")
    collections: Count = Field(
        default=312,
        description="Rounds of sampling, each followed by `inner_epochs` * `rollouts` / `batch` optimizer "
        "steps. The paper: 5,000 steps, here 312 * 16 = 4,992.",
    )
    rollouts: Count = Field(
        default=256,
        description="Prompts that are answered in each collection, a multiple of `batch`. The paper: 256.",
    )
    batch: Count = Field(default=64, description="Global mini-batch in responses. The paper: 64.")
    inner_epochs: Count = Field(default=4, description="Passes over each collection. The paper: 4.")
    alpha: float = Field(
        default=0.2,
        ge=0,
        lt=1,
        description="The teacher's share in the distribution that responses are sampled from (Eq. 4); 0 "
        "samples only from the student. The paper: 0.2.",
    )
    # If the default is to be a number: here, and without "coins" in files.NEWER, so that null is written.
    coins: Natural | None = Field(
        default=None,
        description="How teacher and student are mixed. `null`: each token is drawn from the mixture. A "
        "number: a coin shared by a group of so many rows of a collection (0: by all) says which of the two "
        "draws, and the teacher reads only where it draws, all tokens since the last time at once. No row's "
        "distribution changes (docs/estimators.md). With `alpha` 0 the teacher reads once, at the end.",
    )
    backend: Backend = Field(
        default="transformers",
        description="Which program samples the student's responses, as in `generate`; `vllm` needs `alpha` "
        "0. Log-probabilities are those of a pass of our own (docs/running.md).",
    )
    temperature: Positive = Field(
        default=1.0,
        description="Temperature of student and teacher when sampling, and in the losses. The paper: 1.",
    )
    max_tokens: Count = Field(
        default=256,
        description="Longest response, in tokens, EOS included. The paper: 512, prompt included.",
    )
    student_share: Share = Field(
        default=1.0,
        description="Share of the rows that the student answers (GKD's lambda); the others keep their gold "
        "response. MiniLLM needs 1.",
    )
    adaptive: bool = Field(
        default=False,
        description="Raise the student's share by 0.1 whenever the dev loss has risen by 0.1 (DistiLLM). "
        "Needs `student_share` below 1 and at least 2 `evaluations`.",
    )
    replay: Natural = Field(
        default=0,
        description="Capacity, in responses, of a buffer of earlier samples, which replaces more and more of "
        "the new ones as training progresses (DistiLLM); 0: none.",
    )
    # Null is not written into settings files (files.NEWER).
    sampler: Sampler | None = Field(
        default=None,
        description="Samples that are not simply drawn from the current student or mixture: with top-p, "
        "corrected by the teacher, by an older student, or ended early; `null`: off.",
    )
    objective: Objective = Field(
        default="minillm",
        description="`minillm`: the single-step term plus the long term of the policy gradient. Any other: "
        "the mean of that divergence between teacher and student over the tokens of the responses; "
        "`cross_entropy` is only for `also`.",
    )
    beta: Share = Field(
        default=0.5,
        description="Beta of the Jensen-Shannon divergence: 0 is the forward KL, 1 the reverse KL.",
    )
    skew: float = Field(
        default=0.1,
        gt=0,
        lt=1,
        description="Alpha of the skewed divergences: the share of the first distribution in the mixture "
        "that it is compared with.",
    )
    # Keys that are newer than others' results: None, and in files.NEWER.
    alpha_beta: AlphaBeta | None = Field(
        default=None, description="Parameters of `objective: alpha_beta`; `null`: their defaults."
    )
    signal: Signal | None = Field(
        default=None,
        description="Which entries of the vocabulary the divergence sums over, for `minillm` in its "
        "single-step term; `null`: all.",
    )
    taid: Taid | None = Field(
        default=None, description="A target that moves from student to teacher; `null`: the teacher."
    )
    assistant: Assistant | None = Field(
        default=None, description="A mixture in the place of student or teacher; `null`: none."
    )
    token_weights: TokenWeights | None = Field(
        default=None,
        description="Factors of each token's terms: of its divergence, and of its advantage; `null`: none.",
    )
    also: tuple[Term, ...] | None = Field(
        default=None, description="Further divergences to the teacher, added to the loss; `null`: none."
    )
    teacher_texts: TeacherTexts | None = Field(
        default=None,
        description="The teacher's answer to each prompt as well, under a divergence of its own "
        "(DistiLLM-2); `batch` then counts prompts. `null`: none.",
    )
    baseline_top_k: Count | None = Field(
        default=None,
        description="With `advantage: centred`: the baseline is the reverse KL over the student's so many "
        "likeliest tokens, renormalised, at each update (vOPD, there 100); `null`: that over all, recorded.",
    )
    reward_floor: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Log-ratios are rewards from log(x / (1 - x)) up, lower ones count as that (REOPOLD's "
        "lambda, there 0.2); `null`: no floor.",
    )
    gold: Gold | None = Field(
        default=None,
        description="Cross-entropy on the gold answers of the same prompts, added to the loss; `null`: none.",
    )
    extrapolate: Positive | None = Field(
        default=None,
        description="The target's logits are this times the teacher's plus the rest to 1 times the initial "
        "student's (ExOPD's lambda, there 1.25); `null`: the teacher's.",
    )
    teacher: Teaching | None = Field(
        default=None, description="Who teaches, and by which prompt; `null`: the teacher of the pair."
    )
    advantage: Literal["returns", "expected", "centred"] = Field(
        default="returns",
        description="Advantage in the long term. `returns`: the rewards that follow. `expected`: each of "
        "them replaced by its conditional mean, minus the reverse KL of its position. `centred`: this "
        "token's reward too, plus the reverse KL here as its baseline, in place of the single-step term.",
    )
    single_step: bool = Field(
        default=True,
        description="Include the single-step term (Eq. 3). Without it, this token's reward counts only with "
        "`include_current` or `advantage: centred`.",
    )
    single_step_weights: bool = Field(
        default=True,
        description="Multiply the single-step term by the importance weights. The paper: true (Eq. 5, D1).",
    )
    include_current: bool = Field(
        default=False,
        description="Include this token's reward in the returns of the long term. The paper: false (D2).",
    )
    gamma: Share = Field(
        default=1.0,
        description="Discount per token of the rewards that follow. The paper: 1 (D3).",
    )
    length_norm: bool = Field(
        default=True,
        description="Divide returns by the number of their rewards (Eq. 6). The paper: true (D5).",
    )
    whiten: Literal["none", "tokens", "positions"] = Field(
        default="tokens",
        description="Whiten advantages over the global mini-batch: over response tokens, or over all "
        "`max_tokens` positions of each row, absent ones as zeros. The paper: none (D6).",
    )
    reward_scale: Positive = Field(default=1.0, description="Rewards are divided by it. The paper: 1 (D7).")
    reward_clip: NonNegative = Field(
        default=0.0,
        description="Clip scaled rewards to plus or minus this; 0: no clip, as in the paper (D7).",
    )
    surrogate: Literal["ppo", "paper"] = Field(
        default="ppo",
        description="How the clipped ratio enters the long term. `ppo`: max(-A r, -A clip(r)); `paper`: -A "
        "min(r, clip(r)), which does not bound the update where the advantage A is negative (D8).",
    )
    clip: NonNegative = Field(
        default=0.2,
        description="The ratio is clipped to 1 plus or minus this; 0: no clip. The paper: 0.2.",
    )
    importance: Literal["token", "product", "none"] = Field(
        default="token",
        description="Importance weights of Eq. 5. `token`: the last factor, the paper's approximation (D9); "
        "`product`: the whole product; `none`: 1.",
    )
    normaliser: Literal["tokens", "sequences"] = Field(
        default="tokens",
        description="What sums over tokens are divided by, in the plain-text loss too: the number of tokens, "
        "or of responses. The paper: sequences.",
    )
    lm_coef: NonNegative = Field(
        default=1.0,
        description="Weight of the pre-training loss on plain text; 0 leaves it out. The `paper` preset: 1.",
    )
    lm_kd_ratio: Share = Field(
        default=0.5,
        description="Share of forward KL to the teacher in the pre-training loss; language modelling has the "
        "rest. The paper: 0 (D10).",
    )
    lm_batch: Natural = Field(
        default=0,
        description="Chunks of plain text per update, over all processes; 0 takes as many as `batch`.",
    )
    init_kl: NonNegative = Field(
        default=0.0,
        description="Weight of a reverse KL to the initial student; 0: none, as in the paper (D28).",
    )
    stop_length: NonNegative = Field(
        default=0.0,
        description="Stop when the mean response length of a collection is more than this factor above or "
        "below the first one's. Above 1; 0 never stops.",
    )
    stop_kl: NonNegative = Field(
        default=0.0,
        description="Stop when the reverse KL of a collection exceeds the first one's by more than this "
        "factor. Above 1; 0 never stops.",
    )
    schedule: Literal["constant", "cosine"] = Field(
        default="constant",
        description="Learning rate after warm-up: constant, or a cosine from `lr` down to `min_lr`.",
    )
    min_lr: NonNegative = Field(default=1e-7, description="Learning rate at the end of the cosine schedule.")
    warmup: Natural = Field(
        default=100,
        description="Optimizer steps over which the learning rate rises linearly to `lr`.",
    )
    weight_decay: NonNegative = Field(
        default=1e-6,
        description="AdamW's weight decay, on weight matrices only: biases and norms have none.",
    )
    betas: tuple[Share, Share] = Field(
        default=(0.9, 0.95),
        description="AdamW's decay rates of the running means of gradient and squared gradient.",
    )
    clip_norm: Positive = Field(
        default=1.0,
        description="Gradients are scaled down to this global L2 norm if theirs is larger.",
    )
    dropout: bool = Field(
        default=False,
        description="Keep the model's own dropout active during updates; the old log-probabilities were "
        "recorded without it (D12).",
    )
    evaluations: Count = Field(
        default=1,
        description="Dev evaluations over the whole run, evenly spaced, the last one at the end. The "
        "checkpoint with the best dev ROUGE-L is kept, as in the paper.",
    )
    dev_rows: Natural = Field(default=0, description="Evaluate on the first so many dev rows; 0: all.")

    @property
    def teacher_reads(self) -> bool:
        """Whether the teacher reads along when responses are sampled.

        It has a share in the sampling, or its log-probabilities are rewards, or watched, or weights.
        """
        weighs = any(weights.of_teacher for weights in self.every_token_weights)
        along = self.sampler is not None and self.sampler.reads_along
        return self.alpha > 0 or self.objective == "minillm" or self.stop_kl > 0 or weighs or along

    def further_terms(self) -> list[OnPolicy]:
        """The settings under which each term of `also` would be the objective."""
        parts = ("objective", "beta", "skew", "alpha_beta", "signal", "token_weights")
        none: dict[str, Any] = dict.fromkeys(
            ("taid", "assistant", "also", "gold", "extrapolate", "teacher", "teacher_texts")
        )
        return [
            dataclasses.replace(self, **none, **{name: getattr(term, name) for name in parts})
            for term in self.also or ()
        ]

    def on_teacher_texts(self) -> OnPolicy:
        """The settings under which the divergence on the teacher's texts would be the objective."""
        texts = self.teacher_texts or TeacherTexts()
        none: dict[str, Any] = dict.fromkeys(("teacher_texts", "signal", "token_weights"))
        own: dict[str, Any] = {name: getattr(texts, name) for name in ("objective", "skew", "beta")}
        return dataclasses.replace(self, **none, **own)

    @property
    def steps_of_collection(self) -> int:
        """Optimizer steps on the samples of one collection."""
        return self.inner_epochs * (self.rollouts // self.batch)

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole phase."""
        return self.collections * self.steps_of_collection

    @property
    def anchored(self) -> bool:
        """Whether the loss needs the initial student's logits."""
        return self.init_kl > 0 or self.extrapolate is not None

    @property
    def keeps_teacher(self) -> bool:
        """Whether the teacher's hidden states can be kept for a collection: one model, which stays."""
        return self.teacher is None or not (self.teacher.moves or self.teacher.panel)

    @property
    def every_token_weights(self) -> list[TokenWeights]:
        """Those of the objective and of the further terms."""
        terms: list[OnPolicy | Term] = [self, *(self.also or ())]
        return [term.token_weights for term in terms if term.token_weights is not None]

    @property
    def teacher_scores(self) -> bool:
        """Whether the loss needs the teacher's logits."""
        centred_here = self.baseline_top_k is not None
        return self.objective != "minillm" or self.single_step or centred_here or bool(self.also)


def check_on_policy(settings: OnPolicy, where: str, under: str) -> None:
    """Raises UserError, one line naming `where` and the key, for combinations that mean nothing."""
    checks = (problem_of_loop, problem_of_sampler, problem, problem_of_teaching)
    if wrong := next(filter(None, (check(settings) for check in checks)), ""):
        raise UserError(f"{where}: {under}.{wrong}")


def problem_of_loop(s: OnPolicy) -> str:
    """The first of the keys of the loop that do not go together, and why; "" if all do."""
    others = {"student_share": s.student_share < 1, "adaptive": s.adaptive, "replay": s.replay > 0}
    older = next((key for key, used in others.items() if used), "")
    limit = next((key for key in ("stop_length", "stop_kl") if 0 < getattr(s, key) <= 1), "")
    problems = (
        (
            s.rollouts % s.batch > 0,
            f"batch: {s.rollouts} rollouts are not a whole number of mini-batches of {s.batch}",
        ),
        (
            s.objective == "minillm" and older != "",
            f"{older}: the long term needs samples of the current student; "
            "choose another objective or leave this off",
        ),
        (
            s.advantage == "centred" and s.single_step,
            "advantage: 'centred' replaces the single-step term; set single_step: false",
        ),
        (
            s.advantage == "expected" and s.include_current,
            "advantage: 'expected' covers the rewards that follow, not the token's own; "
            "set include_current: false",
        ),
        (
            s.adaptive and (s.student_share == 1 or s.evaluations < 2),
            "adaptive: the share of samples grows at dev evaluations; "
            "set student_share below 1 and evaluations to 2 or more",
        ),
        (
            s.backend == "vllm" and s.alpha > 0,
            "backend: vLLM samples from the student only; set alpha: 0.0, or backend: transformers",
        ),
        (
            s.backend == "vllm" and s.temperature < COLDEST,
            f"backend: vLLM draws with a temperature of {COLDEST} instead of a lower one",
        ),
        (limit != "", f"{limit}: must be a factor above 1, or 0 for none"),
    )
    return next((text for wrong, text in problems if wrong), "")
