"""Fetch weight files from the hub: resumed, checked, and put under their published names at one stroke."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from core.errors import CheckpointMismatch, SuiteError
from core.weights.registry import SHA256, Registry, WeightFile, size_text

STAGING = ".downloads"  # in the ckpts folder: what is not yet whole or not yet checked
SPARE_BYTES = 100_000_000  # left free on the disk beside the file
BLOCK_BYTES = 2**22


class DownloadError(SuiteError):
    """A file could not be fetched; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What the hub says of a file: its size, and a tag that is another for other content."""

    size_bytes: int | None
    tag: str

    @property
    def sha256(self) -> str | None:
        """The digest, where the hub states one: the tag of large files is their sha256."""
        return self.tag if SHA256.fullmatch(self.tag) else None


def ask_hub(row: WeightFile) -> Offer:
    """Ask the hub for a file's size and digest, before anything is fetched.

    Raises:
        DownloadError: no such file, no right to it, no connection, or offline mode.
    """
    from huggingface_hub import get_hf_file_metadata

    url = _url(row)
    with _Explained(row):
        found = get_hf_file_metadata(url)
    return Offer(found.size, found.etag or "")


def download(row: WeightFile, folder: Path, offer: Offer) -> Path:
    """Fetch ``row`` into ``folder`` and return its path there.

    An interrupted download is continued, by a later command too. The file takes its own name only when
    it is whole and its sha256, the registry's or else the hub's, is right.

    Raises:
        DownloadError: the disk is too full, the connection failed, or the file is corrupt.
    """
    staging = folder / STAGING
    tag = re.sub(r"\W", "", offer.tag)[:16]
    part = staging / f"{row.name}.{tag}.part"
    _check_space(row, folder, part, offer)
    staging.mkdir(exist_ok=True)
    _continue(row, part, offer)
    problem = check_bytes(part, row.sha256 or offer.sha256, row.size_bytes or offer.size_bytes)
    if problem:
        _clear(staging, row)
        raise DownloadError(
            f"{row.path}: what came from {row.repo} is corrupt: {problem}. It was deleted. "
            f"Try again: python -m core.weights get {row.name}"
        )
    target = folder / row.path
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(part, target)
    _clear(staging, row)
    return target


def _continue(row: WeightFile, part: Path, offer: Offer) -> None:
    """Fetch what ``part`` lacks; ``hf_hub_download`` throws a broken download away when its process ends."""
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    if offer.size_bytes is not None and part.is_file() and part.stat().st_size > offer.size_bytes:
        part.unlink()  # two commands at once wrote into it
    url = _url(row)
    with part.open("ab") as file, _Explained(row):
        http_get(
            url,
            file,
            resume_size=file.tell(),
            headers=build_hf_headers(),
            expected_size=offer.size_bytes,
            displayed_filename=row.path,
        )


def _url(row: WeightFile) -> str:
    from huggingface_hub import hf_hub_url

    if row.repo is None or row.file is None:
        raise DownloadError(f"{row.name} comes with the project, not from the hub. Clone it again.")
    return hf_hub_url(row.repo, row.file, revision=row.revision)


def _clear(staging: Path, row: WeightFile) -> None:
    for left in staging.glob(f"{row.name}.*.part"):
        left.unlink()
    if not any(staging.iterdir()):
        staging.rmdir()


def check_bytes(path: Path, sha256: str | None, size_bytes: int | None) -> str | None:
    """Compare a file with its known size and digest, as far as they are known; say what differs."""
    size = path.stat().st_size
    if size_bytes is not None and size != size_bytes:
        return f"it has {size:,} bytes, not {size_bytes:,}"
    if sha256 is None:
        return None
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    found = digest.hexdigest()
    return None if found == sha256 else f"its sha256 is {found}, not {sha256}"


def check_file(registry: Registry, path: Path) -> str | None:
    """Say what is wrong with a weight file on this computer; None if nothing.

    Digest and size are compared where the registry knows them for a file of this name; where it knows no
    digest, the file is opened, which finds one that is cut off.
    """
    from core.weights.formats import open_tensors  # brings torch, which fetching does without

    folders = (registry.folder, registry.home)
    rows = [row for row in registry.files.values() if path in [folder / row.path for folder in folders]]
    for row in rows:
        problem = check_bytes(path, row.sha256, row.size_bytes)
        if problem:
            return problem
    if any(row.sha256 for row in rows):
        return None
    try:
        open_tensors(path)
    except CheckpointMismatch as error:
        return str(error)
    return None


def _check_space(row: WeightFile, folder: Path, part: Path, offer: Offer) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    here = part.stat().st_size if part.is_file() else 0
    needed = (offer.size_bytes or 0) - here + SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DownloadError(
            f"{row.path} needs {size_text(needed)} in {folder}, where {size_text(free)} are free. "
            "Make room, or set CONTROLNET_CKPTS to a folder on another disk."
        )


class _Explained:
    """Turns what huggingface_hub raises into ``DownloadError`` with what to do."""

    def __init__(self, row: WeightFile) -> None:
        self.row = row

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception):
            raise DownloadError(f"{self.row.path} from {self.row.repo}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set. Unset it, or copy the file into the ckpts folder by hand."
    if isinstance(error, errors.GatedRepoError):
        return "its owner asks for consent. Agree on its page, then set HF_TOKEN and try again."
    if isinstance(error, (errors.EntryNotFoundError, errors.RevisionNotFoundError)):
        return "the hub has no such file; it may have moved. Find it by its name and put it into ckpts."
    if isinstance(error, errors.RepositoryNotFoundError):
        return "the hub has no such repository, or it needs a login. Set HF_TOKEN if you have one."
    if isinstance(error, errors.HfHubHTTPError):
        return f"the hub answered {str(error).splitlines()[0]!r}. Try again later."
    if isinstance(error, OSError) and not isinstance(error, ConnectionError) and error.errno is not None:
        return f"cannot be written ({error}). Make room, or set CONTROLNET_CKPTS to another folder."
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return f"the hub could not be reached or broke off ({reason}). Try again: what came is kept."
