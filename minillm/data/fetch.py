"""Stage `fetch`: download from the Hugging Face hub into its cache before any job needs it, and record it.

All other stages run with the hub switched off and read the cache (HF_HOME, which the nodes of a cluster
share), so nodes need no network, and what was recorded is what is used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minillm.config.stage_settings import FetchSettings
from minillm.config.subsets import Subsets
from minillm.data import length_subsets
from minillm.data.file_kinds import IGNORED, TOKENIZER
from minillm.data.sources import resolve_path
from minillm.errors import UserError
from minillm.files import sha256, write_json
from minillm.redact import blanked


def run_stage(settings: FetchSettings, *, out: Path) -> None:
    """Download one model, tokenizer or data set at its revision; `out` records commit and hash of each file.

    A revision that is not a commit may have moved since it was last fetched to this cache: the record and the
    log then name both commits.  Raises UserError, one line, if the download fails.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import GatedRepoError

    before = _cached_commit(settings)
    what = f"{settings.kind} '{settings.path}'"
    try:
        record = _dataset(settings) if settings.kind == "dataset" else _repository(settings)
    except UserError:
        raise
    except Exception as error:
        # The hub's clients raise many kinds of exceptions, network failures among them; all become one line.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        reason = blanked(reason, get_token() or "")
        gated = settings.gated or isinstance(error, GatedRepoError)
        raise UserError(
            f"{what} at revision '{settings.revision or 'main'}': cannot be fetched ({reason}); "
            + (f"{asks_for_licence(settings.path, settings.kind)}; " if gated else "")
            + "check name, revision and network, or fetch it on a machine with a network, with HF_HOME on a "
            "file system that both see"
        ) from None
    if before and record["commit"] not in (None, "local", before):
        record["moved_from"] = before
        print(
            f"{what}: revision '{settings.revision or 'main'}' moved from commit {before} to "
            f"{record['commit']}; runs made before have the former: write a commit to fix it",
            flush=True,
        )
    write_json(
        out, {"kind": settings.kind, "path": settings.path, "revision": settings.revision or "main", **record}
    )


def asks_for_licence(path: str, kind: str = "model") -> str:
    """What to do about a repository that the hub gives only to those who accepted its licence."""
    page = "https://huggingface.co/" + ("datasets/" if kind in ("dataset", "subsets") else "")
    page += "/".join(path.split("/")[:2])
    return f"it is gated: accept its licence at {page}, then `hf auth login` (or set HF_TOKEN)"


def _cached_commit(settings: FetchSettings) -> str:
    """The commit that a branch or tag was when it was last fetched to this cache; empty if it never was."""
    from huggingface_hub.constants import HF_HUB_CACHE

    kind = "dataset" if settings.kind in ("dataset", "subsets") else "model"
    name = "--".join([f"{kind}s", *settings.path.split("/")[:2]])
    ref = Path(HF_HUB_CACHE) / name / "refs" / (settings.revision or "main")
    try:
        return ref.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def _repository(settings: FetchSettings) -> dict[str, Any]:
    from huggingface_hub import snapshot_download

    if settings.kind == "subsets":
        folder = length_subsets.folder_of(
            Subsets(source="hub", path=settings.path, revision=settings.revision)
        )
        return {"commit": folder.name, "files": _hashes(folder)}
    tokenizer = settings.kind == "tokenizer"
    older = ["*.bin", "*.pt"] if not tokenizer and _has_safetensors(settings) else []
    folder = Path(
        snapshot_download(
            settings.path,
            revision=settings.revision or "main",
            allow_patterns=list(TOKENIZER) if tokenizer else None,
            ignore_patterns=[*IGNORED, *older],
        )
    )
    return {"commit": folder.name, "files": _hashes(folder)}


def _has_safetensors(settings: FetchSettings) -> bool:
    """Whether the repository has safetensors, so that older formats of the same weights can be left out.

    False if the hub cannot be asked.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        names = HfApi().list_repo_files(settings.path, revision=settings.revision or "main")
    except OfflineModeIsEnabled:
        return False
    return any(name.endswith(".safetensors") for name in names)


def _dataset(settings: FetchSettings) -> dict[str, Any]:
    """As in sources.py: one file of a repository, a local folder in the hub's layout, or a table."""
    path = resolve_path(settings.path, "path")
    if path.exists():
        files = {path.name: sha256(path)} if path.is_file() else _hashes(path)
        return {"commit": "local", "files": files}
    parts = settings.path.split("/")
    if len(parts) > 2:
        from huggingface_hub import hf_hub_download

        name = "/".join(parts[2:])
        file = Path(
            hf_hub_download(
                "/".join(parts[:2]), name, repo_type="dataset", revision=settings.revision or None
            )
        )
        return {"commit": file.parents[len(parts) - 3].name, "files": {name: sha256(file)}}
    import datasets

    table = datasets.load_dataset(
        settings.path,
        settings.subset or None,
        split=settings.split or "train",
        revision=settings.revision or None,
    )
    cached = [Path(entry["filename"]) for entry in table.cache_files]
    return {
        "rows": len(table),
        "commit": _commit(settings),
        "files": {file.name: sha256(file) for file in cached},
    }


def _commit(settings: FetchSettings) -> str | None:
    """Commit of a data set, which `datasets` does not report; None if the hub cannot be asked."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        return HfApi().dataset_info(settings.path, revision=settings.revision or "main").sha
    except OfflineModeIsEnabled:
        return None


def _hashes(folder: Path) -> dict[str, str]:
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {name: sha256(folder / name) for name in names}
