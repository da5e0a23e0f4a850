"""Several processes at once (`make test` starts them): tests that share a slow fixture stay in one of them."""

import pytest
from xdist.scheduler import LoadScopeScheduling


class ByFixture(LoadScopeScheduling):
    """A run or a copied checkout is shared by a whole folder; other fixtures by a file."""

    def _split_scope(self, nodeid):
        folder, _, file = nodeid.split("::")[0].rpartition("/")
        return nodeid.split("::")[0] if folder.startswith("tests/unit") else folder


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    return ByFixture(config, log)
