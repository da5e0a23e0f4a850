"""`minillm push MODEL REPO`: a model's folder, with its whole card, into a repository of the hub."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from minillm.errors import UserError
from minillm.files import identity
from minillm.publish.lineage import read_provenance
from minillm.publish.model_card import full_card
from minillm.redact import blanked
from minillm.runtime.card import README


def push(
    folder: Path,
    repo: str,
    *,
    really: bool = False,
    private: bool = False,
    licence: str = "",
    api: Any = None,
) -> list[str]:
    """Upload the model in `folder` to `repo` (OWNER/NAME) if `really`; returns what to print.

    The folder is read whole and compared with its provenance first, and nothing in it is changed: the card is
    made for the upload.  Without `really` the lines are the list of files and the card, and nothing is asked
    of the network.  `api` stands in for huggingface_hub.HfApi.  Raises UserError, one line, if the folder is
    no model or is not what its record says, for a name that the hub does not take, without a token, and if
    the hub refuses.
    """
    record = read_provenance(folder)
    identity(folder)
    _check_name(repo)
    card = full_card(folder, licence)
    names = files_of(folder)
    sizes = {README: len(card.encode()), **{name: (folder / name).stat().st_size for name in names}}
    lines = [f"{size:>14,}  {name}" for name, size in sorted(sizes.items())]
    lines.append(f"{sum(sizes.values()):>14,}  bytes in {len(sizes)} files for {repo}")
    hosts = record.get("hosts")
    if hosts:
        lines.append(f"provenance.json names the machines that trained: {', '.join(map(str, hosts))}")
    if not licence:
        lines.append("the card names no licence of this model: say --licence ID (apache-2.0, other, ...)")
    if not really:
        return [*lines, "", card, f"Nothing was uploaded; add --really to upload to {repo}."]
    return [*lines, _upload(folder, names, card, repo, private, api)]


def files_of(folder: Path) -> list[str]:
    """Names of what is uploaded, README.md apart: no hidden files, such as Snakemake's time stamp."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    visible = (path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts))
    return sorted(name for name in visible if name != README)


def _check_name(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
        if repo.count("/") != 1:
            raise HFValidationError
    except HFValidationError:
        raise UserError(f"'{repo}': not the name of a repository of the hub; write OWNER/NAME") from None


def _upload(folder: Path, names: list[str], card: str, repo: str, private: bool, api: Any) -> str:
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    token = get_token()
    if not token:
        raise UserError("no token of the Hugging Face hub here; run `hf auth login`, or set HF_TOKEN")
    api = api or HfApi()
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(folder / name)) for name in names]
    operations.append(CommitOperationAdd(path_in_repo=README, path_or_fileobj=io.BytesIO(card.encode())))
    try:
        api.create_repo(repo, private=private, exist_ok=True, token=token)
        done = api.create_commit(repo, operations, commit_message="Model, provenance and card", token=token)
    except Exception as error:
        # The hub's client raises many kinds of exceptions, network failures among them.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{repo}: the hub did not take it ({blanked(reason, token)}); check name, token and network"
        ) from None
    return f"Uploaded: {getattr(done, 'commit_url', repo)}"
