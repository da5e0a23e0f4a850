"""Rollouts sampled by vLLM with the student's current weights, recorded by a pass of our own (alpha 0).

vLLM says which tokens were drawn, and nothing else: old log-probabilities, the teacher's, reverse KL and
entropy are computed here, by the models and in the precision of the updates.  vLLM rounds differently, so
tokens are drawn from a distribution that is the recorded one up to rounding.

It starts anew for each collection: weights that it reloads in place may be wrong (a GPT-2 on a CPU, vLLM
0.32.0), and between collections the updates have the GPU to themselves.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from minillm.config.onpolicy import OnPolicy
from minillm.config.sampling import Sampling
from minillm.data.batching import at_once, collate, least_padding
from minillm.files import whole_folder
from minillm.models.head import head_of, response_hidden
from minillm.models.saving_cut import save_cut
from minillm.runtime.engine import Engine
from minillm.sampling.answerer import Request
from minillm.sampling.response import How, Mixture, Record, Response
from minillm.sampling.scored import values_of
from minillm.sampling.vllm_backend import Vllm, python


class VllmRollouts:
    """vLLM next to a training: one process of it for each of the training's, with the same weights."""

    def __init__(self, engine: Engine, settings: OnPolicy, precision: str) -> None:
        self.engine, self.precision, self.folder = engine, precision, engine.folder / "vllm"
        self.sampling = Sampling(
            temperature=settings.temperature,
            top_p=settings.sampler.top_p if settings.sampler else 1.0,
            max_tokens=settings.max_tokens,
            backend="vllm",
        )
        # Now, rather than after the first evaluation of the dev set.
        python()

    def sample(
        self,
        prompts: Sequence[np.ndarray],
        rows: Sequence[int],
        *,
        seed: int,
        step: int,
        ends: Sequence[int],
        pad: int,
        vocabulary: int,
        mixture: Mixture | None,
    ) -> list[Response]:
        """As `sampling.sample.sample` with `record`, in `engine.whole()`; every rank must call."""
        engine = self.engine

        def write() -> None:
            if engine.world.rank == 0:
                with whole_folder(self.folder) as partial:
                    save_cut(engine.model, vocabulary, partial)

        engine.world.together(write, f"{self.folder}: cannot be written")
        requests = [
            Request((i,), row, seed, prompt, step)
            for i, (row, prompt) in enumerate(zip(rows, prompts, strict=True))
        ]
        # The weights were cut when they were written: there is no copy.
        scratch = engine.folder / f"vllm-copy{engine.world.rank}"
        vllm = Vllm(self.folder, self.precision, engine.world, engine.launch.vllm_memory, scratch)
        try:
            answers = {
                q.key[0]: answer for q, answer in vllm.answers(requests, self.sampling, ends[0], vocabulary)
            }
        finally:
            vllm.close()
        engine.world.barrier()
        if engine.world.rank == 0:
            shutil.rmtree(self.folder)
        responses = [answers[i].tokens for i in range(len(prompts))]
        launch = engine.launch
        how = How(
            self.sampling, seed, step, ends, pad, vocabulary, True, launch.eval_batch, launch.eval_tokens
        )
        records = scored(engine.model, mixture, prompts, responses, how)
        return [Response(answers[i].tokens, answers[i].finished, records[i]) for i in range(len(prompts))]


@torch.no_grad()
def scored(
    student: PreTrainedModel,
    mixture: Mixture | None,
    prompts: Sequence[np.ndarray],
    responses: Sequence[np.ndarray],
    how: How,
) -> list[Record]:
    """What sampling from the student alone would have recorded of the responses: one pass of each model.

    Without a teacher (`mixture`) its values are the student's.
    """
    device = next(student.parameters()).device
    own = head_of(student, how.vocabulary, how.sampling.temperature)
    records: dict[int, Record] = {}
    for part in least_padding(
        range(len(prompts)),
        lambda i: len(prompts[i]) + len(responses[i]),
        how.batch,
        at_once(device, how.budget),
    ):

        def states(model: PreTrainedModel, shown: Sequence[np.ndarray], part: list[int] = part) -> Tensor:
            batch = collate([(shown[i], responses[i]) for i in part], how.pad).to(device)
            return response_hidden(model, batch)

        students, teachers, head = states(student, prompts), None, own
        if mixture is not None:
            shown = prompts if mixture.prompts is None else mixture.prompts
            teachers = states(mixture.teacher, shown)
            head = head_of(mixture.teacher, how.vocabulary, how.sampling.temperature, how.swap(mixture))
        tokens = torch.from_numpy(np.concatenate([responses[i] for i in part]).astype(np.int64)).to(device)
        values = values_of(
            (own, head), students, students if teachers is None else teachers, tokens, 0.0
        ).cpu()
        lengths = [len(responses[i]) for i in part]
        kept = [None] * len(part) if teachers is None else teachers.cpu().split(lengths)
        for i, of_row, hidden in zip(part, values.float().split(lengths, dim=1), kept, strict=True):
            # Copies: a view would keep, and perhaps send, the arrays of the whole batch.
            record = Record(*of_row.numpy().copy())
            records[i] = (
                record if hidden is None else dataclasses.replace(record, teacher_hidden=hidden.clone())
            )
    return [records[i] for i in range(len(prompts))]
