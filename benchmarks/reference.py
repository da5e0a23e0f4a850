"""MiniLLM with the released code's passes, for comparison: full logits, all padded, nothing kept for reuse.

Which passes are made and what is stored was read in microsoft/LMOps (minillm/minillm: sampler.py, trainer.py,
losses.py, reward.py, utils.py); the code is ours.  A chunk of rollouts costs two generations and three passes
each of teacher and student: the second generation, with a pass of each, only serves a logged reverse KL, and
two of the student's passes compute the same.  An update costs one pass with gradient on rollouts and plain
text together, and one of the teacher on each.  Every row has `prompt` + `response` positions whatever it
holds; every pass makes the logits of all of them, (rows, positions, vocabulary); a boolean mask of filtered
tokens of that size is kept and applied everywhere although nothing is filtered.

In the reference's favour: generation makes only the last position's logits, as today's transformers does, and
masks come from lengths, not from comparing tokens with the padding token.  Whitening and means are over the
micro-batch, as released; the package takes them over the global mini-batch (docs/method.md), which is the
same if the micro-batch is all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel

from minillm.config.onpolicy import OnPolicy
from minillm.runtime.engine import Losses

# A micro-batch: a chunk of rollouts and its texts.
Part = tuple["Samples", Sequence[np.ndarray]]


@dataclass(frozen=True)
class Samples:
    """A padded chunk of rollouts: prompts end, and responses begin, at column `prompt` of the Reference.

    tokens, attention (rows, positions) long; mask (rows, response), 1 on response tokens; logprobs, rewards,
    weights (rows, response); filtered (rows, response, vocabulary) bool, on the CPU; reverse_kl and lengths
    are only logged.
    """

    tokens: Tensor
    attention: Tensor
    mask: Tensor
    logprobs: Tensor
    rewards: Tensor
    weights: Tensor
    filtered: Tensor
    reverse_kl: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class Reference:
    """Both models, the released code's settings (`released`), and what rows are padded to."""

    student: PreTrainedModel
    teacher: PreTrainedModel
    settings: OnPolicy
    prompt: int
    response: int
    eos: int
    pad: int

    # --- padding
    def prompts(self, prompts: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """(tokens, attention) of prompts, left-padded to `prompt`."""
        tokens = torch.full((len(prompts), self.prompt), self.pad)
        attention = torch.zeros((len(prompts), self.prompt), dtype=torch.long)
        for i, prompt in enumerate(prompts):
            tokens[i, self.prompt - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
            attention[i, self.prompt - len(prompt) :] = 1
        return tokens.to(self.student.device), attention.to(self.student.device)

    def responses(self, responses: Sequence[np.ndarray], width: int) -> tuple[Tensor, Tensor]:
        """(tokens, mask) of sequences, right-padded to `width`."""
        tokens = torch.full((len(responses), width), self.pad)
        mask = torch.zeros((len(responses), width), dtype=torch.long)
        for i, response in enumerate(responses):
            tokens[i, : len(response)] = torch.from_numpy(response.astype(np.int64))
            mask[i, : len(response)] = 1
        return tokens.to(self.student.device), mask.to(self.student.device)

    # --- rollouts
    @torch.no_grad()
    def rollout(self, prompts: Sequence[np.ndarray], generator: torch.Generator) -> Samples:
        """Sample a response to each prompt from the mixture, with all that the released sampler computes."""
        tokens, attention = self.prompts(prompts)
        mixed, filtered = self.generate(tokens, attention, generator, mixed=True)
        alone, alone_filtered = self.generate(tokens, attention, generator, mixed=False)
        return self.score(tokens, attention, mixed, filtered, alone, alone_filtered)

    def generate(
        self, prompt: Tensor, attention: Tensor, generator: torch.Generator, mixed: bool
    ) -> tuple[Tensor, Tensor]:
        """(responses, mask of filtered tokens).

        Responses are (rows, response), -1 after their ends; the mask is (rows, response, vocabulary).
        """
        models = [self.student, self.teacher] if mixed else [self.student]
        caches = [DynamicCache(config=model.config) for model in models]
        temperature, alpha = self.settings.temperature, self.settings.alpha
        tokens, positions = prompt, (attention.cumsum(-1) - 1).clamp(min=0)
        running = torch.ones(len(prompt), dtype=torch.bool, device=prompt.device)
        chosen: list[Tensor] = []
        # (rows, vocabulary) per position.
        scores: list[Tensor] = []
        while len(chosen) < self.response and running.any():
            probabilities = []
            for model, cache in zip(models, caches, strict=True):
                output = model(
                    input_ids=tokens,
                    attention_mask=attention,
                    position_ids=positions,
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
                logits = output.logits[:, -1].float() / temperature
                probabilities.append(logits.softmax(-1))
                if model is self.student:
                    scores.append(logits)
            mixture = alpha * probabilities[1] + (1 - alpha) * probabilities[0] if mixed else probabilities[0]
            new = torch.multinomial(mixture, 1, generator=generator).squeeze(-1)
            chosen.append(torch.where(running, new, -1))
            tokens = torch.where(running, new, self.pad).unsqueeze(-1)
            attention = torch.cat([attention, torch.ones_like(tokens)], dim=1)
            positions = positions[:, -1:] + 1
            running = running & (new != self.eos)
        filtered = torch.isinf(torch.stack(scores, dim=1))
        missing = self.response - len(chosen)
        return (
            functional.pad(torch.stack(chosen, dim=1), (0, missing), value=-1),
            functional.pad(filtered, (0, 0, 0, missing)),
        )

    @torch.no_grad()
    def score(
        self,
        prompt: Tensor,
        attention: Tensor,
        responses: Tensor,
        filtered: Tensor,
        alone: Tensor,
        alone_filtered: Tensor,
    ) -> Samples:
        """The passes that follow the two generations; responses are -1 after their ends."""
        mask = (responses >= 0).long()
        tokens = torch.cat([prompt, responses.masked_fill(responses < 0, self.pad)], dim=1)
        both = torch.cat([attention, mask], dim=1)
        teacher_rewards = self.reward(tokens, both, mask)
        rollout_logprobs = self.logprobs(self.student, tokens, both, mask, filtered)

        alone_mask = (alone >= 0).long()
        alone_tokens = torch.cat([prompt, alone.masked_fill(alone < 0, self.pad)], dim=1)
        alone_both = torch.cat([attention, alone_mask], dim=1)
        log_ratio = self.reward(alone_tokens, alone_both, alone_mask)
        log_ratio = log_ratio - self.logprobs(
            self.student, alone_tokens, alone_both, alone_mask, alone_filtered
        )
        reverse_kl = (log_ratio.float().exp() - 1 - log_ratio) * alone_mask

        teacher_logprobs = self.logprobs(self.teacher, tokens, both, mask, filtered)
        # The same as rollout_logprobs.
        logprobs = self.logprobs(self.student, tokens, both, mask, filtered)
        s = self.settings
        mixture = (1 - s.alpha) * rollout_logprobs.float().exp() + s.alpha * teacher_logprobs.float().exp()
        weights = (logprobs - mixture.log()).exp()
        rewards = ((teacher_rewards - logprobs) / s.reward_scale).clamp(-s.reward_clip, s.reward_clip)
        return Samples(
            tokens, both, mask, logprobs, rewards, weights, filtered.cpu(), reverse_kl, alone_mask.sum(1)
        )

    def logits(self, model: nn.Module, tokens: Tensor, attention: Tensor) -> Tensor:
        """Logits of all positions, with padding: (rows, positions, vocabulary) in the model's precision."""
        positions = (attention.cumsum(-1) - 1).clamp(min=0)
        logits: Tensor = model(
            input_ids=tokens, attention_mask=attention, position_ids=positions, use_cache=False
        ).logits
        return logits

    def response_logits(
        self, model: nn.Module, tokens: Tensor, attention: Tensor, filtered: Tensor
    ) -> Tensor:
        """The logits that predict the response, (rows, response, vocabulary)."""
        logits = self.logits(model, tokens, attention) / self.settings.temperature
        return logits[:, -self.response - 1 : -1].masked_fill(filtered.to(logits.device), -torch.inf)

    def logprobs(
        self, model: nn.Module, tokens: Tensor, attention: Tensor, mask: Tensor, filtered: Tensor
    ) -> Tensor:
        """Log-probabilities of the response tokens, (rows, response), 0 on padding."""
        return self.chosen_logprobs(
            self.response_logits(model, tokens, attention, filtered), tokens, mask, filtered
        )

    def chosen_logprobs(self, logits: Tensor, tokens: Tensor, mask: Tensor, filtered: Tensor) -> Tensor:
        every = logits.log_softmax(-1).masked_fill(filtered.to(logits.device), -torch.inf)
        return (
            every.gather(-1, tokens[:, -self.response :].unsqueeze(-1))
            .squeeze(-1)
            .masked_fill(mask == 0, 0.0)
        )

    def reward(self, tokens: Tensor, attention: Tensor, mask: Tensor) -> Tensor:
        """The teacher's log-probabilities: centred logit minus log-sum-exp, without temperature."""
        logits = self.logits(self.teacher, tokens, attention)
        logits = logits - logits.mean(-1, keepdim=True)
        logits = (logits * attention.unsqueeze(-1))[:, -self.response - 1 : -1]
        chosen = logits.gather(-1, tokens[:, -self.response :].unsqueeze(-1)).squeeze(-1)
        return (chosen - logits.logsumexp(-1)) * mask

    # --- updates
    def losses(
        self, model: nn.Module, chunks: Sequence[Samples], texts: Sequence[np.ndarray]
    ) -> tuple[list[Part], Callable[[Part], Losses]]:
        """(micro-batches, each a chunk with its share of the texts; the loss of one).

        Gradients flow through `model`.  The losses sum to the mini-batch's: the mean of its micro-batches'
        losses.
        """
        share = len(texts) // len(chunks)

        def loss(part: Part) -> Losses:
            return torch.stack(list(self.terms(model, *part).values())).sum() / len(chunks), {}

        return [(chunk, texts[i * share : (i + 1) * share]) for i, chunk in enumerate(chunks)], loss

    def terms(self, model: nn.Module, samples: Samples, texts: Sequence[np.ndarray]) -> dict[str, Tensor]:
        """The terms of one micro-batch's loss, from one pass of the student on rollouts and plain text."""
        tokens, attention = samples.tokens, samples.attention
        if len(texts):
            text, present = self.responses(texts, tokens.shape[1])
            tokens, attention = torch.cat([tokens, text]), torch.cat([attention, present])
        logits = self.logits(model, tokens, attention)
        count = len(samples.tokens)
        terms = self.rollout_terms(samples, logits[:count])
        if len(texts):
            terms["plain_text"] = self.settings.lm_coef * self.text_loss(text, present, logits[count:])
        return terms

    def rollout_terms(self, samples: Samples, logits: Tensor) -> dict[str, Tensor]:
        s, mask = self.settings, samples.mask
        filtered = samples.filtered.to(logits.device)
        logits = (logits / s.temperature)[:, -self.response - 1 : -1].masked_fill(filtered, -torch.inf)
        new = self.chosen_logprobs(logits, samples.tokens, mask, filtered)
        ratio = ((new - samples.logprobs) * mask).float().exp() * samples.weights
        advantages = self.advantages(samples.rewards, mask)
        worst = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - s.clip, 1 + s.clip))
        with torch.no_grad():
            theirs = self.response_logits(self.teacher, samples.tokens, samples.attention, filtered)
        values = cross_entropy(logits, theirs, filtered) - cross_entropy(logits, logits, filtered)
        return {
            "long_term": (worst * mask).sum() / mask.sum(),
            "single_step": (values * mask).sum() / mask.sum(),
        }

    def advantages(self, rewards: Tensor, mask: Tensor) -> Tensor:
        """Discounted sums of this and later rewards over the number of tokens left, whitened.

        Whitening is over all positions.
        """
        rewards = rewards.float()
        left = mask.flip(1).cumsum(1).flip(1).clamp(min=1)
        total = torch.zeros_like(rewards[:, 0])
        columns = []
        for t in reversed(range(rewards.shape[1])):
            total = rewards[:, t] + self.settings.gamma * total
            columns.append(total)
        values = torch.stack(columns[::-1], dim=1) / left
        return (values - values.mean()) * torch.rsqrt(values.var(correction=0) + 1e-8)

    def text_loss(self, text: Tensor, present: Tensor, logits: Tensor) -> Tensor:
        """Cross-entropy with the next token, mixed with that with the teacher (forward KL plus entropy)."""
        labels = functional.pad(text.masked_fill(present == 0, -100)[:, 1:], (0, 1), value=-100)
        nll = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        with torch.no_grad():
            theirs = self.logits(self.teacher, text, present)
        values = (
            -(theirs.softmax(-1, dtype=torch.float32) * logits.log_softmax(-1, dtype=torch.float32))
            .masked_fill(torch.isinf(logits), 0.0)
            .sum(-1)
        )
        valid = labels != -100
        ratio = self.settings.lm_kd_ratio
        return (1 - ratio) * nll + ratio * (values * valid).sum() / valid.sum()


def cross_entropy(logits: Tensor, others: Tensor, filtered: Tensor) -> Tensor:
    """-sum q log p of each position, (rows, response), q from `logits` and p from `others`, in float32."""
    nowhere = torch.isinf(logits) | torch.isinf(others) | filtered
    shares = logits.softmax(-1, dtype=torch.float32)
    logs = others.log_softmax(-1, dtype=torch.float32).masked_fill(nowhere, 0.0)
    return -(shares * logs).sum(-1)
