"""A copy of the checkout in which stages compute nothing, and what Snakemake plans to do in it.

In the copy `minillm/cli.py` is replaced by `stub_cli.py`, which writes the files that a stage declares; a
`torch` that cannot be imported shows that planning needs none.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from checkout import LEFT_OUT, PLAN, Checkout

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A copy of this checkout, stages stubbed, nothing run yet."""
    root = tmp_path_factory.mktemp("checkout") / "repo"
    shutil.copytree(REPO, root, ignore=shutil.ignore_patterns(*LEFT_OUT))
    shutil.copy(Path(__file__).with_name("stub_cli.py"), root / "minillm" / "cli.py")
    for module in ("torch", "transformers"):
        (root / "no_torch").mkdir(exist_ok=True)
        (root / "no_torch" / f"{module}.py").write_text("raise ImportError('not for planning')\n")
    return Checkout(root)


@pytest.fixture(scope="session")
def finished(checkout: Checkout, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A copy of its own after a whole run of plan.yaml.

    So nothing has run in the other one, whatever the order of tests.
    """
    root = tmp_path_factory.mktemp("finished") / "repo"
    shutil.copytree(checkout.root, root, ignore=shutil.ignore_patterns(*LEFT_OUT))
    copy = Checkout(root)
    copy.snakemake("--cores", "4", "--configfile", PLAN, "--quiet", "--show-failed-logs")
    return copy
