"""Steps of one shape: answers are those of kv_cache.py, whoever takes whose place, captured or not."""

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES
from architectures import make as architecture
from tiny_models import make
from torch.testing import assert_close

from minillm.config.sections import Sampling
from minillm.errors import UserError
from minillm.models.head import head_of
from minillm.sampling import cuda_graphs, one_shape, refilled, together
from minillm.sampling.cuda_graphs import Graphs
from minillm.sampling.kv_cache import Decoder
from minillm.sampling.one_shape import OneShape
from minillm.sampling.progress import left_padded
from minillm.sampling.refilled import queues
from minillm.sampling.sample import Mixture, sample

VOCABULARY, PAD, HORIZON = 11, 12, 14
RANDOM = np.random.default_rng(5)
PROMPTS = [RANDOM.integers(0, VOCABULARY, n).astype(np.int32) for n in (4, 1, 2, 5, 2, 1, 3, 2, 9, 6, 1, 7)]
COUNT = len(PROMPTS)
NAMES = ("student_logprobs", "teacher_logprobs", "mixture_logprobs", "reverse_kl", "entropy")
OTHERS = ("gpt_neo", "bloom", "falcon-alibi", "mpt")
SHAPED = [name for name in ARCHITECTURES if name not in OTHERS]
# transformers computes these with products that float64 breaks.
SINGLE = ("gemma2", "mixtral")


def run(model, **more):
    chosen = more.pop("sampling", Sampling(temperature=3.0, max_tokens=HORIZON))
    defaults = {"seed": 3, "step": 2, "ends": [0], "pad": PAD, "vocabulary": VOCABULARY}
    return sample(model, PROMPTS, range(COUNT), chosen, **(defaults | more))


def before(model, **more):
    """The same by kv_cache.py."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(one_shape, "possible", lambda model: False)
        return run(model, **more)


def same(found, expected, tolerance):
    for a, b in zip(found, expected, strict=True):
        assert a.tokens.tolist() == b.tokens.tolist() and a.finished == b.finished
        assert (a.record is None) == (b.record is None)
        for name in NAMES if a.record else ():
            np.testing.assert_allclose(getattr(a.record, name), getattr(b.record, name), atol=tolerance)


@pytest.fixture
def seldom(monkeypatch):
    """The host looks at every third position who has ended, as on a GPU at every eighth."""
    for module in (refilled, together):
        monkeypatch.setattr(module, "look_every", lambda device: 3)
        monkeypatch.setattr(module, "compact_at", lambda device: 0.5)


@pytest.fixture(params=["each", "third"])
def looks(request):
    """How often the host looks."""
    if request.param == "third":
        request.getfixturevalue("seldom")


def model_of(name, seed=1):
    model = architecture(ARCHITECTURES[name], seed)
    return model if name in SINGLE else model.double()


def test_which_models_have_steps_of_one_shape():
    assert len(SHAPED) >= 17
    for name in ARCHITECTURES:
        assert one_shape.possible(model_of(name)) == (name in SHAPED), name
    model = make("llama", 1)
    model.config._attn_implementation = "flash_attention_2"
    assert not one_shape.possible(model)


@pytest.mark.parametrize("name", SHAPED)
def test_answers_stay(name, seldom):
    """All rows at once, and three slots for twelve prompts; rows are sampled beyond windows of 4."""
    model = model_of(name)
    expected = before(model, record=True)
    lengths = [len(r.tokens) for r in expected]
    assert min(lengths) <= 4 and max(lengths) >= 10 and len(set(lengths)) > 4, lengths
    for batch in (COUNT, 3):
        same(run(model, record=True, batch=batch), expected, 1e-5)
    same(run(model, batch=5), before(model), 0)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_eager_attention_too(name):
    model = model_of(name)
    expected = before(model, record=True)
    model.set_attn_implementation("eager")
    same(run(model, record=True, batch=4), expected, 1e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.3])
@pytest.mark.parametrize("groups", [None, [0] * COUNT, [i // 3 for i in range(COUNT)]])
@pytest.mark.parametrize("names", [("gpt2", "llama"), ("qwen2-sliding", "gemma3"), ("opt", "gpt_neo")])
def test_a_teacher_that_reads_along(names, groups, alpha, seldom):
    student, teacher = (model_of(name, seed) for seed, name in enumerate(names, 1))
    mixture = Mixture(teacher, alpha, groups)
    found, expected = (how(student, mixture=mixture, record=True, batch=5) for how in (run, before))
    same(found, expected, 1e-5)
    for a, b in zip(found, expected, strict=True):
        # GPT-Neo's attention is in float32.
        assert_close(a.record.teacher_hidden, b.record.teacher_hidden, atol=1e-5, rtol=0)


FILTERS = Sampling(temperature=2.0, max_tokens=HORIZON, top_k=6, top_p=0.9, no_repeat_ngram=2)


@pytest.mark.parametrize("batch", [1, 4, COUNT])
def test_filters_are_those_of_each_row(batch, looks):
    model = make("qwen2", 1)
    expected = before(model, sampling=FILTERS)
    same(run(model, sampling=FILTERS, batch=batch), expected, 0)
    free = dataclasses.replace(FILTERS, no_repeat_ngram=0)
    assert [r.tokens.tolist() for r in before(model, sampling=free)] != [r.tokens.tolist() for r in expected]


def test_any_end_ends_a_row_and_budgets_change_nothing(looks):
    model = make("llama", 1)
    expected = before(model, ends=[0, 7], record=True)
    assert {int(r.tokens[-1]) for r in expected if r.finished} == {0, 7}
    for batch, budget in ((4, 0), (8, 60), (8, 20), (2, 1)):
        same(run(model, ends=[0, 7], record=True, batch=batch, budget=budget), expected, 1e-5)


def test_one_token_each():
    model = make("gpt2", 1)
    short = Sampling(temperature=3.0, max_tokens=1)
    same(run(model, sampling=short, batch=5), before(model, sampling=short), 0)


def test_queues_hold_as_many_slots_as_fit():
    lengths = [30, 10, 12, 50, 100, 11, 26, 300]
    assert queues(lengths, 3, 0) == [(3, [1, 5, 2, 6, 0, 3, 4, 7])]
    found = queues(lengths, 8, 200)
    # Of 8, 4, 2 and 1 at most.
    assert found == [(3, [1, 5, 2]), (3, [6, 0, 3]), (1, [4]), (1, [7])]
    many = queues([20] * 30 + [40] * 30, 8, 200)
    assert many == [(8, list(range(30))), (4, list(range(30, 60)))]
    for slots, items in found:
        assert slots == 1 or slots * max(lengths[i] for i in items) <= 200
    assert sorted(i for _, items in found for i in items) == list(range(8))


def test_slots_are_filled_again_before_all_are_free(monkeypatch):
    """And half empty caches are given up at the end."""
    reads, kept, calls = [], [], []
    for name, into in (("read_prompts", reads), ("keep", kept)):

        def counted(self, rows, *arguments, plain=getattr(OneShape, name), into=into):  # noqa: B008
            into.append(len(rows))
            return plain(self, rows, *arguments)

        monkeypatch.setattr(OneShape, name, counted)
    plain = OneShape.step
    monkeypatch.setattr(OneShape, "step", lambda self, t, *a: (calls.append(len(t)), plain(self, t, *a))[1])
    found = run(make("llama", 1), batch=4)
    tokens = sum(len(r.tokens) for r in found)
    assert sum(reads) == COUNT and max(calls) == 4 and kept and kept[-1] < 4
    # Batches of four that wait for their longest row would take a third more.
    batches = [sorted(range(COUNT), key=lambda i: len(PROMPTS[i]))[n : n + 4] for n in (0, 4, 8)]
    waiting = sum(max(len(found[i].tokens) for i in batch) for batch in batches)
    assert tokens / 4 <= len(calls) + 3 < 0.85 * waiting, (tokens, len(calls), waiting)


# --- one decoder
NEXT = torch.tensor([[3], [4], [5], [6], [7]])


def hidden(decoder, prompts, budget, keep):
    """Hidden states of the prompts, of a position after them, of three at once, and of some rows' next."""
    lengths, width = [len(p) for p in prompts], max(map(len, prompts))
    tokens, attention = left_padded(prompts, width + 5, 0)
    places = (attention.cumsum(-1) - 1).clamp(min=0)
    tokens[:, width:] = torch.arange(1, 26).view(5, 5) % VOCABULARY
    read = tokens[:, :width], attention[:, :width], places[:, :width]
    found = [decoder.prompts(*read, lengths, budget)]
    for rows, start, end in ((slice(None), width, width + 1), (slice(None), width + 1, width + 4)):
        parts = tokens[rows, start:end], attention[rows, :end], places[rows, start:end]
        found.append(decoder.hidden(*parts, end - start))
    first = width - max(lengths[i] for i in keep)
    decoder.keep(keep, first)
    found.append(decoder.hidden(tokens[keep, -1:], attention[keep, first:], places[keep, -1:]))
    return found


@pytest.mark.parametrize("budget", [0, 4, 8])
@pytest.mark.parametrize("name", ["gpt2", "opt", "llama", "gptj", "phi", "falcon", "qwen3"])
def test_hidden_states_are_those_of_a_growing_cache(name, budget):
    model, keep = model_of(name), torch.tensor([1, 2, 4])
    prompts = PROMPTS[:5]
    with torch.no_grad():
        expected = hidden(Decoder(model, VOCABULARY, 1.0, 10), prompts, 0, keep)
        found = hidden(OneShape(model, head_of(model, VOCABULARY), 5, 10), prompts, budget, keep)
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b, atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", ["llama", "mistral-sliding", "gemma3", "opt"])
def test_a_row_in_the_place_of_a_longer_one(name):
    """Each row at a column of its own; what the old row has left behind is not looked at."""
    model = model_of(name)
    decoder = OneShape(model, head_of(model, VOCABULARY), 3, 20)
    old, new = [9, 8, 7, 6, 5, 4, 3, 2, 1], [5, 6]

    def alone(ids):
        with torch.no_grad():
            return model.base_model(torch.tensor([ids])).last_hidden_state[0, -1]

    with torch.no_grad():
        given = torch.tensor([old, [3, 4, *[0] * 7], [1, *[0] * 8]])
        states = decoder.read_prompts(torch.arange(3), given, torch.tensor([9, 2, 1]))[:, 0]
        for row, ids in enumerate((old, [3, 4], [1])):
            assert_close(states[row], alone(ids), atol=1e-10, rtol=0)
        decoder.step(torch.tensor([[1], [2], [3]]), torch.tensor([[9], [2], [1]]), 10)
        decoder.read_prompts(torch.tensor([0]), torch.tensor([new]), torch.tensor([2]))
        states = decoder.step(torch.tensor([[7], [8], [9]]), torch.tensor([[2], [3], [2]]), 4)[:, 0]
    for row, ids in enumerate((new + [7], [3, 4, 2, 8], [1, 3, 9])):
        assert_close(states[row], alone(ids), atol=1e-10, rtol=0)


# --- graphs
class Recorded:
    """Stands for a captured step: inputs and results have places of their own, and shapes cannot change."""

    made = []

    def __init__(self, step, tokens, columns, pool):
        self.step, self.given, self.pool = step, (tokens.clone(), columns.clone()), pool
        for _ in range(3):
            self.result = step(*self.given).clone()
        self.replays = 0
        Recorded.made.append(self)

    def __call__(self, tokens, columns):
        for static, values in zip(self.given, (tokens, columns), strict=True):
            assert static.shape == values.shape
            static.copy_(values)
        self.replays += 1
        self.result.copy_(self.step(*self.given))
        return self.result


@pytest.fixture
def recorded(monkeypatch):
    monkeypatch.setattr(Graphs, "possible", staticmethod(lambda device: True))
    monkeypatch.setattr(cuda_graphs, "captured", Recorded)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(one_shape, "COLUMNS", 8)
    Recorded.made = []
    return Recorded.made


@pytest.mark.parametrize("mixed", [None, "token by token", "coins"])
def test_captured_steps_give_the_same_answers(mixed, recorded, seldom):
    """Results are overwritten by the next step, but nobody keeps them."""
    student, teacher = make("gpt2", 1).double(), make("llama", 2).double()
    mixture = mixed and Mixture(teacher, 0.3, [0] * COUNT if mixed == "coins" else None)
    shared = {"record": True, "mixture": mixture or None, "batch": 5}
    expected = before(student, **shared)
    assert not recorded
    same(run(student, **shared), expected, 1e-5)
    assert len({graph.pool for graph in recorded}) >= 1 and sum(g.replays for g in recorded) > 15
    # A graph for each shape: at most three numbers of columns and a few of rows.
    shapes = {tuple(g.given[0].shape) for g in recorded}
    assert all(shape[1] == 1 for shape in shapes) and len(recorded) < 30
    count = len(recorded)
    same(run(student, **shared, graphs=False), expected, 1e-5)
    assert len(recorded) == count


def test_a_step_that_cannot_be_captured_runs_as_it_is(recorded, monkeypatch):
    def fails(*arguments):
        recorded.append(arguments)
        raise RuntimeError("operation not permitted when stream is capturing\nmore of it")

    monkeypatch.setattr(cuda_graphs, "captured", fails)
    model = make("llama", 1)
    with pytest.warns(UserWarning, match="^cuda_graphs: .*stream is capturing; sampling without$") as seen:
        found = run(model, batch=4)
    assert len(recorded) == len(seen) == 1
    same(found, before(model), 0)


def test_without_a_gpu_nothing_is_captured():
    assert not Graphs.possible(torch.device("cpu"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = make("llama", 1)
        assert OneShape(model, head_of(model, VOCABULARY), 1, 4).graphs is None


class FakeCuda:
    """The calls of torch.cuda that recording makes, in order."""

    def __init__(self, monkeypatch):
        self.calls, fake = [], self

        class Stream:
            def __init__(self, name="side"):
                self.name = name

            def wait_stream(self, other):
                fake.calls.append(f"{self.name} waits for {other.name}")

        class Inside:
            def __init__(self, name):
                self.name = name

            def __enter__(self):
                fake.calls.append(f"begin {self.name}")

            def __exit__(self, *error):
                fake.calls.append(f"end {self.name}")

        class Graph:
            def replay(self):
                fake.calls.append("replay")

        main = Stream("main")
        for name, value in {
            "Stream": Stream,
            "current_stream": lambda: main,
            "stream": lambda stream: Inside(stream.name),
            "CUDAGraph": Graph,
            "graph": lambda graph, pool: Inside(f"graph in {pool}"),
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)


def test_how_a_step_is_recorded(monkeypatch):
    """Warmed up on a stream of its own, recorded with tensors that stay, replayed after they are filled."""
    fake, given = FakeCuda(monkeypatch), []

    def step(tokens, columns):
        fake.calls.append("step")
        given.append((tokens, columns))
        return tokens + columns

    tokens, columns = torch.tensor([[1], [2]]), torch.tensor([[3], [4]])
    replay = cuda_graphs.captured(step, tokens, columns, "pool")
    assert fake.calls == [
        "side waits for main", "begin side", "step", "step", "end side", "main waits for side",
        "begin graph in pool", "step", "end graph in pool",
    ]  # fmt: skip
    assert all(pair is not tokens and pair[0] is given[0][0] for pair in given)
    result = replay(tokens + 5, columns + 5)
    assert fake.calls[-1] == "replay" and len(given) == 3
    assert given[0][0].tolist() == [[6], [7]] and given[0][1].tolist() == [[8], [9]]
    assert result.tolist() == [[4], [6]], "what the recording made, which a replay overwrites on a GPU"


@pytest.mark.parametrize("how", ["at once", "later"])
def test_a_model_that_has_diverged(how, looks):
    model = make("llama", 1)
    weight = model.lm_head.weight if how == "at once" else model.model.embed_tokens.weight
    with torch.no_grad():
        # Token 9 is in some prompts only, and is drawn by others.
        weight[9 if how == "later" else slice(None)] = float("nan")
    with pytest.raises(UserError, match="its logits are not numbers"):
        run(model, batch=3)
