"""Rollouts sampled by vLLM with the student's current weights, recorded by a pass of our own (alpha 0).

vLLM says which tokens were drawn, and nothing else: old log-probabilities, the teacher's, reverse KL and
entropy are computed here, by the models and in the precision of the updates.  vLLM rounds differently, so
tokens are drawn from a distribution that is the recorded one up to rounding.

It starts anew for each collection: weights that it reloads in place may be wrong (a GPT-2 on a CPU, vLLM
0.32.0), and between collections the updates have the GPU to themselves.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from minillm.config.onpolicy import OnPolicy
from minillm.config.sampling import Sampling
from minillm.data.batching import at_once, collate, least_padding
from minillm.files import whole_folder
from minillm.models.head import head_of, response_hidden, response_tokens
from minillm.models.saving_cut import save_cut
from minillm.models.tiled_loss import tile_of, tiles
from minillm.runtime.engine import Engine
from minillm.sampling.answerer import Request
from minillm.sampling.draw import token_values
from minillm.sampling.sample import Record, Response
from minillm.sampling.vllm_backend import Vllm, python


class VllmRollouts:
    """vLLM next to a training: one process of it for each of the training's, with the same weights."""

    def __init__(self, engine: Engine, settings: OnPolicy, precision: str) -> None:
        self.engine, self.precision, self.folder = engine, precision, engine.folder / "vllm"
        self.sampling = Sampling(
            temperature=settings.temperature, max_tokens=settings.max_tokens, backend="vllm"
        )
        # Now, rather than after the first evaluation of the dev set.
        python()

    def sample(
        self,
        prompts: Sequence[np.ndarray],
        rows: Sequence[int],
        teacher: PreTrainedModel | None,
        *,
        seed: int,
        step: int,
        eos: int,
        pad: int,
        vocabulary: int,
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
                q.key[0]: answer for q, answer in vllm.answers(requests, self.sampling, eos, vocabulary)
            }
        finally:
            vllm.close()
        engine.world.barrier()
        if engine.world.rank == 0:
            shutil.rmtree(self.folder)
        responses = [answers[i].tokens for i in range(len(prompts))]
        launch = engine.launch
        records = scored(
            engine.model,
            teacher,
            list(zip(prompts, responses, strict=True)),
            vocabulary,
            self.sampling.temperature,
            pad,
            launch.eval_batch,
            launch.eval_tokens,
        )
        return [Response(answers[i].tokens, answers[i].finished, records[i]) for i in range(len(prompts))]


@torch.no_grad()
def scored(
    student: PreTrainedModel,
    teacher: PreTrainedModel | None,
    examples: Sequence[tuple[np.ndarray, np.ndarray]],
    vocabulary: int,
    temperature: float,
    pad: int,
    batch: int,
    budget: int,
) -> list[Record]:
    """What sampling from the student alone would have recorded of (prompt, response) pairs.

    One pass of each model.  `batch` and `budget`: most rows and positions at once, as in `sample`.  Without a
    teacher its values are the student's.
    """
    device = next(student.parameters()).device
    models = [student, teacher] if teacher is not None else [student]
    heads = [head_of(model, vocabulary, temperature) for model in models]
    records: dict[int, Record] = {}
    for part in least_padding(
        range(len(examples)), lambda i: sum(map(len, examples[i])), batch, at_once(device, budget)
    ):
        together = collate([examples[i] for i in part], pad).to(device)
        states = [response_hidden(model, together) for model in models]
        tokens = response_tokens(together).unsqueeze(-1)
        values = torch.zeros((5, len(tokens)))
        for tile in tiles(len(tokens), vocabulary, tile_of(device)):
            both = [
                head.logits(hidden[tile]).log_softmax(-1) for head, hidden in zip(heads, states, strict=True)
            ]
            q, at = both[0].exp(), tokens[tile]
            values[:, tile] = token_values(both[0], both[-1], q, q.gather(-1, at), at).float().cpu()
        lengths = [len(examples[i][1]) for i in part]
        kept = states[1].cpu().split(lengths) if teacher is not None else [None] * len(part)
        for i, own, hidden in zip(part, values.split(lengths, dim=1), kept, strict=True):
            # Copies: a view would keep, and perhaps send, the arrays of the whole batch.
            theirs = None if hidden is None else hidden.clone()
            logs, read, mixed, reverse, entropy = own.numpy().copy()
            records[i] = Record(logs, read, mixed, reverse, entropy, theirs)
    return [records[i] for i in range(len(examples))]
