"""Collections that an older student draws, or the initial one before the first update.

Also what training makes of tokens that the teacher replaced and of responses that ended early.
"""

import dataclasses
import json
import types
from collections import Counter

import numpy as np
import pytest
import torch
from onpolicy_case import (
    COUNT,
    EOS,
    WHOLE,
    OneProcess,
    Prompts,
    Tokenizer,
    engine_of,
    gradient,
    pair,
    settings,
    task,
)
from parts_case import by_hand, expected
from ranks import ranks
from torch.testing import assert_close

from minillm.config.launch import Launch
from minillm.config.sampler import EarlyEnd, Sampler
from minillm.config.sections import Sampling
from minillm.errors import UserError
from minillm.runtime import shared_rows
from minillm.training import onpolicy, run_state
from minillm.training.credit import importance
from minillm.training.dev_set import Dev
from minillm.training.drawn_ahead import OnDisk
from minillm.training.early_end_weights import with_early_end
from minillm.training.rollout_losses import micro_batches
from minillm.training.rollouts import Memory, Rollouts, collect_rollouts

# Four collections of four steps each.
COLLECTIONS, STEPS = 4, 4
KL = {"objective": "reverse_kl", "alpha": 0.0}
METHODS = {"minillm": {}, "reverse_kl": KL}


def engine(folder, sampler=None, **more):
    small = {"lm_coef": 0.0, "batch": 4, "inner_epochs": 2, "collections": COLLECTIONS, "lr": 0.05}
    launch = Launch(micro_batch=COUNT, log_every=1)
    # A rate at which other tokens are drawn soon.
    made, teacher, chosen = engine_of(folder, "llama", launch, sampler=sampler, **(small | more))
    made.steps = COLLECTIONS * STEPS
    return made, teacher, chosen


def weights_of(made):
    return torch.cat([p.detach().flatten() for p in made.model.parameters()])


def without_dev(monkeypatch):
    nothing = types.SimpleNamespace(offer=lambda history: None, prune=lambda history: None)
    monkeypatch.setattr(onpolicy, "evaluate", lambda *_: ({"dev_loss": 1.0, "dev_rouge": 0.0}, {}))
    monkeypatch.setattr(onpolicy, "Candidates", lambda *_: nothing)


def trained(folder, monkeypatch, sampler, stop=None, **more):
    """(weights, the log without times, collections drawn with the step of each); `stop` after that step."""
    made, teacher, chosen = engine(folder, sampler, **more)
    drawn, order = [], onpolicy.mini_batch

    def collect(engine_, *arguments):
        drawn.append((arguments[5], engine_.step))
        return collect_rollouts(engine_, *arguments)

    def mini_batch(*arguments):
        made._stop = made.step + 1 == stop
        return order(*arguments)

    without_dev(monkeypatch)
    monkeypatch.setattr(run_state, "collect_rollouts", collect)
    monkeypatch.setattr(onpolicy, "mini_batch", mini_batch)
    try:
        onpolicy.train(made, task(teacher, chosen), Prompts(), "ahead")
    finally:
        monkeypatch.undo()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return weights_of(made), [{k: v for k, v in x.items() if k != "seconds"} for x in lines], drawn


def by_schedule(folder, lag, **more):
    """The weights, with each collection drawn where the rule says, one loop after the other."""
    made, teacher, chosen = engine(folder, **more)
    work, collections = task(teacher, chosen), {}
    made.engine.eval()
    for c in range(COLLECTIONS):
        for ahead in range(COLLECTIONS):
            if max(0, ahead - lag) == c:
                collections[ahead] = collect_rollouts(
                    made, teacher, Prompts(), work.dev, chosen, Memory(1.0), ahead, work.seed
                )
        for place in range(STEPS):
            rows = onpolicy.mini_batch(chosen, work.seed, c, *divmod(place, 2))
            made.update(*micro_batches(made, work, collections[c], rows))
    return weights_of(made), collections


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("lag", [0, 1, 2])
def test_a_collection_is_drawn_by_the_student_of_so_many_collections_ago(lag, method, tmp_path, monkeypatch):
    weights, log, drawn = trained(
        tmp_path / "a", monkeypatch, Sampler(lag=lag) if lag else None, **METHODS[method]
    )
    expected_, collections = by_schedule(tmp_path / "b", lag, **METHODS[method])
    assert torch.equal(weights, expected_)
    assert drawn == [(c, STEPS * max(0, c - lag)) for c in range(COLLECTIONS)]
    lengths = [line["response_length"] for line in log if "response_length" in line]
    assert lengths == [collections[c].summary["response_length"] for c in range(COLLECTIONS)]


def test_the_student_has_changed_meanwhile(tmp_path, monkeypatch):
    """Else the tests above would say little."""
    found = {lag: by_schedule(tmp_path / str(lag), lag, **KL) for lag in (0, 2)}
    assert not torch.equal(found[0][0], found[2][0])
    (_, now), (_, before) = found[0], found[2]
    assert [r.tolist() for r in now[0].responses] == [r.tolist() for r in before[0].responses]
    assert [r.tolist() for r in now[3].responses] != [r.tolist() for r in before[3].responses]
    for c in range(COLLECTIONS):
        assert now[c].ids == before[c].ids


@pytest.mark.parametrize("method", METHODS)
def test_cached_collections_are_those_of_the_longest_lag(method, tmp_path, monkeypatch):
    more = METHODS[method]
    lagged, log, _ = trained(tmp_path / "lag", monkeypatch, Sampler(lag=COLLECTIONS - 1), **more)
    cached, other, drawn = trained(tmp_path / "cached", monkeypatch, Sampler(cached=True), **more)
    assert torch.equal(lagged, cached) and log == other
    assert drawn == [(c, 0) for c in range(COLLECTIONS)]
    assert len(list((tmp_path / "cached/collections").glob("*.safetensors"))) == COLLECTIONS


SOURCES = {
    "lag": Sampler(lag=2),
    "cached": Sampler(cached=True),
    "replaced": Sampler(teacher_top_k=3, early_end=EarlyEnd(top_k=4, threshold=0.5, events=4, base=0.5)),
}


@pytest.mark.parametrize("stop", [4, 7])
@pytest.mark.parametrize("kind", SOURCES)
def test_a_stopped_run_resumes_exactly(kind, stop, tmp_path, monkeypatch):
    """At the end of a collection and in the middle of one."""
    sampler = SOURCES[kind]
    whole, log, drawn = trained(tmp_path / "whole", monkeypatch, sampler, **KL)
    with pytest.raises(SystemExit):
        trained(tmp_path / "parts", monkeypatch, sampler, stop, **KL)
    resumed, again, later = trained(tmp_path / "parts", monkeypatch, sampler, **KL)
    assert torch.equal(whole, resumed) and log == again
    assert later == [(c, step) for c, step in drawn if step >= stop]


def test_drawing_resumes_where_it_was_interrupted(tmp_path, monkeypatch):
    whole, log, _ = trained(tmp_path / "whole", monkeypatch, Sampler(cached=True), **KL)
    drawn = Counter()

    def interrupted(made):
        def collect(engine_, *arguments):
            drawn[arguments[5]] += 1
            made._stop = arguments[5] == 1
            return collect_rollouts(engine_, *arguments)

        return collect

    made, teacher, chosen = engine(tmp_path / "parts", Sampler(cached=True), **KL)
    without_dev(monkeypatch)
    monkeypatch.setattr(run_state, "collect_rollouts", interrupted(made))
    with pytest.raises(SystemExit):
        onpolicy.train(made, task(teacher, chosen), Prompts(), "ahead")
    monkeypatch.undo()
    assert drawn == {0: 1, 1: 1}
    resumed, again, later = trained(tmp_path / "parts", monkeypatch, Sampler(cached=True), **KL)
    assert [c for c, _ in later] == [2, 3] and torch.equal(whole, resumed) and log == again


def test_collections_that_are_damaged_or_gone(tmp_path, monkeypatch):
    run = tmp_path / "run"
    with pytest.raises(SystemExit):
        trained(run, monkeypatch, Sampler(cached=True), 5, **KL)
    path, index = run / "collections/collection-000002.safetensors", run / "collections/index.json"
    content, listed = path.read_bytes(), index.read_text()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=r"collection-000002.safetensors: not what was written; delete .*run"):
        trained(run, monkeypatch, Sampler(cached=True), **KL)
    path.write_bytes(content)
    index.unlink()
    with pytest.raises(UserError, match=r"collection-000001.safetensors: not what was written"):
        trained(run, monkeypatch, Sampler(cached=True), **KL)
    index.write_text(listed.replace('"collection-000003', '"collection-000004'))
    with pytest.raises(UserError, match="collection-000003.safetensors: missing, and only the initial"):
        trained(run, monkeypatch, Sampler(cached=True), **KL)


def test_a_disk_that_is_too_small_is_seen_after_the_first_collection(tmp_path, monkeypatch):
    usage = types.SimpleNamespace(free=1000)
    monkeypatch.setattr("minillm.training.drawn_ahead.shutil.disk_usage", lambda _: usage)
    made, teacher, chosen = engine(tmp_path / "run", Sampler(cached=True), **KL)
    work = task(teacher, chosen)

    def draw(c):
        return collect_rollouts(made, teacher, Prompts(), work.dev, chosen, Memory(1.0), c, 3)

    with pytest.raises(UserError, match="cannot be kept; free some space, or set teacher_cache: false"):
        OnDisk(draw, COLLECTIONS, made).fill(0)


def test_two_processes_keep_and_read_the_same_collections(tmp_path, monkeypatch):
    monkeypatch.setattr(shared_rows, "FOLDER", tmp_path)
    chosen = settings("default", **KL, sampler=Sampler(cached=True), max_tokens=6)
    dev = Dev([], [], Tokenizer(), Sampling(), 11, 8, 0)

    def run(size, folder):
        pairs = [pair() for _ in range(size)]

        def rank(world):
            student, teacher = pairs[world.rank]
            made = OneProcess(student, WHOLE, world)
            made.model, made.launch, made.folder = student, Launch(eval_batch=3), folder
            made.stop_if_asked = made.say = lambda _: None

            def draw(c):
                return collect_rollouts(made, teacher, Prompts(), dev, chosen, Memory(1.0), c, 3)

            source = OnDisk(draw, 2, made)
            source.fill(0)
            return [source.take(c) for c in range(2)]

        return ranks(size, rank)

    one, two = run(1, tmp_path / "one"), run(2, tmp_path / "two")
    for found in two:
        for a, b in zip(one[0], found, strict=True):
            assert a.ids == b.ids and [r.tolist() for r in a.responses] == [r.tolist() for r in b.responses]
            assert_close(a.student_logprobs, b.student_logprobs, atol=1e-5, rtol=1e-5)
            assert_close(a.teacher_hidden, b.teacher_hidden, atol=1e-5, rtol=1e-5)


# --- what the losses make of it
def collected(sampler, **more):
    student, teacher = pair()
    chosen = settings("default", lm_coef=0.0, sampler=sampler, **more)
    made = OneProcess(student, WHOLE)
    made.model = student
    dev = Dev([], [], Tokenizer(), Sampling(), 11, 8, 0)
    return (
        student,
        teacher,
        chosen,
        collect_rollouts(made, teacher, Prompts(), dev, chosen, Memory(1.0), 0, 3),
    )


@pytest.mark.parametrize("way", ["token", "product", "none"])
def test_importance_of_tokens_that_the_teacher_may_have_replaced(way):
    """q over the probability of the rule, from passes over whole rows."""
    student, teacher, chosen, made = collected(Sampler(teacher_top_k=3), alpha=0.0, importance=way)
    found = importance(made, chosen)
    for row, (prompt, response) in enumerate(zip(made.prompts, made.responses, strict=True)):
        ids = torch.tensor([[*prompt.tolist(), *response.tolist()]])
        with torch.no_grad():
            q, p = (
                m(ids).logits[0, len(prompt) - 1 : -1, :11].softmax(-1).numpy() for m in (student, teacher)
            )
        weights = []
        for t, token in enumerate(response):
            likeliest = np.argsort(-p[t])[:3]
            through = q[t][token] if token in likeliest else 0.0
            weights.append(q[t][token] / (through + (1 - q[t][likeliest].sum()) * p[t][token]))
        if way == "product":
            weights = np.cumprod(weights)
        if way == "none":
            weights = np.ones(len(response))
        ours = found[row, : len(response)].numpy()
        assert_close(ours, np.asarray(weights, dtype=np.float32), atol=1e-4, rtol=1e-4)
        assert (found[row, len(response) :] == 0).all()
    assert 0 < made.summary["replaced"] < 1
    assert way != "token" or (found > 1.01).any()


def test_other_samples_have_the_weights_of_the_mixture():
    _, _, chosen, made = collected(None)
    assert made.mixture_logprobs is None and made.drifted is None
    assert not {"replaced", "drifted", "cut"} & set(made.summary)
    assert (importance(made, chosen) <= 1 / 0.7 + 1e-6).all()


EARLY = EarlyEnd(top_k=4, threshold=0.6, events=3, base=0.5)


def test_weights_fall_with_each_disagreement():
    _, _, chosen, made = collected(Sampler(early_end=EARLY), **KL)
    weights, seen = with_early_end(made, chosen, None), 0
    for row, response in enumerate(made.responses):
        events = 0
        for t in range(weights.shape[1]):
            if t >= len(response):
                assert weights[row, t] == 0
                continue
            events += int(made.drifted[row, t])
            seen += events
            assert weights[row, t] == pytest.approx(0.5 + max(0.0, 1 - events / 3))
    assert seen > 5 and made.summary["cut"] > 0
    cut = [made.drifted[i].sum() == 3 and r[-1] != EOS for i, r in enumerate(made.responses)]
    assert made.summary["cut"] == pytest.approx(np.mean(cut))
    assert made.summary["finished"] == pytest.approx(np.mean([r[-1] == EOS for r in made.responses]))
    assert made.summary["drifted"] == pytest.approx(made.drifted.sum().item() / made.mask.sum().item())
    gold = dataclasses.replace(made, drifted=None)
    assert_close(with_early_end(gold, chosen, None), 1.5 * made.mask)
    twice = with_early_end(made, chosen, 2 * made.mask)
    assert_close(twice, 2 * weights)
    plain = settings("default", **KL, sampler=Sampler(early_end=EarlyEnd()))
    assert (
        with_early_end(made, plain, None) is None and with_early_end(made, settings("default"), None) is None
    )


def test_weights_multiply_the_divergence_of_each_token():
    student, teacher, chosen, made = collected(Sampler(early_end=EARLY), **KL)
    student, teacher = pair()
    factor = with_early_end(made, chosen, None).numpy()

    def token(z_q, z_p, y, place):
        value, derivative = by_hand("reverse_kl", z_q, z_p, y)
        return factor[place] * value, factor[place] * derivative

    loss, found = gradient(student, made, task(teacher, chosen), Launch(micro_batch=3))
    value, derivatives = expected(student, teacher, made, chosen, token)
    assert loss == pytest.approx(value, abs=1e-6)
    for name in ("model.norm.weight", "lm_head.weight"):
        assert_close(found[name], derivatives[name], atol=1e-6, rtol=1e-6)


def test_older_checkpoints_have_no_marks():
    _, _, _, made = collected(None)
    values = {k: v for k, v in vars(made).items() if k not in ("mixture_logprobs", "drifted")}
    assert Rollouts.restored(values, OneProcess(None, WHOLE).world).drifted is None


@pytest.mark.parametrize(
    "sampler",
    [Sampler(teacher_top_k=3, early_end=EARLY), Sampler(top_p=0.7)],
    ids=["replaced and ended", "top-p"],
)
def test_collections_do_not_depend_on_the_number_of_processes(sampler, tmp_path, monkeypatch):
    monkeypatch.setattr(shared_rows, "FOLDER", tmp_path)
    chosen = settings("default", **KL, sampler=sampler, stop_kl=2.0)
    dev = Dev([], [], Tokenizer(), Sampling(), 11, 8, 0)

    def run(size, batch):
        pairs = [pair() for _ in range(size)]

        def rank(world):
            student, teacher = pairs[world.rank]
            made = OneProcess(student, WHOLE, world)
            made.model, made.launch = student, Launch(eval_batch=batch)
            return collect_rollouts(made, teacher, Prompts(), dev, chosen, Memory(1.0), 0, 3)

        return ranks(size, rank)

    one = run(1, 8)[0]
    for other in (*run(2, 3), *run(3, 1)):
        assert [r.tolist() for r in one.responses] == [r.tolist() for r in other.responses]
        assert one.summary == pytest.approx(other.summary, rel=1e-5)
        for name in ("student_logprobs", "mixture_logprobs", "drifted", "teacher_hidden"):
            a, b = getattr(one, name), getattr(other, name)
            assert (
                (a is None) == (b is None) == (name in ("mixture_logprobs", "drifted") and sampler.top_p < 1)
            )
            if a is not None:
                assert_close(a, b, atol=1e-5, rtol=1e-5)
