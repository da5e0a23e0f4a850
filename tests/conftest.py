"""Several processes at once (`make test`): tests that share a slow fixture stay in one of them."""

import os

import pytest
from warm_python import warm_python
from xdist.scheduler import LoadScopeScheduling

# Read when torch is imported. The tensors of these tests are tiny: several threads would wait for one
# another, and get in the way of what runs next to them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What trains, compiles, starts several processes or plans with Snakemake, the longest first: `make test`
# begins with them, so that no long one is left for the end, and `make test-quick` leaves them out.
SLOW = (
    "tests/pipeline",
    "tests/workflow",
    "tests/unit/runtime/test_zero.py",
    "tests/unit/training/test_adapted.py",
    "tests/unit/training/test_teaching_stages.py",
    "tests/unit/models/test_compiled_blocks.py",
    "tests/unit/models/test_compiled.py",
    "tests/unit/training/test_invariances.py",
    "tests/unit/test_cli.py",
    "tests/unit/data/test_fetch.py",
    "tests/unit/training/test_onpolicy_settings.py",
    "tests/unit/test_package.py",
    "tests/unit/test_own_trainer.py",
    "tests/unit/test_benchmark.py",
    "tests/unit/runtime/test_load_once.py",
    "tests/unit/runtime/test_saving.py",
    "tests/unit/test_gpu_check.py",
    "tests/unit/runtime/test_processes.py",
    "tests/unit/runtime/test_activations.py",
    "tests/unit/runtime/test_skipped.py",
    "tests/unit/runtime/test_several_nodes.py",
    "tests/unit/runtime/test_fp16.py",
    "tests/unit/sampling/test_architectures.py",
    "tests/unit/models/test_adapters.py",
    "tests/unit/test_fits_adapters.py",
    "tests/unit/runtime/test_engine.py",
    "tests/unit/training/test_objective_parts.py",
    "tests/unit/runtime/test_gradient_variance.py",
    "tests/unit/training/test_drawn_ahead.py",
    "tests/unit/training/test_who_teaches.py",
    "tests/unit/training/test_catalogue_formulas.py",
    "tests/unit/training/test_catalogue_invariances.py",
)


def pytest_collection_modifyitems(items):
    places = {id(item): place(item.nodeid) for item in items}
    items.sort(key=lambda item: places[id(item)])
    for item in items:
        if places[id(item)] < len(SLOW):
            item.add_marker(pytest.mark.slow)


def place(nodeid):
    """Where a test's folder or file stands in SLOW; behind all of them if it does not."""
    return next((place for place, path in enumerate(SLOW) if nodeid.startswith(path)), len(SLOW))


@pytest.fixture(scope="session")
def python():
    """A program that takes the place of `python` in commands and starts at once (warm_python.py)."""
    with warm_python() as program:
        yield program


@pytest.fixture(scope="session")
def warm(python):
    """Environment in which torchrun starts its processes so, each with one thread."""
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHON_EXEC": python}


class ByFixture(LoadScopeScheduling):
    """A run or a copied checkout is shared by a whole folder; other fixtures by a file."""

    def _split_scope(self, nodeid):
        folder, _, file = nodeid.split("::")[0].rpartition("/")
        return nodeid.split("::")[0] if folder.startswith("tests/unit") else folder


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    # xdist's own order is by number of tests.
    config.option.loadscopereorder = False
    return ByFixture(config, log)
