"""Several processes at once (`make test` starts them): what shares a slow fixture stays in one of them."""

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """A run or a copied checkout is shared by a whole folder; other fixtures by a file."""
    for item in items:
        folder = item.path.parent.name
        item.add_marker(pytest.mark.xdist_group(item.path.stem if folder == "unit" else folder))
