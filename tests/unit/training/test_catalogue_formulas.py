"""Every method of the catalogue: the loss and gradient of a mini-batch equal a formula from its source.

Settings are those of config/methods.yaml itself.  Recorded values are float32 when drawn, and what a formula
is given of them is the record; everything else is float64.
"""

import functools

import pytest
from catalogue_case import METHODS, VOCABULARY, Case, differences, softmax, wide
from catalogue_formulas import FORMULAS

NAMES = sorted(METHODS)
# Branches that a mini-batch cannot take: sets that hold the whole vocabulary.
WHOLE_SETS = {"prune-opd": "disagree"}


@functools.cache
def numbers_of(name):
    """The sizes of sets to test: the method's own, and 3 if that is more than there are entries."""
    return [0, 3] if wide(Case(name, two=False).settings) else [0]


VARIANTS = [(name, two, k) for name in NAMES for two in (False, True) for k in numbers_of(name)]


def test_every_method_has_a_formula():
    missing, spare = sorted(set(METHODS) - set(FORMULAS)), sorted(set(FORMULAS) - set(METHODS))
    assert not missing, f"config/methods.yaml: no formula in tests/helpers/catalogue_formulas.py: {missing}"
    assert not spare, f"tests/helpers/catalogue_formulas.py: not in config/methods.yaml: {spare}"
    assert all(formula.__doc__ for formula in FORMULAS.values())


@pytest.mark.parametrize(("name", "two", "k"), VARIANTS)
def test_the_loss_and_its_gradient(name, two, k):
    case = Case(name, two, k)
    value, gradient, batch = case.by_hand(FORMULAS[name])
    lengths = {len(response) for response in case.responses}
    assert len(lengths) > 2, "padding"
    loss, slope, size = differences(case.found(), (value, gradient))
    assert size > 1e-3 and loss < 1e-8 and slope < 1e-8, (loss, slope, size)
    # The formula has the numbers of entries of its source; the catalogue has the same.
    assert wide(case.published) == {number for number in batch.asked if number > VOCABULARY}
