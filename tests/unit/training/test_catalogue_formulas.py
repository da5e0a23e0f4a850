"""Every method of the catalogue: the loss and gradient of a mini-batch equal a formula from its source.

Settings are those of config/methods.yaml itself.  Recorded values are float32 when drawn, and what a formula
is given of them is the record; everything else is float64.
"""

import functools
import math
from collections import defaultdict

import pytest
from catalogue_case import METHODS, VOCABULARY, Case, settings_of, wide
from catalogue_formulas import FORMULAS, compared
from divergences_by_hand import entropy, reverse_kl

from minillm.config.sampler import EarlyEnd, Sampler
from minillm.config.sections import Training
from minillm.config.teaching import Teaching

NAMES = sorted(METHODS)


@functools.cache
def numbers_of(name):
    """The sizes of sets to test: the method's own, and 3 if that is more than there are entries."""
    return (0, 3) if wide(settings_of(name)) else (0,)


VARIANTS = [(name, two, k) for name in NAMES for two in (False, True) for k in numbers_of(name)]


def test_every_method_has_a_formula():
    missing, spare = sorted(set(METHODS) - set(FORMULAS)), sorted(set(FORMULAS) - set(METHODS))
    assert not missing, f"config/methods.yaml: no formula in tests/helpers/catalogue_formulas.py: {missing}"
    assert not spare, f"tests/helpers/catalogue_formulas.py: not in config/methods.yaml: {spare}"
    assert all(formula.__doc__ for formula in FORMULAS.values())


@pytest.mark.parametrize(("name", "two", "k"), VARIANTS)
def test_the_loss_and_its_gradient(name, two, k):
    loss, derivative, size, batch = compared(name, two, k)
    assert size > 1e-3 and loss < 1e-8 and derivative < 1e-8, (loss, derivative, size)
    # The formula has the numbers of entries of its source; the catalogue has the same.
    assert wide(settings_of(name)) == {number for number in batch.asked if number > VOCABULARY}


# Whose texts a method learns from, if they are not only draws of the current student.
TEXTS_OF = {
    "minillm": {"alpha": 0.2},
    **dict.fromkeys(("gkd", "imitkd", "f-distill-tvd"), {"student_share": 0.5}),
    **dict.fromkeys(("distillm", "distillm-srkl"), {"student_share": 0.0, "adaptive": True, "replay": 1000}),
    **dict.fromkeys(("supervised-kd", "abkd", "taid", "todi", "amid"), {"student_share": 0.0}),
    "lightning-opd": {"sampler": Sampler(cached=True)},
    "revisiting-opd": {"sampler": Sampler(top_p=0.9)},
    "npd": {"sampler": Sampler(lag=1)},
    "skd": {"sampler": Sampler(teacher_top_k=25)},
    "prune-opd": {"sampler": Sampler(early_end=EarlyEnd(top_k=16, threshold=0.7, events=100, base=0.5))},
}
# Who teaches, if that is not the teacher of the pair.
TAUGHT_BY = {
    "sdft": Teaching("ema", prompt="demonstration"),
    "sdpo": Teaching("ema", rate=0.05, prompt="demonstration"),
    "opsd": Teaching("initial", prompt="demonstration"),
}


@pytest.mark.parametrize("name", NAMES)
def test_whose_texts_and_who_teaches(name):
    s = settings_of(name)
    if isinstance(s, Training):
        return
    usual = {"alpha": 0.0, "student_share": 1.0, "adaptive": False, "replay": 0, "sampler": None}
    assert {key: getattr(s, key) for key in usual} == usual | TEXTS_OF.get(name, {})
    assert s.teacher == TAUGHT_BY.get(name)


@pytest.mark.parametrize("name", NAMES)
def test_every_branch_of_the_formula_is_taken(name):
    """Otherwise the comparison above would not see it."""
    seen = defaultdict(set)
    for two in (False, True):
        for k in numbers_of(name):
            for branch, values in compared(name, two, k)[3].cases.items():
                seen[branch] |= values
    assert all(values == {True, False} for values in seen.values()), dict(seen)


@pytest.mark.parametrize("name", NAMES)
def test_recorded_values_are_those_of_the_models(name):
    """To the precision of the record: of the student that drew, and of the teacher's own prompt and end."""
    if isinstance(settings_of(name), Training):
        return
    for two in (False, True):
        case = Case(name, two)
        reads = case.settings.teacher_reads
        for x in (x for response in case.batch().collection for x in response):
            fresh = x.old != 0
            if fresh:
                assert x.old == pytest.approx(math.log(x.first[x.y]), abs=1e-5)
                assert x.h == pytest.approx(entropy(x.first), abs=1e-5)
            if fresh and reads:
                assert x.theirs == pytest.approx(math.log(x.p[x.y]), abs=1e-5)
                assert x.kl == pytest.approx(reverse_kl(x.first, x.p)[0], abs=1e-5)
            if case.made.teacher_entropy is not None:
                assert x.h_teacher == pytest.approx(entropy(x.p), abs=1e-5)
