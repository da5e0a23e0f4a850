"""A mini-batch of any method of the catalogue, trained by the package and by a formula given from outside.

The initial student draws it by the method's own sampler and then moves, so that ratios differ from 1 and sets
from those of the draw.  Prompts and responses have different lengths, some responses end early, and the
recorded tensors have holes with rubbish in them.  `two`: the teacher reads other prompts and ends with
another token, and the mini-batch is a part of the collection.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from pathlib import Path

import numpy as np
import torch
from onpolicy_case import COUNT, EOS, PROMPTS, VOCABULARY, OneProcess, Prompts, Texts, Tokenizer
from teaching_case import GOLD, ByHand, numbers
from tiny_models import make

from minillm.config.launch import Launch
from minillm.config.methods import method_settings
from minillm.config.onpolicy import check_on_policy
from minillm.config.presets import combined
from minillm.config.sampling import Sampling
from minillm.config.sections import Training
from minillm.config.strict import merged
from minillm.data.teacher_prompts import TeacherPrompts
from minillm.methods import BUILT_IN, read_catalogue
from minillm.training.dev_set import Dev
from minillm.training.mini_batch import Task
from minillm.training.moving_target import MovingTarget
from minillm.training.rollout_losses import micro_batches
from minillm.training.rollouts import Memory, Rollouts, collect_rollouts
from minillm.training.supervised import Supervision
from minillm.training.teaching import MeanTeacher

CATALOGUE = read_catalogue(Path(__file__).parents[2] / "config/methods.yaml")
METHODS = BUILT_IN | CATALOGUE
SMALL = {
    "lr": 1.0, "collections": 20, "rollouts": COUNT, "batch": COUNT, "inner_epochs": 4, "max_tokens": 12,
    "lm_batch": COUNT, "evaluations": 2,
}  # fmt: skip
# What the teacher reads with prompts of its own, and its end; the student ends with EOS.
SHOWN = {
    id_: np.array(prompt, dtype=np.int32)
    for id_, prompt in zip(
        Prompts.ids,
        ([1], [7, 7, 3, 10, 2, 4, 6], [5], [9, 8], [4, 1, 1], [2, 3, 2], [6], [10, 3, 1, 4, 5, 9]),
        strict=True,
    )
}
END = 2
# The teacher's texts to the same prompts, one of them without an end.
TEXTS = {
    id_: np.array(
        [*np.random.default_rng(20 + i).integers(1, VOCABULARY, 1 + 3 * i % 7), 4 if i == 2 else EOS],
        dtype=np.int32,
    )
    for i, id_ in enumerate(Prompts.ids)
}
# Steps before this one: the last of the first half of the collections, and the first of the second.
STEPS = {False: 39, True: 40}
SEED = 11
SPLIT = Launch(micro_batch=3)


class Answered(Prompts):
    """Rows whose gold responses have different lengths."""

    def response(self, i):
        return GOLD[i]


@functools.cache
def models():
    """(the initial student, the student that it became, the teacher), in float64 up to the logits."""
    first, teacher = make("gpt2", 1).double(), make("gpt2", 2).double()
    with torch.no_grad():
        # Sharper than they start, so that some entropies are low and some ratios far from 1.
        for model in (first, teacher):
            model.transformer.ln_f.weight.mul_(1.8)
        student = copy.deepcopy(first)
        generator = torch.Generator().manual_seed(3)
        for weight in student.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    return first, student, teacher


def settings_of(name):
    """The method's settings under a small schedule, from the catalogue's file itself."""
    method = METHODS[name]
    if method.stage or name in ("kd", "seqkd"):
        loss = {"kd": {"loss": "kd"}}.get(name, {})
        return merged(Training(lr=1.0, epochs=1.0), loss | method.settings, "x", "y")
    if name == "minillm":
        return combined([SMALL, {"semantics": "paper"}], "x", "y")
    made = method_settings([SMALL], method, "x", "y")
    check_on_policy(made, "x", "y")
    return made


NUMBERS = ("top_k", "baseline_top_k", "teacher_top_k")


def wide(settings):
    """The numbers of entries of the settings' sets that are larger than the vocabulary here."""
    if isinstance(settings, tuple):
        return {k for part in settings for k in wide(part)}
    if not dataclasses.is_dataclass(settings):
        return set()
    values = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)}
    own = {k for name, k in values.items() if name in NUMBERS and k and k > VOCABULARY}
    return own.union(*(wide(value) for value in values.values()))


def with_k(settings, number):
    """The same with `number` in the place of each of these."""
    if isinstance(settings, tuple):
        return tuple(with_k(part, number) for part in settings)
    if not dataclasses.is_dataclass(settings):
        return settings
    changes = {}
    for f in dataclasses.fields(settings):
        value = getattr(settings, f.name)
        large = f.name in NUMBERS and value and value > VOCABULARY
        changes[f.name] = number if large else with_k(value, number)
    return dataclasses.replace(settings, **changes)


@dataclasses.dataclass(frozen=True, eq=False)
class Token:
    """A response's token y at place t of n, and what is said of its prefix: probabilities and records.

    `q` of the student, `p` of the teacher with its own prompt and end, `first` of the initial student.
    Recorded when it was drawn: log-probabilities `old` and `theirs`, entropies `h` and `h_teacher`, `kl` from
    student to teacher, 0 where nothing was.
    """

    row: tuple[str, int]
    t: int
    n: int
    y: int
    q: np.ndarray
    p: np.ndarray
    first: np.ndarray
    old: float = 0.0
    theirs: float = 0.0
    h: float = 0.0
    h_teacher: float = 0.0
    kl: float = 0.0


@dataclasses.dataclass
class Batch:
    """What a formula is given: responses as lists of tokens; `step` were made before, of `collections`."""

    samples: list[list[Token]]
    gold: list[list[Token]]
    # Of every row of the collection, of which the samples may be a part.
    collection: list[list[Token]]
    texts: list[list[Token]] = dataclasses.field(default_factory=list)
    plain: list[list[Token]] = dataclasses.field(default_factory=list)
    step: int = 0
    # TAID's t, and HPD's numbers by row.
    target: float = 0.0
    draws: dict[int, list[float]] = dataclasses.field(default_factory=dict)
    shrunk: int = 0
    asked: set[int] = dataclasses.field(default_factory=set)
    cases: dict[str, set[bool]] = dataclasses.field(default_factory=dict)

    def k(self, published):
        """The published number of entries, or the small one that stands for it."""
        self.asked.add(published)
        return self.shrunk or published

    def case(self, name, holds):
        """`holds`, kept by name, so that a test sees whether both branches were taken."""
        self.cases.setdefault(name, set()).add(bool(holds))
        return bool(holds)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


class Case:
    """One method's mini-batch; `shrunk` replaces numbers of entries above the vocabulary."""

    def __init__(self, name, two, shrunk=0, same=False, settings=None, holes=True):
        """`same`: the teacher is the student, which has not moved, and reads the same prompts."""
        self.name, self.two, self.shrunk = name, two, shrunk
        self.first, self.student, self.teacher = models()
        if same:
            self.student = self.teacher = self.first
        self.published = settings_of(name)
        self.settings = settings or (with_k(self.published, shrunk) if shrunk else self.published)
        self.supervised = isinstance(self.settings, Training)
        self.rows = [5, 2, 7, 0] if two else list(range(COUNT))
        self.step, self.target = STEPS[two], None
        own = None if self.supervised else self.settings.teacher
        other = (two or own is not None) and not same
        shown = SHOWN if other else dict(zip(Prompts.ids, PROMPTS, strict=True))
        self.reads, self.end = shown, END if two and not same else EOS
        prompts = TeacherPrompts({"train": shown, "dev": {}}, (EOS, self.end)) if other else None
        self.dev = Dev([], [], Tokenizer(), Sampling(), VOCABULARY, 3, 0, teacher=prompts)
        if own is not None and not same:
            self.teacher = taught(own, self.first, self.student)
        if self.supervised:
            self.made = None
            return
        taid = MovingTarget.of(self.settings.taid, None)
        if taid is not None:
            if two:
                taid.t = 0.7
            self.target = taid.t
        # Before the student moved: by the initial one, and whoever teaches then.
        then = self.first if own is not None else self.teacher
        self.made = collected(self.first, then, self.settings, self.dev, self.rows, holes)

    # --- the package
    def found(self, launch=SPLIT):
        """(loss, gradient by parameter) as training computes them."""
        engine = OneProcess(self.student, launch, step=self.step)
        self.student.zero_grad()
        if self.supervised:
            parts, loss = self.supervision(engine).micro_batches(self.rows)
        else:
            initial = self.first if self.settings.anchored else None
            answers = TEXTS if self.settings.teacher_texts is not None else None
            work = Task(self.teacher, initial, Texts(), self.dev, self.settings, 5, answers=answers)
            parts, loss = micro_batches(engine, work, self.made, self.rows, self.target)
        total = torch.stack([loss(part)[0] for part in parts]).sum()
        total.backward()
        grads = {n: p.grad.clone() for n, p in self.student.named_parameters() if p.grad is not None}
        self.student.zero_grad()
        return total.item(), grads

    def supervision(self, engine):
        s = self.settings
        texts = TEXTS.values() if self.name == "seqkd" else GOLD
        examples = list(zip(PROMPTS, texts, strict=True))
        read = self.dev.teacher.of("train", Prompts.ids, examples) if self.dev.teacher else None
        # As `supervised.fit` has them.
        ratio = {"ce": 0.0, "kd": s.kd_ratio, "hpd": 1.0}[s.loss]
        teacher = None if s.loss == "ce" else self.teacher
        draws = (SEED, Prompts.ids) if s.loss == "hpd" else None
        theirs = (read, ()) if read and teacher else None
        return Supervision(engine, examples, self.dev, (), teacher, ratio, None, theirs, draws)

    # --- what the formula sees
    def tokens(self, kind, i, prompt, response, theirs, place=None):
        """A response's tokens; `place` is its row of the records."""
        order = list(range(VOCABULARY))
        order[EOS], order[self.end] = self.end, EOS
        q, first = (softmax(numbers(m, prompt, response)) for m in (self.student, self.first))
        p = softmax(numbers(self.teacher, theirs, response))[:, order if kind != "plain" else slice(None)]
        found = []
        for t, y in enumerate(response.tolist()):
            more = {} if place is None else self.recorded(place, t)
            found.append(Token((kind, i), t, len(response), y, q[t], p[t], first[t], **more))
        return found

    def recorded(self, place, t):
        """In float32 when drawn: taken from the record, so that they do not blur the comparison."""
        at = int(self.made.mask[place].nonzero()[t])
        names = {
            "old": "student_logprobs", "theirs": "teacher_logprobs", "h": "entropy", "kl": "reverse_kl",
            "h_teacher": "teacher_entropy",
        }  # fmt: skip
        values = {k: getattr(self.made, name) for k, name in names.items()}
        return {k: v[place, at].item() for k, v in values.items() if v is not None}

    def batch(self):
        more = {"step": self.step, "shrunk": self.shrunk, "target": self.target or 0.0}
        if self.supervised:
            texts = list(TEXTS.values())
            every = [
                [self.tokens("sample", i, PROMPTS[i], kept[i], self.reads[Prompts.ids[i]]) for i in self.rows]
                for kept in (GOLD, texts)
            ]
            self.prompts, self.responses = PROMPTS, texts if self.name == "seqkd" else GOLD
            draws = {
                i: np.random.Generator(
                    np.random.Philox(key=[SEED + 2**45, self.step], counter=[0, 0, Prompts.ids[i], 0])
                ).random(len(GOLD[i])).tolist()
                for i in self.rows
            }  # fmt: skip
            return Batch([], every[0], [], every[1], **more, draws=draws)
        made = self.made
        self.prompts, self.responses = made.prompts, made.responses
        shown = [self.reads[id_] for id_ in made.ids]

        def responses(kind, kept, rows):
            return [
                self.tokens(kind, i, made.prompts[i], kept[i], shown[i], i if kind == "sample" else None)
                for i in rows
            ]

        collection = responses("sample", made.responses, range(COUNT))
        plain = []
        if self.settings.lm_coef:
            chunks = [Texts().chunk(i) for i in range(COUNT)]
            plain = [self.tokens("plain", i, c[:1], c[1:], c[:1]) for i, c in enumerate(chunks)]
        gold = responses("gold", made.gold, self.rows) if made.gold is not None else []
        texts = (
            responses("text", [TEXTS[id_] for id_ in made.ids], self.rows)
            if self.settings.teacher_texts
            else []
        )
        return Batch([collection[i] for i in self.rows], gold, collection, texts, plain, **more)

    def by_hand(self, formula):
        """(loss, gradient by parameter, the batch); `formula` yields tokens, values and derivatives."""
        batch, hand = self.batch(), ByHand(self.student)
        value, derivatives = 0.0, {}
        for token, part, derivative in formula(batch):
            value += part
            row = derivatives.setdefault(token.row, np.zeros((token.n, VOCABULARY)))
            row[token.t] += derivative
        for (kind, i), row in derivatives.items():
            prompt, response = self.text(kind, i)
            hand.add(prompt, response, lambda z, t, row=row: (0.0, row[t]), 1.0)
        return value, hand.gradient, batch

    def text(self, kind, i):
        """A response and its prompt, as the student reads it."""
        if kind == "plain":
            return Texts().chunk(i)[:1], Texts().chunk(i)[1:]
        if kind == "gold":
            return self.prompts[i], self.made.gold[i]
        if kind == "text":
            return self.prompts[i], TEXTS[self.made.ids[i]]
        return self.prompts[i], self.responses[i]


def taught(teaching, first, student):
    """The initial student, or the mean of the weights after one step, by its formula."""
    if teaching.who == "initial":
        return first
    mean = copy.deepcopy(first)
    rate = 0.05
    with torch.no_grad():
        for weight, new in zip(mean.parameters(), student.parameters(), strict=True):
            weight.copy_((1 - rate) * weight + rate * new)
    moved = copy.deepcopy(first)
    method = dataclasses.replace(settings_of("sdft"), teacher=teaching)
    MeanTeacher.of(method, moved, student, None).move()
    for ours, theirs in zip(mean.parameters(), moved.parameters(), strict=True):
        assert (ours - theirs).abs().max() < 1e-12
    return mean


def collected(student, teacher, settings, dev, rows, holes=True) -> Rollouts:
    """A collection by the method's sampler, its records as float64, with holes in them.

    Of the first seed at which responses of `rows` differ in length, and some end early.
    """
    engine = OneProcess(student, Launch(eval_batch=3))
    engine.model = student
    share = max(settings.student_share, 0.5) if settings.adaptive else settings.student_share
    for seed in range(3, 30):
        made = collect_rollouts(engine, teacher, Answered(), dev, settings, Memory(share), 0, seed)
        lengths = {len(made.responses[i]) for i in rows}
        if len(lengths) > 2 and min(lengths) < settings.max_tokens:
            break
    else:
        raise AssertionError("no padding")
    tensors = {n: x.double() for n, x in vars(made).items() if isinstance(x, torch.Tensor)}
    if holes:
        tensors = {n: spread(x, rubbish=0.0 if n == "mask" else 7.5) for n, x in tensors.items()}
    return dataclasses.replace(made, **tensors)


def spread(values, rubbish):
    """Two columns more, and in each row two places, here and there, that hold rubbish."""
    rows, time = values.shape
    wider = values.new_full((rows, time + 2), rubbish)
    for row in range(rows):
        gaps = {row % time, (2 * row + 3) % (time + 1)} | {time + 1}
        kept = [t for t in range(time + 2) if t not in sorted(gaps)[:2]]
        wider[row, kept] = values[row]
    return wider


def differences(found, right):
    """(of the losses, the largest of the gradients, the largest gradient)."""
    names = {*found[1], *right[1]}
    zero = {n: torch.zeros_like(x) for part in (found[1], right[1]) for n, x in part.items()}
    gaps = [(found[1].get(n, zero[n]) - right[1].get(n, zero[n])).abs().max().item() for n in names]
    size = max(x.abs().max().item() for x in right[1].values())
    return abs(found[0] - right[0]), max(gaps), size
