"""The loss of a tile of sampled tokens, compiled on request: its terms by name."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from minillm import objectives
from minillm.config.onpolicy import OnPolicy
from minillm.models.head import token_logprobs
from minillm.models.tiled_loss import Terms
from minillm.training.divergences import token_divergence, top_k_baseline


@dataclass(frozen=True)
class AnswerLoss:
    """The divergence on the teacher's own texts (DistiLLM-2), summed over the tokens."""

    # `OnPolicy.on_teacher_texts`.
    settings: OnPolicy

    def __call__(
        self, logits: Tensor, tokens: Tensor, teacher_logits: Tensor, factors: Tensor | None
    ) -> Terms:
        """Logits (n, vocabulary), the texts' `tokens` and `factors` of their terms (n,)."""
        values = token_divergence(self.settings, logits, teacher_logits, tokens)
        return {"teacher_texts": (values if factors is None else values * factors).sum()}, {}


@dataclass(frozen=True)
class SampleLoss:
    """The loss's terms by name, sums over the tokens; also counts those whose ratio is outside 1 +- clip.

    "minillm": the single-step term plus the long term (Eq. 5 with Eq. 6); any other objective: its
    divergence. Whether the surrogate clips such a ratio depends on the advantage.
    """

    settings: OnPolicy
    # `settings.further_terms()`.
    further: tuple[OnPolicy, ...] = ()

    def __call__(
        self,
        logits: Tensor,
        tokens: Tensor,
        old_logprobs: Tensor,
        weights: Tensor,
        advantages: Tensor,
        teacher_logits: Tensor | None,
        initial_logits: Tensor | None,
        target: Tensor | None = None,
        shares: Tensor | None = None,
        *factors: Tensor | None,
    ) -> Terms:
        """Logits (n, vocabulary), `target` a scalar (TAID's t), all others (n,).

        `shares`, (further terms,), is what is left of the coefficients of those that fall with the steps.

        `factors` are the token weights of the objective, which are in the advantages already, and of each
        further term; there may be none at all.
        """

        def weighted(values: Tensor, term: int = 0) -> Tensor:
            by = factors[term] if factors else None
            return values if by is None else values * by

        s, losses, counts = self.settings, dict[str, Tensor](), dict[str, Tensor]()
        if s.objective != "minillm":
            assert teacher_logits is not None
            aim = teacher_logits
            if s.extrapolate is not None:
                assert initial_logits is not None
                aim = objectives.extrapolated(teacher_logits, initial_logits, s.extrapolate)
            values = token_divergence(s, logits, aim, tokens, target)
            losses[s.objective] = weighted(values).sum()
        else:
            new = token_logprobs(logits, tokens)
            if s.baseline_top_k is not None and teacher_logits is not None:
                baseline = weighted(top_k_baseline(s, logits, teacher_logits))
                advantages = advantages + baseline / s.reward_scale
            losses["long_term"] = objectives.policy_gradient_loss(
                new, old_logprobs, advantages, torch.ones_like(new),
                weights=weights, clip=s.clip or None, surrogate=s.surrogate, denominator=1,
            )  # fmt: skip
            if s.clip:
                ratio = torch.exp(new.detach() - old_logprobs) * weights
                counts["outside"] = ((ratio - 1.0).abs() > s.clip).sum()
            if teacher_logits is not None and s.single_step:
                values = weighted(token_divergence(s, logits, teacher_logits, tokens))
                losses["single_step"] = (values * weights if s.single_step_weights else values).sum()
        for i, (term, part) in enumerate(zip(self.further, s.also or (), strict=True), 1):
            assert teacher_logits is not None
            values = weighted(token_divergence(term, logits, teacher_logits, tokens), i)
            total = part.coefficient * values.sum()
            losses[f"also_{i}"] = total if shares is None else total * shares[i - 1].to(total.dtype)
        if initial_logits is not None and s.init_kl:
            losses["init_kl"] = s.init_kl * objectives.reverse_kl(logits, initial_logits).sum()
        return losses, counts
