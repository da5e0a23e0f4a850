"""Validate a crate without a network, in the environment of roc-validator: `python validate_crate.py CRATE`.

The validator asks the network for one file, RO-Crate's JSON-LD context 1.1.  The package `rocrate` has that
of 1.3, in which the four terms below have other addresses.  Prints a line for each issue, then the verdict.
"""

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

from rocrate_validator import services
from rocrate_validator.models import Severity
from rocrate_validator.utils.http import HttpRequester

URL = "https://w3id.org/ro/crate/1.1/context"
TERMS_OF_1_1 = {
    "ComputationalWorkflow": "https://bioschemas.org/ComputationalWorkflow",
    "FormalParameter": "https://bioschemas.org/FormalParameter",
    "input": "https://bioschemas.org/ComputationalWorkflow#input",
    "output": "https://bioschemas.org/ComputationalWorkflow#output",
}


def context() -> dict:
    package = Path(find_spec("rocrate").submodule_search_locations[0])
    value = json.loads((package / "data/ro-crate.jsonld").read_text(encoding="utf-8"))
    return {"@context": value["@context"] | TERMS_OF_1_1}


def get(self, url: str, **options: object) -> SimpleNamespace:
    if url.rstrip("/") != URL:
        raise RuntimeError(f"asked the network for {url}")
    headers = {"Content-Type": "application/ld+json"}
    return SimpleNamespace(
        status_code=200, ok=True, headers=headers, json=context, text=json.dumps(context())
    )


if __name__ == "__main__":
    HttpRequester.get = get
    settings = services.ValidationSettings(
        rocrate_uri=sys.argv[1],
        profile_identifier="provenance-run-crate",
        requirement_severity=getattr(Severity, (sys.argv[2:] or ["REQUIRED"])[0]),
        enable_profile_inheritance=True,
    )
    result = services.validate(settings)
    for issue in result.get_issues():
        print(issue.severity.name, issue.check.identifier, issue.message, issue.violatingEntity)
    print(f"{'valid' if result.passed() else 'not valid'}: {len(result.executed_checks)} checks")
    sys.exit(0 if result.passed() else 1)
