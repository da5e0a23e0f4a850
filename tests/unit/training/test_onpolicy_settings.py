"""The presets against the formulas of paper and released code, computed by hand.

Every switch and every ablation changes the gradient.
"""

import dataclasses
import math
import os
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import torch
import yaml
from onpolicy_case import COUNT, VOCABULARY, Texts, gradient, pair, rollouts, settings, task
from tiny_models import make

from minillm.config.derive import stage_settings
from minillm.config.experiment import experiment
from minillm.config.launch import Launch
from minillm.config.onpolicy import OnPolicy
from minillm.config.presets import PRESETS, expanded
from minillm.config.strict import parse
from minillm.errors import UserError
from minillm.training.credit import advantages, whitened


@torch.no_grad()
def logprobs_by_hand(model, prompt, response):
    """Log-probabilities over the vocabulary at each response token, as lists of floats.

    For one example, without padding.
    """
    ids = torch.tensor([[*prompt.tolist(), *response.tolist()]])
    rows = model(ids).logits[0, len(prompt) - 1 : -1, :VOCABULARY].tolist()
    found = []
    for row in rows:
        top = max(row)
        total = top + math.log(sum(math.exp(x - top) for x in row))
        found.append([x - total for x in row])
    return found


def plain_text_by_hand(student, teacher, kd_ratio):
    """(summed loss, tokens) of all chunks: every token but the first of a chunk is a target."""
    total = tokens = 0.0
    for i in range(COUNT):
        chunk = Texts().chunk(i)
        q, p = (logprobs_by_hand(m, chunk[:1], chunk[1:]) for m in (student, teacher))
        for a, b, token in zip(q, p, chunk[1:].tolist(), strict=True):
            forward = sum(math.exp(y) * (y - x) for x, y in zip(a, b, strict=True))
            total += -(1 - kd_ratio) * a[token] + kd_ratio * forward
            tokens += 1
    return total, tokens


def loss_by_hand(preset, made, student, teacher, alpha, horizon):
    """The loss of one mini-batch, row by row and token by token, from the formulas alone."""
    paper, released = preset == "paper", preset == "released"
    rewards, steps = [], []
    for row, (prompt, response) in enumerate(zip(made.prompts, made.responses, strict=True)):
        q, p = (logprobs_by_hand(m, prompt, response) for m in (student, teacher))
        old = made.student_logprobs[row].tolist()
        theirs = made.teacher_logprobs[row].tolist()
        reward = [b - a for a, b, _ in zip(old, theirs, response, strict=False)]
        if released:
            reward = [min(100.0, max(-100.0, r / 0.5)) for r in reward]
        rewards.append(reward)
        steps.append((q, p, old, theirs))
    credit = []
    for reward in rewards:
        row = []
        for t in range(len(reward)):
            later = [0.95**k * r for k, r in enumerate(reward[t:])] if released else reward[t + 1 :]
            row.append(sum(later) / max(1, len(later)))
        credit.append(row)
    if (
        not paper
    ):  # whitened over the tokens; released: over every position up to the horizon, absent ones zero
        values = [v for row in credit for v in row] + [0.0] * (
            COUNT * horizon - sum(map(len, credit))
        ) * released
        mean = sum(values) / len(values)
        variance = sum((v - mean) ** 2 for v in values) / len(values)
        credit = [[(v - mean) / math.sqrt(variance + 1e-8) for v in row] for row in credit]
    total = tokens = 0.0
    for row, response in enumerate(made.responses):
        q, p, old, theirs = steps[row]
        for t, token in enumerate(response.tolist()):
            w = math.exp(old[t]) / (alpha * math.exp(theirs[t]) + (1 - alpha) * math.exp(old[t]))
            ratio = math.exp(q[t][token] - old[t]) * w
            cut = min(max(ratio, 0.8), 1.2)
            a = credit[row][t]
            total += -a * min(ratio, cut) if paper else max(-a * ratio, -a * cut)
            reverse = sum(math.exp(x) * (x - y) for x, y in zip(q[t], p[t], strict=True))
            total += reverse if released else w * reverse
            tokens += 1
    text, text_tokens = plain_text_by_hand(student, teacher, 0.0 if paper else 0.5)
    return (total + text) / COUNT if paper else total / tokens + text / text_tokens


@pytest.mark.parametrize("preset", ["paper", "released", "default"])
def test_presets_reproduce_the_formulas(preset):
    chosen = settings(preset)
    student, teacher = pair()
    made = rollouts(student, teacher, chosen)
    expected = loss_by_hand(preset, made, student, teacher, chosen.alpha, chosen.max_tokens)
    found, _ = gradient(student, made, task(teacher, chosen), Launch(micro_batch=2))
    assert found == pytest.approx(expected, rel=1e-5)  # recorded log-probabilities are float32
    for other in {"paper", "released", "default"} - {preset}:
        assert abs(gradient(student, made, task(teacher, settings(other)))[0] - expected) > 0.01


# Each key that changes the loss, with every value that `paper` does not have.
SWITCHES = [
    ("single_step_weights", False),  # D1
    ("include_current", True),  # D2
    ("gamma", 0.95),  # D3
    ("length_norm", False),  # D5
    ("whiten", "tokens"),  # D6
    ("whiten", "positions"),
    ("reward_scale", 0.5),  # D7
    ("reward_clip", 0.1),
    ("surrogate", "ppo"),  # D8
    ("clip", 0.05),
    ("importance", "product"),  # D9
    ("importance", "none"),
    ("lm_coef", 0.5),  # D10
    ("lm_kd_ratio", 0.5),
    ("normaliser", "tokens"),
    ("advantage", "expected"),
    ("advantage", "centred"),
    ("single_step", False),
    ("objective", "forward_kl"),
    ("objective", "reverse_kl"),
    ("objective", "jensen_shannon"),
    ("objective", "skew_forward_kl"),
    ("objective", "skew_reverse_kl"),
    ("objective", "total_variation"),
    ("objective", "alpha_beta"),
    ("objective", "token_wise_kl"),
    ("objective", "squared_log_ratio"),
    ("objective", "teacher_token"),
    ("temperature", 0.7),
]


# Values other than the default, of keys that only one objective has.
OWN = {"beta": (0.1, {"objective": "jensen_shannon"}), "skew": (0.5, {"objective": "skew_forward_kl"})}


@pytest.mark.parametrize(
    ("key", "value", "context"),
    [
        (key, value, {"single_step": False} if value == "centred" else {}) for key, value in SWITCHES
    ]  # which it needs
    + [(key, value, context) for key, (value, context) in OWN.items()]
    + [("skew", 0.5, {"objective": "skew_reverse_kl"})],
)
def test_every_switch_changes_the_gradient(key, value, context):
    student, teacher = pair()
    base, changed = settings("paper", **context), settings("paper", **context | {key: value})
    made = rollouts(student, teacher, base)
    _, before = gradient(student, made, task(teacher, base))
    _, after = gradient(student, made, task(teacher, changed))
    assert max((after[n] - before[n]).abs().max().item() for n in before) > 1e-6


def test_every_switch_is_there():
    schedule = {"lr", "rollouts", "batch", "inner_epochs", "collections"}
    assert set(PRESETS["paper"]) - schedule - {"dropout"} <= {key for key, _ in SWITCHES}
    paper = dataclasses.asdict(settings("paper"))
    for key, kind in typing.get_type_hints(OnPolicy).items():
        if typing.get_origin(kind) is typing.Literal and key not in ("semantics", "schedule", "backend"):
            # It is only for `also`.
            values = set(typing.get_args(kind)) - {"cross_entropy"}
            assert values == {paper[key]} | {value for name, value in SWITCHES if name == key}


def test_dropout_changes_the_step_that_is_made(tmp_path):
    """D12, under the Engine, which puts the model into its mode."""
    command = [
        sys.executable,
        str(Path(__file__).parents[2] / "helpers" / "dropout_update.py"),
        str(tmp_path / "out.pt"),
    ]
    subprocess.run(command, check=True, timeout=400, env=os.environ | {"OMP_NUM_THREADS": "1"})
    without, again, with_dropout = torch.load(tmp_path / "out.pt")
    assert torch.equal(without, again)
    assert (with_dropout - without).abs().max() > 1e-4


@pytest.mark.parametrize("preset", ["paper", "released", "default"])
@pytest.mark.parametrize(
    "ablation", [{"length_norm": False}, {"alpha": 0.0}, {"single_step": False, "include_current": True}]
)
def test_every_ablation_of_table_4_changes_the_gradient(preset, ablation):
    """Without mixing the samples differ as well; on the same samples only the weights differ."""
    student, teacher = pair()
    base = settings(preset)
    made = rollouts(student, teacher, base)
    _, before = gradient(student, made, task(teacher, base))
    _, after = gradient(student, made, task(teacher, settings(preset, **ablation)))
    assert max((after[n] - before[n]).abs().max().item() for n in before) > 1e-6
    if "alpha" in ablation:
        unmixed = rollouts(student, teacher, settings(preset, **ablation))
        assert [r.tolist() for r in unmixed.responses] != [r.tolist() for r in made.responses]


@pytest.mark.parametrize("length_norm", [False, True])
def test_control_variates_by_hand(length_norm):
    """With a scale of the rewards, which is that of their means too.

    Also with length normalisation, which divides by what there is to add.
    """
    student, teacher = pair()
    made = rollouts(student, teacher, settings("paper"))
    rewards = ((made.teacher_logprobs - made.student_logprobs) * made.mask / 0.5).tolist()
    kl = (made.reverse_kl / 0.5).tolist()
    more = {"length_norm": length_norm, "reward_scale": 0.5}
    expected = advantages(made, settings("paper", advantage="expected", **more))
    centred = advantages(made, settings("paper", advantage="centred", single_step=False, **more))
    for i, response in enumerate(made.responses):
        for t in range(len(response)):
            after = len(response) - t - 1
            divisors = (max(1, after), after + 1) if length_norm else (1, 1)
            means, own = (
                -sum(kl[i][t + 1 : len(response)]),
                rewards[i][t] + kl[i][t] + sum(rewards[i][t + 1 :]),
            )
            assert expected[i, t].item() == pytest.approx(means / divisors[0], abs=1e-5)
            assert centred[i, t].item() == pytest.approx(own / divisors[1], abs=1e-5)


def test_the_penalty_is_a_reverse_kl_to_the_initial_student():
    """Neither to the teacher nor at another weight than asked."""
    student, teacher = pair()
    initial = make("llama", 3).double()
    made = rollouts(student, teacher, settings("default"))
    without, _ = gradient(student, made, task(teacher, settings("default")))
    work = dataclasses.replace(task(teacher, settings("default", init_kl=0.3)), anchor=initial)
    found, _ = gradient(student, made, work)
    total = tokens = 0.0
    for prompt, response in zip(made.prompts, made.responses, strict=True):
        q, start = (logprobs_by_hand(m, prompt, response) for m in (student, initial))
        total += sum(
            math.exp(a) * (a - b) for row in zip(q, start, strict=True) for a, b in zip(*row, strict=True)
        )
        tokens += len(response)
    assert found - without == pytest.approx(0.3 * total / tokens, rel=1e-6)


def test_whitening_over_positions_counts_the_horizon_not_the_padding():
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    values = torch.tensor([[3.0, 1.0, 0.0], [2.0, 0.0, 0.0]])
    horizon = settings("released").max_tokens
    flat = [3.0, 1.0, 2.0] + [0.0] * (2 * horizon - 3)
    mean = sum(flat) / len(flat)
    deviation = (sum((x - mean) ** 2 for x in flat) / len(flat)) ** 0.5
    found = whitened(values, mask, settings("released"))
    assert found[0, 0].item() == pytest.approx((3.0 - mean) / deviation, rel=1e-5)
    assert found[1, 1].item() == 0.0


def test_whitening_over_positions_of_large_values_that_hardly_differ():
    """The mean of the squares less the square of the mean is negative here, in float32."""
    values = 1000.0 + torch.arange(14.0).reshape(2, 7) / 64
    assert ((values**2).mean() - values.mean() ** 2).item() < 0
    found = whitened(values, torch.ones(2, 7), settings("released", max_tokens=7))
    exact = values.double()
    expected = (exact - exact.mean()) / (exact.var(correction=0) + 1e-8).sqrt()
    assert (found - expected).abs().max() < 1e-5


def test_presets_fill_in_only_what_is_not_given():
    assert expanded({"semantics": "released", "gamma": 1.0}, "f", "k")["gamma"] == 1.0
    assert expanded({"semantics": "released"}, "f", "k")["whiten"] == "positions"
    assert expanded({"lr": 1.0}, "f", "k") == {"lr": 1.0}
    with pytest.raises(UserError, match="f: k.semantics: unknown preset 'relesed'; did you mean 'released'"):
        expanded({"semantics": "relesed"}, "f", "k")
    for name, values in PRESETS.items():
        OnPolicy(**values | {"semantics": name})
    loss_keys = set(PRESETS["paper"])
    assert loss_keys == set(PRESETS["released"]), "a preset leaves no key of the other's to chance"


def test_variants_and_presets_in_a_configuration(plan):
    plan["stages"]["minillm"] = {"semantics": "released", "rollouts": 8, "batch": 8, "collections": 2}
    plan["variants"] = {
        "gkd": {
            "label": "GKD",
            "settings": {"objective": "jensen_shannon", "alpha": 0.0, "student_share": 0.5},
        }
    }
    plan["methods"] = ["sft", "minillm", "gkd"]
    found = experiment(plan).on_policy("minillm", "short")
    assert found.whiten == "positions" and found.collections == 2
    plan["methods"].append("gdk")
    with pytest.raises(UserError, match=r"methods.3: there is no 'gdk'; did you mean 'gkd'"):
        experiment(plan)


def test_a_preset_gives_way_to_every_key_that_a_configuration_gives(plan):
    """preset < stage < model < variant, wherever the preset is named and whatever the other keys are."""
    plan["stages"]["minillm"] = {"lr": 1e-3, "batch": 4, "rollouts": 8, "whiten": "tokens", "gamma": 0.9}
    plan["methods"] = ["sft", "minillm", "paper", "plain"]
    plan["per_model"] = {
        "small": {"minillm": {"lr": 2e-3, "clip": 0.3}},
        "short": {"minillm": {"semantics": "released"}},
    }
    plan["variants"] = {
        "paper": {"label": "As printed", "settings": {"semantics": "paper", "gamma": 0.8}},
        "plain": {"label": "Defaults", "settings": {"semantics": "default"}},
    }
    found = experiment(plan)

    def given(method, model, *keys):
        values = dataclasses.asdict(found.on_policy(method, model))
        return tuple(values[key] for key in keys)

    keys = ("lr", "batch", "rollouts", "whiten", "gamma", "clip")
    assert given("minillm", "small", *keys) == (2e-3, 4, 8, "tokens", 0.9, 0.3)
    assert given("paper", "small", *keys) == (2e-3, 4, 8, "tokens", 0.8, 0.3)
    assert given("paper", "big", *keys) == (1e-3, 4, 8, "tokens", 0.8, 0.2)
    # What is given nowhere is the preset's, of the last place that names one; 447 collections are those of
    # `released`.
    rest = ("surrogate", "lm_kd_ratio", "reward_scale", "collections")
    assert given("minillm", "small", *rest) == ("ppo", 0.5, 1.0, 312)
    assert given("paper", "small", *rest) == ("paper", 0.0, 1.0, 312)
    assert given("minillm", "short", *rest) == ("ppo", 0.5, 0.5, 447)
    assert given("paper", "short", *rest) == ("paper", 0.0, 1.0, 312)
    assert given("plain", "short", *rest) == ("ppo", 0.5, 1.0, 312)
    assert given("paper", "small", "semantics") == ("paper",) and given("minillm", "big", "semantics") == (
        "default",
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"student_share": 0.5}, "student_share: the long term needs samples of the current student"),
        ({"replay": 10}, "replay: the long term needs"),
        ({"advantage": "centred"}, "advantage: 'centred' replaces the single-step term"),
        (
            {"advantage": "expected", "include_current": True},
            "advantage: 'expected' covers the rewards that follow",
        ),
        (
            {"semantics": "released", "advantage": "expected"},
            "advantage: 'expected' covers the rewards that follow",
        ),
        ({"semantics": ["paper"]}, "semantics: unknown preset"),
        (
            {"objective": "forward_kl", "adaptive": True, "evaluations": 2},
            "adaptive: the share of samples grows at dev evaluations",
        ),
        (
            {"objective": "forward_kl", "adaptive": True, "student_share": 0.5, "evaluations": 1},
            "adaptive: the share of samples",
        ),
        ({"signal": {"tokens": "union"}}, "signal.top_k: 'union' needs a number"),
        ({"signal": {"top_k": 3}}, "signal.top_k: 'all' takes no number"),
        ({"signal": {"renormalise": True}}, "signal.renormalise: all entries sum to 1 anyway"),
        (
            {"signal": {"tokens": "student_topk", "top_k": 1, "renormalise": True}},
            "signal.renormalise: a single entry has probability 1",
        ),
        ({"signal": {"weight": "none"}}, "signal.weight: only objective 'squared_log_ratio'"),
        (
            {"signal": {"tokens": "union", "top_k": 3}, "single_step": False, "include_current": True},
            "signal: it is the single-step term's",
        ),
        (
            {"signal": {"tokens": "sampled"}, "objective": "reverse_kl", "alpha": 0.0},
            "signal.tokens: one sampled token is no divergence",
        ),
        (
            {"signal": {"tokens": "sampled"}, "objective": "squared_log_ratio"},
            "signal.tokens: the 'sampled' token must be the current student's; leave alpha off",
        ),
        (
            {
                "signal": {"tokens": "sampled"},
                "objective": "squared_log_ratio",
                "alpha": 0.0,
                "student_share": 0.5,
            },
            "signal.tokens: the 'sampled' token must be the current student's; leave student_share",
        ),
        (
            {"token_weights": {"reverse_kl_above": 0.5, "reverse_kl_at_most": 0.5}},
            "token_weights.reverse_kl_above: nothing is above 0.5 and at most 0.5",
        ),
        (
            {"token_weights": {"advantage": "positive"}, "objective": "reverse_kl", "student_share": 0.5},
            "token_weights: log-ratios, reverse KL and the student's entropy are recorded only",
        ),
        (
            {"token_weights": {"normalise": True}, "normaliser": "sequences"},
            "token_weights.normalise: the loss is divided by responses",
        ),
        (
            {
                "also": [
                    {"objective": "forward_kl"},
                    {"objective": "reverse_kl", "signal": {"tokens": "union"}},
                ]
            },
            "also.1.signal.top_k: 'union' needs a number",
        ),
        ({"also": [{"objective": "minillm"}]}, "also.0.objective: "),
        ({"taid": {}}, "taid: the long term's rewards are the teacher's own"),
        ({"assistant": {}}, "assistant: the long term's rewards are"),
        (
            {"taid": {}, "assistant": {}, "objective": "forward_kl"},
            "assistant: 'taid' has an intermediate teacher already",
        ),
        ({"taid": {"start": 0.9, "end": 0.5}, "objective": "forward_kl"}, "taid.start: 0.9 is above"),
        (
            {"alpha_beta": {"beta": 1e-6}, "objective": "alpha_beta"},
            "alpha_beta.beta: 1e-06 divides by almost 0",
        ),
        (
            {"objective": "reverse_kl", "alpha_beta": {"alpha": 0.5}},
            "alpha_beta: objective 'reverse_kl' has no such parameters",
        ),
        ({"stop_length": 0.5}, "stop_length: must be a factor above 1, or 0 for none"),
        ({"rollouts": 10, "batch": 4}, "batch: 10 rollouts are not a whole number of mini-batches of 4"),
        ({"objectiv": "minillm"}, "unknown key; did you mean 'objective'"),
    ],
)
def test_meaningless_settings_are_one_line(plan, values, message):
    plan["variants"] = {"other": {"label": "Other", "settings": values}}
    with pytest.raises(UserError, match=message) as error:
        experiment(plan)
    assert str(error.value).startswith("config: variants.other.") and "\n" not in str(error.value)


def test_parts_that_are_not_set_are_in_no_settings_file(plan):
    """Their keys are newer than results that must not be made again."""
    plan["stages"]["minillm"] = {"rollouts": 8, "batch": 8}
    training = stage_settings(experiment(plan), "minillm", model="short", teacher="big", seed=10)["training"]
    assert not {"alpha_beta", "signal", "taid", "assistant", "token_weights", "also"} & set(training)
    plan["stages"]["minillm"]["signal"] = {"tokens": "union", "top_k": 4}
    plan["stages"]["minillm"]["token_weights"] = {"first": 0.5}
    found = stage_settings(experiment(plan), "minillm", model="short", teacher="big", seed=10)["training"]
    assert found["signal"] == {"tokens": "union", "top_k": 4, "renormalise": False, "weight": "student"}
    assert found["token_weights"]["first"] == 0.5
    assert parse(OnPolicy, found, "f") == experiment(plan).on_policy("minillm", "short")


def test_a_variant_is_checked_with_the_keys_of_each_model(plan):
    plan["variants"]["other"] = {"label": "Other", "settings": {"batch": 4}}
    plan["per_model"] = {"small": {"minillm": {"rollouts": 10, "batch": 5}}}
    with pytest.raises(
        UserError, match=r"variants.other with per_model.small.minillm.batch: 10 rollouts .* of 4"
    ):
        experiment(plan)


@pytest.fixture
def plan():
    return yaml.safe_load((Path(__file__).parents[2] / "config" / "plan.yaml").read_text())
