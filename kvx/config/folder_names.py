"""One rule for every name that becomes that of a folder or a file."""

import unicodedata

from kvx.config.schema import Config
from kvx.errors import UserError, shown

MOST_BYTES = 80  # three of them, a budget and a hash must fit into one name of 255 bytes
# Windows and shells give these a meaning; so do the tables of a report
SPECIAL = '/\\<>:"|?*'


def check_name(field: str, name: str, most_bytes: int = MOST_BYTES) -> None:
    """Raises `UserError` naming `field` unless `name` is safe as the name of a folder."""
    if (wrong := _wrong(name, most_bytes)) is not None:
        said = name if name.isprintable() and len(name) < 60 else shown(name)
        raise UserError(
            f"{field}={said}: is part of a folder's name, but {wrong}; use letters, "
            "digits and _ - . + for example"
        )


def is_name(name: str) -> bool:
    """Whether a folder's name that was read from a file stays within its folder."""
    return _wrong(name, 255) is None


def _wrong(name: str, most_bytes: int) -> str | None:
    if not name:
        return "is empty"
    if name.startswith("."):
        return "starts with a dot"
    if name != name.strip() or name.endswith("."):
        return "starts or ends with a space, or ends with a dot"
    for character in name:
        if character in SPECIAL:
            return f"holds {character}"
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
            return "holds a character that cannot be seen"
    if len(name.encode()) > most_bytes:
        return f"is longer than {most_bytes} bytes"
    return None


def check_names(config: Config) -> None:
    """Raises `UserError` naming the field of a configuration whose name cannot be a folder's."""
    for field, name in (
        ("experiment_name", config.experiment_name),
        ("press.name", config.press.name),
        ("controller.name", config.controller.name),
        ("dataset.name", config.dataset.name),
        ("dataset.task", config.dataset.task),
    ):
        check_name(field, name)
