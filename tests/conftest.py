"""Several processes at once (`make test` starts them): tests that share a slow fixture stay in one of them."""

import os

import pytest
from warm_python import warm_python
from xdist.scheduler import LoadScopeScheduling


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
    return ByFixture(config, log)
