"""MiniLLM in a plain PyTorch loop: both terms of its objective, no pipeline and no DeepSpeed.

    python examples/own_trainer.py [--teacher FOLDER --student FOLDER --prompts FILE --out FOLDER --lr 1e-5]

Without folders it distils one tiny random model into another, in seconds on a CPU.  The folders hold Hugging
Face models that share a tokenizer, FILE has one prompt a line.  Equations: docs/method.md.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

import minillm

ALPHA = 0.2  # the teacher's share in sampling (Eq. 4)
CLIP = 0.2  # of the importance ratio (Algorithm 1)
BATCH, UPDATES, INNER_EPOCHS = 32, 4, 2  # samples per update, updates per pass over a collection, passes


def tiny_model(layers: int, width: int, seed: int) -> GPT2LMHeadModel:
    """A random model over 48 tokens whose distributions are far from uniform."""
    torch.set_num_threads(1)  # enough at this size
    torch.manual_seed(seed)
    shape = {"n_layer": layers, "n_embd": width, "n_head": 2, "vocab_size": 48, "initializer_range": 0.3}
    return GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=0, eos_token_id=0)).eval()


def credit(responses: list) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of every sampled token: mask, log q, w_t and advantage, (samples, longest response) each."""

    def padded(rows: list) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence([torch.as_tensor(row) for row in rows], batch_first=True)

    records = [response.record for response in responses]
    mask = padded([np.ones(len(response.tokens), np.float32) for response in responses])
    log_q = padded([record.student_logprobs for record in records])
    log_p = padded([record.teacher_logprobs for record in records])
    # r_t (Eq. 2), then R_{t+1} (Eq. 3) with length normalisation (Eq. 6).
    rewards = minillm.token_rewards(log_q, log_p, mask)
    following = minillm.returns(rewards, mask, length_norm=True)
    # w_t (Eq. 5).  Whitening is the released code's, not the paper's (D6 in docs/method.md).
    weights = minillm.importance_weights(log_q, log_p, ALPHA)
    return mask, log_q, weights, minillm.whiten(following, mask)


def objective(tokens: Tensor, old: Tensor, weights: Tensor, advantage: Tensor, teacher_logits):
    """Eq. 7 as a function of the student's logits (n, vocabulary) for a tile of the tokens, summed."""

    def loss(logits: Tensor, tile: slice) -> Tensor:
        new, w = minillm.token_logprobs(logits, tokens[tile]), weights[tile]
        mask, common = torch.ones_like(w), {"weights": w, "denominator": 1}
        # Long term, with q_theta / p~ = exp(new - old) * w; then the single-step term, exact.
        long_term = minillm.policy_gradient_loss(new, old[tile], advantage[tile], mask, clip=CLIP, **common)
        return long_term + minillm.single_step_loss(logits, teacher_logits(tile), None, **common)

    return loss


def train(student, teacher, prompts: list, args, eos: int, pad: int, vocabulary: int) -> None:
    """Algorithm 1 without its plain-text loss; prints the reverse KL on held-out prompts, every eighth."""
    held_out, prompts = prompts[::8], [prompt for i, prompt in enumerate(prompts) if i % 8]
    optimizer = torch.optim.AdamW(student.parameters(), lr=args.lr, weight_decay=0.0)
    sampling = minillm.Sampling(max_tokens=args.max_tokens)
    options = {"ends": [eos], "pad": pad, "vocabulary": vocabulary, "seed": 10, "record": True}

    def respond(prompts: list, step: int, alpha: float) -> list:
        """Responses from alpha p + (1 - alpha) q (Eq. 4), with a record of both models' log-probabilities."""
        options["mixture"] = minillm.Mixture(teacher, alpha)
        return minillm.sample(student, prompts, range(len(prompts)), sampling, step=step, **options)

    def report(collection: int) -> None:
        """The exact reverse KL of each token (Eq. 1), on the student's own responses."""
        values = [response.record.reverse_kl for response in respond(held_out, 10**6, alpha=0.0)]
        print(f"collection {collection}: reverse KL {np.concatenate(values).mean():.4f} nats per token")

    report(0)
    for collection in range(args.collections):
        rng = np.random.default_rng(collection)
        chosen = [prompts[i] for i in rng.integers(len(prompts), size=BATCH * UPDATES)]
        responses = respond(chosen, collection, ALPHA)
        mask, *of_tokens = credit(responses)
        order = np.concatenate([rng.permutation(len(chosen)) for _ in range(INNER_EPOCHS)])
        for rows in order.reshape(-1, BATCH):
            batch = minillm.collate([(chosen[i], responses[i].tokens) for i in rows], pad)
            tokens, valid = minillm.response_tokens(batch), mask[rows].bool()
            # Recorded while sampling, so that the teacher reads each sample once.
            hidden = torch.cat([responses[i].record.teacher_hidden for i in rows])
            teacher_logits = minillm.logits_by_tile(hidden, minillm.head_of(teacher, vocabulary))
            loss = objective(tokens, *(values[rows][valid] for values in of_tokens), teacher_logits)
            # Logits exist for one tile of response tokens at a time, never for the whole batch.
            (minillm.response_loss(student, batch, vocabulary, loss) / len(tokens)).backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        report(collection + 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="MiniLLM in a plain PyTorch loop")
    for option in ("teacher", "student", "prompts", "out"):
        parser.add_argument(f"--{option}", type=Path)
    for option, default in (("collections", 8), ("max-tokens", 16), ("lr", 3e-3)):
        parser.add_argument(f"--{option}", type=type(default), default=default)
    args = parser.parse_args()
    if args.teacher or args.student or args.prompts:
        if not (args.teacher and args.student and args.prompts):
            parser.error("--teacher, --student and --prompts go together")
        teacher, student = (minillm.load_model(path, "fp32") for path in (args.teacher, args.student))
        tokenizer = minillm.load_tokenizer(args.teacher)
        prompts = [
            np.array(tokenizer(line)["input_ids"])
            for line in args.prompts.read_text(encoding="utf-8").splitlines()
        ]
        train(
            student,
            teacher,
            prompts,
            args,
            *minillm.special_tokens(tokenizer),
            minillm.vocabulary_size(tokenizer),
        )
        minillm.save_model(student, tokenizer, args.out or Path("student"))
    else:
        prompts = list(np.random.default_rng(0).integers(1, 48, size=(256, 8)))
        train(tiny_model(2, 24, seed=2), tiny_model(3, 32, seed=1), prompts, args, 0, 0, vocabulary=48)
