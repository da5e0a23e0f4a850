"""Everything that computes with models, on a pretended GPU (helpers/pretend_gpu.py).

No operation mixes devices, results are those of the CPU, and the host waits for the GPU only at the places
listed here, with the reason.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import architectures
import numpy as np
import pytest
import torch
from onpolicy_case import (
    COUNT,
    EOS,
    PROMPTS,
    VOCABULARY,
    WHOLE,
    OneProcess,
    Prompts,
    Tokenizer,
    gradient,
    pair,
    rollouts,
    settings,
    task,
)
from pretend_gpu import DEVICE, MixedDevices, PretendGPU, put, tagged
from teaching_case import GOLD
from tiny_models import make
from torch import nn
from torch.testing import assert_close

from minillm.config.launch import Launch
from minillm.config.objective_parts import Assistant, Signal, Taid, TeacherTexts, Term, TokenWeights
from minillm.config.sampler import EarlyEnd, Sampler
from minillm.config.sections import Sampling
from minillm.config.teaching import Gold, Teaching
from minillm.evaluation import exposure_bias, reference_loss
from minillm.evaluation.calibration import LabelQuestion, label_logprobs
from minillm.evaluation.teacher_samples import Sampled
from minillm.runtime.processes import World
from minillm.sampling import one_shape
from minillm.sampling.generate import Request, answer_all
from minillm.sampling.logit_filters import Filters, NgramBlock
from minillm.sampling.sample import Mixture, sample
from minillm.training import dev_evaluation, dev_set, mini_batch, sample_loss
from minillm.training.dev_set import Dev
from minillm.training.rollout_losses import micro_batches
from minillm.training.rollouts import Memory, collect_rollouts
from minillm.training.supervised import Supervision
from minillm.training.teacher_cache import TeacherCache
from minillm.training.teaching import MeanTeacher, Panel

CPU, GPU = World(0, 1, torch.device("cpu")), World(0, 1, DEVICE)
EXAMPLES = [(prompt, Prompts().response(i)) for i, prompt in enumerate(PROMPTS)]

# Where the host waits, and why.
PADDING = {"models/head.py:at_head (transformers)": "once a pass: whether any row is padded"}
SAMPLING = {"sampling/refilled.py:Slots.taken": "every few positions: who has ended, and what was sampled"}
RECORDED = {
    "sampling/progress.py:Context.of": "prompts and their padding",
    "sampling/sample.py:_together": "random numbers, once a batch",
    "sampling/together.py:Batch._look": "every few positions: who has ended",
    "sampling/together.py:Batch._drop": "who leaves the batch",
    "sampling/response.py:responses": "what was sampled",
    "sampling/response.py:_by_row": "the teacher's hidden states, once a batch",
}
ALONE = {
    **SAMPLING,
    **PADDING,
    "sampling/scored.py:_scored": "once a batch: its values and the teacher's hidden states",
}
# Of families whose step has not one shape.
OTHERS = {"sampling/kv_cache.py:Decoder.hidden (transformers)": "once a position and model: as PADDING"}
NGRAMS = {
    "sampling/logit_filters.py:NgramBlock.block": "which tokens are blocked, sent at each position",
    "sampling/logit_filters.py:Filters.add": "the tokens drawn, at each position",
    "sampling/logit_filters.py:Filters._on_host": "which rows are left, when some have left",
}
COLLECTED = {**SAMPLING, **PADDING, "training/rollouts.py:teacher_hidden": "its states of gold responses"}
CACHED = {
    **PADDING,
    "training/teacher_cache.py:TeacherCache.hidden": "states to the disk, in the first epoch",
}
DEV = {**PADDING, **SAMPLING, "training/dev_set.py:losses": "a batch's sums; the teacher's states, once"}
CALIBRATION = {**PADDING, "evaluation/calibration.py:label_logprobs": "once a batch: its probabilities"}
EXPOSURE = {**PADDING, "evaluation/exposure_bias.py:token_kl": "once a batch: its values"}
DIAGNOSED = {**DEV, "training/diagnosis.py:Diagnosis.means": "an evaluation's sums, once"}
REFERENCE = {**PADDING, "evaluation/reference_loss.py:losses": "once a batch: its values"}


@dataclasses.dataclass
class Words(Tokenizer):
    """As much of a tokenizer as ROUGE-L of answers asks for."""

    def decode(self, tokens: list[int], skip_special_tokens: bool) -> str:
        return " ".join(f"w{t}" for t in tokens if t != EOS or not skip_special_tokens)


class Alone(OneProcess):
    """As much of an Engine as a collection and a dev set ask for, too."""

    @property
    def model(self) -> nn.Module:
        return self.engine


def there(gpu: PretendGPU, *models: Any) -> None:
    """Models on the pretended GPU; that this waits is not counted."""
    for model in models:
        nn.Module.to(model, DEVICE)
    gpu.waits.clear()


def dev() -> Dev:
    records = [{"id": i, "references": ["w1 w2", "w3"]} for i in range(COUNT)]
    return Dev(EXAMPLES, records, Words(), Sampling(max_tokens=6), VOCABULARY, 8, 0)


def floats(family: str = "llama") -> tuple[Any, Any]:
    student, teacher = (model.float() for model in pair(family))
    return student, teacher


# --- sampling
def sampled(student: Any, chosen: Sampling, eos: int = EOS, mixture: Mixture | None = None) -> Any:
    return sample(
        student, PROMPTS, range(COUNT), chosen, seed=1, step=0, ends=[eos], pad=EOS, vocabulary=VOCABULARY,
        mixture=mixture, record=mixture is not None,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["gpt2", "opt", "llama", "gpt_neo", "mistral-sliding", "gemma3", "bloom"])
def test_sampling_from_a_mixture(name):
    """Architectures that make masks and positions in different ways."""
    student, teacher = (architectures.make(architectures.ARCHITECTURES[name], seed) for seed in (1, 2))
    expected = sampled(student, Sampling(max_tokens=9), mixture=Mixture(teacher, 0.3))
    with PretendGPU() as gpu:
        there(gpu, student, teacher)
        found = sampled(student, Sampling(max_tokens=9), mixture=Mixture(teacher, 0.3))
    for one, other in zip(found, expected, strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()
        assert_close(one.record.teacher_logprobs, other.record.teacher_logprobs)
    others = {} if one_shape.possible(student) else OTHERS
    assert set(gpu.waits) <= {*RECORDED, *others}


SAMPLERS: dict[str, tuple[dict[str, Any], float]] = {
    "top-p": ({}, 0.8),
    "replaced tokens": ({"teacher_top_k": 3}, 0.8),
    "an early end": ({"early_end": EarlyEnd(top_k=4, threshold=0.6, events=2)}, 1.0),
}


@pytest.mark.parametrize("case", SAMPLERS)
def test_samplers(case):
    """Nothing more is waited for than without them."""
    parts, top_p = SAMPLERS[case]
    student, teacher = pair()
    chosen, mixture = Sampling(max_tokens=9, top_p=top_p), Mixture(teacher, 0.0, **parts)
    expected = sampled(student, chosen, mixture=mixture)
    with PretendGPU() as gpu:
        there(gpu, student, teacher)
        found = sampled(student, chosen, mixture=mixture)
    for one, other in zip(found, expected, strict=True):
        assert one.tokens.tolist() == other.tokens.tolist() and one.cut == other.cut
        assert_close(one.record.mixture_logprobs, other.record.mixture_logprobs)
    assert set(gpu.waits) <= ({*RECORDED} if parts else set(ALONE))
    assert gpu.waits["sampling/together.py:Batch._look"] <= 2


@pytest.mark.parametrize("mixed", [False, True])
def test_several_positions_wait_once(mixed):
    student, teacher = pair()
    counts = {}
    for eos in (-1, EOS):  # no row ends before its time; some do
        with PretendGPU() as gpu:
            there(gpu, student, teacher)
            found = sampled(student, Sampling(max_tokens=9), eos, Mixture(teacher, 0.3) if mixed else None)
        counts[eos] = gpu.waits
    assert any(len(response.tokens) < 9 for response in found)
    if not mixed:
        # After eight positions and at the end, where the responses are taken.
        assert counts[-1] == {"sampling/refilled.py:Slots.taken": 3}
        assert sum(counts[EOS].values()) <= 4
        return
    # Prompts, their mask and the random numbers are sent.
    assert counts[-1]["sampling/progress.py:Context.of"] == 2
    assert counts[-1]["sampling/sample.py:_together"] == 1
    # After eight positions and at the end.
    assert counts[-1]["sampling/together.py:Batch._look"] == 2
    # Rows leave once.
    assert counts[EOS]["sampling/together.py:Batch._look"] == 2
    assert counts[EOS]["sampling/together.py:Batch._drop"] <= 3


def test_answers_to_test_sets(tmp_path):
    """With everything that evaluation does to the distribution."""
    student, _ = floats()
    chosen = Sampling(max_tokens=7, top_k=5, top_p=0.9, no_repeat_ngram=2)
    asked = [Request((i,), i, 10, prompt) for i, prompt in enumerate(PROMPTS)]

    def answers(world: World) -> Any:
        return answer_all(student, Words(), asked, chosen, Launch(), world, tmp_path / world.device.type)

    expected = answers(CPU)
    with PretendGPU() as gpu:
        there(gpu, student)
        assert answers(GPU) == expected
    assert set(gpu.waits) == {*SAMPLING, *NGRAMS}


def test_the_ngram_block_reads_the_tokens_and_the_rows_once():
    prompts = PROMPTS[:4]
    filters, blocked = Filters(Sampling(no_repeat_ngram=2), prompts), NgramBlock(2, prompts)
    with PretendGPU() as gpu:
        alive = torch.arange(4, device=DEVICE)
        for step in range(6):
            if step == 3:
                alive = alive[torch.tensor([True, False, True, True]).to(DEVICE)]
            drawn, logits = (
                (alive * 5 + step) % VOCABULARY,
                torch.randn(len(alive), VOCABULARY, device=DEVICE),
            )
            expected = blocked.block(alive.tolist(), logits)
            for row, token in zip(alive.tolist(), drawn.tolist(), strict=True):
                blocked.add(row, token)
            gpu.waits.clear()
            assert bool((filters(alive, logits) == expected).all())
            filters.add(alive, drawn)
            assert gpu.waits["sampling/logit_filters.py:Filters._on_host"] == (step in (0, 3))
            assert gpu.waits["sampling/logit_filters.py:Filters.add"] == 1


# --- the on-policy phase
COLLECTIONS = {
    "paper": ({}, RECORDED),
    "student alone": ({"alpha": 0.0}, ALONE),
    "gold and samples": ({"objective": "forward_kl", "student_share": 0.5, "alpha": 0.0}, COLLECTED),
}


@pytest.mark.parametrize("case", COLLECTIONS)
def test_a_collection(case):
    changes, waits = COLLECTIONS[case]
    chosen, (student, teacher) = settings("paper", **changes), floats()

    def collected(world: World) -> Any:
        engine, memory = Alone(student, WHOLE, world), Memory(chosen.student_share)
        return collect_rollouts(engine, teacher, Prompts(), dev(), chosen, memory, 0, 5)

    expected = collected(CPU)
    with PretendGPU() as gpu:
        there(gpu, student, teacher)
        found = collected(GPU)
    assert_close(found.student_logprobs, expected.student_logprobs)
    assert_close(found.teacher_hidden, expected.teacher_hidden)
    assert found.summary == pytest.approx(expected.summary, rel=1e-5)
    assert set(gpu.waits) == set(waits)


OBJECTIVES = ("forward_kl", "reverse_kl", "jensen_shannon", "skew_forward_kl", "skew_reverse_kl")
CASES = {
    "paper": settings("paper"),
    "released": settings("released"),
    "clip and no single step": settings("paper", single_step=False),
    **{name: settings("paper", objective=name) for name in (*OBJECTIVES, "total_variation")},
    **{name: settings("paper", objective=name) for name in ("alpha_beta", "token_wise_kl")},
    "a set of entries": settings("paper", signal=Signal(tokens="union", top_k=3, renormalise=True)),
    "an assistant": settings("paper", objective="reverse_kl", assistant=Assistant(alpha=0.0)),
    "a moving target": settings("paper", objective="forward_kl", taid=Taid()),
    "weights of drift": settings(
        "paper", objective="reverse_kl", sampler=Sampler(early_end=EarlyEnd(top_k=4, events=3, base=0.5))
    ),
    "a baseline on a set": settings(
        "paper", single_step=False, advantage="centred", length_norm=False, baseline_top_k=3, reward_floor=0.2
    ),
    "weights of a share and of blocks": settings(
        "paper", token_weights=TokenWeights(most_uncertain=0.5, drift=0.2, drift_block=3, per_response=True)
    ),
    "the texts' own tokens": settings("paper", also=(Term("cross_entropy"),)),
    "a term that fades": settings("paper", also=(Term("teacher_token", until=3),)),
    "gold answers": settings("paper", gold=Gold()),
}


def update(
    chosen: Any, family: str = "llama", keep: bool = True
) -> tuple[Counter[str], dict[str, Any], dict[str, Any]]:
    """Waits of a mini-batch's loss and backward pass on the GPU, and gradients there and on the CPU."""
    student, teacher = floats(family)
    made = dataclasses.replace(rollouts(student, teacher, chosen), gold=GOLD)
    if not keep:
        made = dataclasses.replace(made, teacher_hidden=None)
    _, expected = gradient(student, made, task(teacher, chosen), target=0.4 if chosen.taid else None)
    student.zero_grad()
    with PretendGPU() as gpu:
        there(gpu, student, teacher)
        engine = OneProcess(student, WHOLE, GPU)
        t = 0.4 if chosen.taid else None
        parts, loss = micro_batches(engine, task(teacher, chosen), made, list(range(COUNT)), t)
        for part in parts:
            value, terms = loss(part)
            assert all(tagged(x) for x in (value, *terms.values())), "nothing was read yet"
            value.backward()
        assert all(tagged(p.grad) for p in student.parameters() if p.grad is not None)
    return gpu.waits, {n: p.grad for n, p in student.named_parameters() if p.grad is not None}, expected


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_an_update_reads_nothing_back(case, keep, family):
    waits, found, expected = update(CASES[case], family, keep)
    assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert set(waits) == set(PADDING)


def test_the_teachers_texts_read_nothing_back():
    chosen = settings("paper", objective="skew_reverse_kl", alpha=0.0, teacher_texts=TeacherTexts(),
                      token_weights=TokenWeights(per_response=True))  # fmt: skip
    (student, teacher), texts = floats(), {id_: PROMPTS[i] for i, id_ in enumerate(Prompts.ids)}
    made = rollouts(student, teacher, chosen)
    with PretendGPU() as gpu:
        there(gpu, student, teacher)
        work = dataclasses.replace(task(teacher, chosen), answers=texts)
        parts, loss = micro_batches(OneProcess(student, WHOLE, GPU), work, made, list(range(COUNT)))
        loss(parts[0])[0].backward()
    assert set(gpu.waits) == set(PADDING)


def test_the_guard_of_the_first_student_reads_nothing_back():
    chosen, (student, teacher) = settings("paper", init_kl=0.1), floats()
    anchor, made = make("llama", 3), rollouts(student, teacher, chosen)
    with PretendGPU() as gpu:
        there(gpu, student, teacher, anchor)
        work = dataclasses.replace(task(teacher, chosen), anchor=anchor)
        parts, loss = micro_batches(OneProcess(student, WHOLE, GPU), work, made, list(range(COUNT)))
        loss(parts[0])[0].backward()
    assert set(gpu.waits) == set(PADDING)


@pytest.mark.parametrize("kind", ["extrapolated", "by itself", "by category"])
def test_other_teachers_read_nothing_back(kind):
    student, teacher = floats()
    more = {"extrapolated": {"extrapolate": 1.25}, "by itself": {"teacher": Teaching("self", prompt="p")}}
    chosen = settings("paper", objective="reverse_kl", alpha=0.0, **more.get(kind, {}))
    anchor, made = make("llama", 3), rollouts(student, teacher, chosen)
    taught = student if kind == "by itself" else teacher
    with PretendGPU() as gpu:
        there(gpu, student, teacher, anchor)
        by = {id_: i % 2 for i, id_ in enumerate(made.ids)}
        panel = Panel([teacher, anchor], {"train": by}) if kind == "by category" else None
        work = dataclasses.replace(task(taught, chosen), panel=panel)
        work = dataclasses.replace(work, anchor=anchor if kind == "extrapolated" else None)
        parts, loss = micro_batches(OneProcess(student, WHOLE, GPU), work, made, list(range(COUNT)))
        loss(parts[0])[0].backward()
    assert set(gpu.waits) == set(PADDING)


def test_a_mean_of_the_weights_reads_nothing_back():
    student, teacher = floats()
    with PretendGPU() as gpu:
        there(gpu, student, teacher)
        mean = MeanTeacher(teacher, student, 0.1)
        mean.move()
    assert not gpu.waits


def test_the_dev_set_of_the_on_policy_phase():
    chosen, (student, teacher) = settings("paper", objective="skew_forward_kl", student_share=0.5), floats()
    initial = make("llama", 3)
    work = dataclasses.replace(task(teacher, chosen), dev=dev(), initial=initial)
    expected = dev_evaluation.evaluate(Alone(student, WHOLE, CPU), work)
    with PretendGPU() as gpu:
        there(gpu, student, teacher, initial)
        found = dev_evaluation.evaluate(Alone(student, WHOLE, GPU), work)
    for values, same in zip(found, expected, strict=True):
        assert values == pytest.approx(same, rel=1e-4, abs=1e-6, nan_ok=True)
    assert set(gpu.waits) == set(DIAGNOSED) and gpu.waits["training/diagnosis.py:Diagnosis.means"] == 1


# --- supervised training
@pytest.mark.parametrize("kind", ["sft", "kd", "kd with its cache", "hpd"])
def test_supervised_training(kind, tmp_path):
    """Two epochs of one batch, and the dev set twice, whose teacher's states are kept."""
    student, teacher = floats()
    lengths = [len(response) for _, response in EXAMPLES]

    def run(world: World, place: str) -> Any:
        cache = None
        if kind == "kd with its cache":
            cache = TeacherCache(tmp_path / place, lengths, 16, torch.float32, world)
        taught = None if kind == "sft" else teacher
        engine = Alone(student, WHOLE, world)
        work = Supervision(
            engine, EXAMPLES, dev(), [], taught, 0.0 if kind == "sft" else 0.5, cache,
            draws=(5, range(COUNT)) if kind == "hpd" else None,
        )  # fmt: skip
        values = []
        for _ in range(2):
            parts, loss = work.micro_batches(range(COUNT))
            for part in parts:
                value = loss(part)[0]
                value.backward()
                values.append(value.detach())
        return values, [work.look(rouge=True) for _ in range(2)]

    expected, looks = run(CPU, "cpu")
    with PretendGPU() as gpu:
        there(gpu, student, teacher)
        found, found_looks = run(GPU, "gpu")
    assert_close(found, expected)
    assert found_looks == [pytest.approx(look, rel=1e-5) for look in looks]
    caches = CACHED if kind == "kd with its cache" else {}
    assert set(gpu.waits) == {*DEV, *caches}
    # Not in the second epoch.
    assert gpu.waits["training/teacher_cache.py:TeacherCache.hidden"] == bool(caches)


# --- measurements
def test_calibration_reads_once_a_batch():
    """However many labels and rows it has."""
    model = make("llama", 1)
    words = tuple(np.array(word) for word in ([1], [2], [3, 4], [3, 5]))
    questions = [LabelQuestion(i, 0, prompt, words, 0) for i, prompt in enumerate(PROMPTS)]
    with PretendGPU() as gpu:
        there(gpu, model)
        found = label_logprobs(model, Words(), questions, batch=4)
    nn.Module.to(model, "cpu")
    # One pass a question gives all words.
    assert set(gpu.waits) == set(CALIBRATION)
    assert gpu.waits["evaluation/calibration.py:label_logprobs"] == len(PROMPTS) // 4
    for question, row in zip(questions, found, strict=True):
        for word, value in zip(words, row, strict=True):
            ids = torch.tensor([[*question.prompt, *word]])
            logs = model(input_ids=ids).logits[0, :, :VOCABULARY].double().log_softmax(-1)
            expected = sum(logs[len(question.prompt) - 1 + k, token].item() for k, token in enumerate(word))
            assert value == pytest.approx(expected, abs=1e-4)


def test_exposure_bias():
    student, teacher = floats()
    samples = [Sampled(i, prompt, [response, response[:2]], [True, False])
               for i, (prompt, response) in enumerate(EXAMPLES)]  # fmt: skip
    how = {"vocabulary": VOCABULARY, "pad": EOS, "batch": 4}
    expected = exposure_bias.score(student, teacher, samples, 3, CPU, **how)
    with PretendGPU() as gpu:
        there(gpu, student, teacher)
        found = exposure_bias.score(student, teacher, samples, 3, GPU, **how)
    assert_close(found.kl, expected.kl)
    assert set(gpu.waits) == set(EXPOSURE)
    assert gpu.waits["evaluation/exposure_bias.py:token_kl"] == 2 * COUNT // 4


def test_the_reference_loss():
    model, _ = floats()
    how = {"vocabulary": VOCABULARY, "pad": EOS, "batch": 4}
    expected = reference_loss.losses(model, EXAMPLES, **how)
    with PretendGPU() as gpu:
        there(gpu, model)
        found = reference_loss.losses(model, EXAMPLES, **how)
    assert found == pytest.approx(expected, rel=1e-5)
    assert set(gpu.waits) == set(REFERENCE)
    assert gpu.waits["evaluation/reference_loss.py:losses"] == COUNT // 4


# --- what is looked for is found
def test_a_planted_mix_is_found(monkeypatch):
    monkeypatch.setattr(mini_batch, "moved", lambda values, device: values)
    with pytest.raises(MixedDevices, match=r"objectives.py:|mini_batch.py:|sample_loss.py:"):
        update(CASES["paper"])


def test_a_planted_index_on_the_cpu_is_found(monkeypatch):
    """It would work on a GPU, which waits for it."""
    usual = dev_set.token_logprobs

    def planted(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return usual(logits[torch.arange(len(logits))], tokens)

    monkeypatch.setattr(dev_set, "token_logprobs", planted)
    student, _ = floats()
    with PretendGPU() as gpu, pytest.raises(MixedDevices, match="index at "):
        there(gpu, student)
        dev_set.losses(student, EXAMPLES, dev(), GPU)


@pytest.mark.parametrize("read", [torch.Tensor.item, float, bool, torch.Tensor.tolist, torch.Tensor.cpu])
def test_a_planted_wait_is_found(read, monkeypatch):
    usual = sample_loss.SampleLoss.__call__

    def planted(self: Any, *tensors: Any) -> Any:
        losses, counts = usual(self, *tensors)
        read(losses["long_term"].detach())
        return losses, counts

    monkeypatch.setattr(sample_loss.SampleLoss, "__call__", planted)
    waits, _, _ = update(CASES["paper"])
    assert set(waits) - set(PADDING) == {"models/tiled_loss.py:_of_tile"}


def test_every_rule_of_the_pretended_gpu():
    with PretendGPU() as gpu:
        a, b, number = torch.ones(3, device="cuda"), torch.ones(3), torch.tensor(2.0)
        assert a.device == (a * number)[1:].device == a.new_zeros(2).double().device == DEVICE
        assert a.is_cuda and not b.is_cuda and torch.zeros_like(a, device="cpu").device.type == "cpu"
        assert not gpu.waits
        for mixed in (
            lambda: a + b,
            lambda: torch.cat([a, b]),
            lambda: b * a.sum(),
            lambda: a[torch.tensor([0, 1])],
            lambda: a.index_select(0, torch.tensor([0])),
            lambda: torch.where(b > 0, a, 0.0),
            lambda: nn.functional.cross_entropy(a.view(1, 3), torch.tensor([1])),
            a.numpy,
        ):
            with pytest.raises(MixedDevices):
                mixed()
        assert not gpu.waits
        for count, waits in enumerate(
            (
                a.sum().item,
                a.tolist,
                lambda: bool(a.sum()),
                lambda: range(a.sum().long()),
                lambda: a[a > 0],
                lambda: a.masked_select(a > 0),
                lambda: torch.equal(a, a),
                lambda: b.copy_(a),
                lambda: b.to(a),
                lambda: b.pin_memory().to(a.device),
                lambda: b.to(DEVICE, non_blocking=True),
                lambda: torch.tensor([1.0], device=DEVICE),
            ),
            1,
        ):
            waits()
            assert gpu.waits.total() == count
        # Neither does this wait: a filled mask, pinned memory, a type.
        a[a > 5] = 0.0
        sent = b.pin_memory().to(DEVICE, non_blocking=True)
        assert tagged(sent) and tagged(a.half()) and tagged(a.to(torch.float64)) and a.to(DEVICE) is a
        weight = nn.Parameter(put(torch.ones(3)))
        (weight * a).sum().backward()
        assert tagged(weight.grad)
        assert gpu.waits.total() == count
        assert not tagged(a.cpu())
    assert set(gpu.waits) == {"elsewhere"}
    assert a.device.type == "cpu", "outside, tags mean nothing"
