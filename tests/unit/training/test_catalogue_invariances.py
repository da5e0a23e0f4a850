"""What holds for every method of the catalogue: splits, sets of all entries, weights of 1, equal models."""

import dataclasses

import pytest
from catalogue_case import METHODS, VOCABULARY, Case, differences, settings_of, wide, with_k
from onpolicy_case import COUNT

from minillm.config.launch import Launch
from minillm.config.objective_parts import Signal, TokenWeights
from minillm.config.sections import Training

NAMES = sorted(METHODS)
ON_POLICY = [name for name in NAMES if not isinstance(settings_of(name), Training)]
# Loss or gradient are not 0 where the teacher is the student, and why.
OF_TEXTS = "cross-entropy learns the texts themselves"
OF_A_PART = "a KL on a part of the vocabulary moves probability into it, unless it is renormalised"
NOT_ZERO = {
    "kd": OF_TEXTS,
    "seqkd": OF_TEXTS,
    "minillm": OF_TEXTS,
    "npd": OF_TEXTS,
    "stable-opd": OF_TEXTS,
    "tgpo-half": OF_TEXTS,
}
NOT_ZERO_AT_3 = {"aopd": OF_A_PART, "eopd": OF_A_PART, "npd": OF_TEXTS}


def assert_equal(found, right, tolerance=1e-10):
    loss, derivative, size = differences(found, right)
    assert size > 1e-3 and loss < tolerance and derivative < tolerance, (loss, derivative, size)


@pytest.mark.parametrize("name", NAMES)
def test_micro_batches_do_not_count(name):
    """Of the samples with their gold answers, other texts and plain text."""
    case = Case(name, two=True, shrunk=3)
    whole = case.found(Launch(micro_batch=4 * COUNT))
    for launch in (Launch(micro_batch=1), Launch(micro_batch=3), Launch(micro_tokens=40)):
        assert_equal(case.found(launch), whole)


@pytest.mark.parametrize("name", ON_POLICY)
def test_holes_in_the_records_do_not_count(name):
    plain, holes = (Case(name, two=True, shrunk=3, holes=x).found() for x in (False, True))
    assert_equal(holes, plain)


@pytest.mark.parametrize("name", ON_POLICY)
def test_weights_of_1_change_nothing(name):
    case = Case(name, two=False)
    if case.settings.token_weights is None:
        before = case.found()
        case.settings = dataclasses.replace(case.settings, token_weights=TokenWeights())
        assert_equal(case.found(), before)
    for i, term in enumerate(case.settings.also or ()):
        before = case.found()
        if term.token_weights is None:
            terms = list(case.settings.also)
            terms[i] = dataclasses.replace(term, token_weights=TokenWeights())
            case.settings = dataclasses.replace(case.settings, also=tuple(terms))
            assert_equal(case.found(), before)


def on_all(part):
    """The settings, or a term, without a set."""
    if part.signal is None or part.signal.tokens in ("all", "sampled"):
        return part
    all_ = Signal(weight=part.signal.weight) if part.objective == "squared_log_ratio" else None
    return dataclasses.replace(part, signal=all_)


@pytest.mark.parametrize("name", [name for name in ON_POLICY if wide(settings_of(name))])
def test_a_set_of_the_whole_vocabulary_is_no_set(name):
    """Also of the sampler: nothing is replaced, and the models never disagree."""
    case = Case(name, two=False, settings=with_k(settings_of(name), VOCABULARY))
    s = on_all(case.settings)
    if s.also:
        s = dataclasses.replace(s, also=tuple(map(on_all, s.also)))
    factor = 1.0
    if s.sampler is not None and s.sampler.teacher_top_k:
        s = dataclasses.replace(s, sampler=None)
    elif s.sampler is not None and s.sampler.early_end is not None:
        s, factor = dataclasses.replace(s, sampler=None), s.sampler.early_end.base + 1
    if s.baseline_top_k is not None:
        # Without a number the baseline is the recorded one, of the student that drew.
        case.student = case.first
        s = dataclasses.replace(s, baseline_top_k=None)
    other = Case(name, two=False, settings=s)
    other.student = case.student
    loss, derivatives = other.found()
    tolerance = 1e-6 if name == "vopd-top-100" else 1e-10
    assert_equal(case.found(), (factor * loss, {n: factor * x for n, x in derivatives.items()}), tolerance)


@pytest.mark.parametrize("shrunk", [0, 3])
@pytest.mark.parametrize("name", NAMES)
def test_a_teacher_that_is_the_student_teaches_nothing(name, shrunk):
    """Rewards are those of float32 records."""
    if shrunk and not wide(settings_of(name)):
        return
    loss, derivatives = Case(name, two=False, shrunk=shrunk, same=True).found()
    size = max(x.abs().max().item() for x in derivatives.values())
    if name in (NOT_ZERO_AT_3 if shrunk else NOT_ZERO):
        assert size > 1e-3
    else:
        assert abs(loss) < 1e-6 and size < 1e-6
