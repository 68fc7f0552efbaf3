"""Single files of a hub dataset, at one commit."""

import re
from pathlib import Path

from kvx.errors import UserError


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
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    at = commit(hub, revision)
    try:
        return Path(hf_hub_download(hub, name, repo_type="dataset", revision=at))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(
            f"dataset.source.hub={hub}: the hub did not give {name} ({type(error).__name__}); "
            f"without a hub, {otherwise}"
        ) from None
