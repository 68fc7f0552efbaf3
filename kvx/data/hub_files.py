"""Single files of a hub dataset, at one commit."""

import contextlib
import re
from pathlib import Path
from typing import Any

from kvx.errors import UserError

TIMEOUT_S = 10.0


def commit(hub: str, revision: str | None) -> str:
    """Raises `UserError` for a revision that could name other data tomorrow."""
    if re.fullmatch(r"[0-9a-f]{40}", revision or "") is None:
        raise UserError(
            f"dataset.source.hub_revision={revision}: name a commit of {hub} (40 hex digits); a "
            "branch could change under finished runs"
        )
    return str(revision)


def hub_file(hub: str, revision: str | None, name: str, otherwise: str) -> Path:
    """The file `name` of the dataset `hub`, from the hub or its cache on this machine.

    Raises `UserError`, which says what to do `otherwise`, if the hub does not give it.
    """
    import httpx  # what huggingface_hub asks with
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    at = commit(hub, revision)
    where: Any = {"repo_type": "dataset", "revision": at}
    with contextlib.suppress(LocalEntryNotFoundError):  # a commit does not change
        return Path(hf_hub_download(hub, name, local_files_only=True, **where))
    try:
        # asked once: the download itself tries six times over half a minute, and logs each
        get_hf_file_metadata(hf_hub_url(hub, name, **where), timeout=TIMEOUT_S)
        return Path(hf_hub_download(hub, name, **where))
    except (
        httpx.HTTPError, LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError,
    ) as error:  # fmt: skip
        raise UserError(
            f"dataset.source.hub={hub}: the hub did not give {name} ({type(error).__name__}); "
            f"without a hub, {otherwise}"
        ) from None
