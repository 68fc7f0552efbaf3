"""One rule for every name that becomes that of a folder or a file."""

import unicodedata

from kvx.errors import UserError, shown

MOST_BYTES = 80  # three of them, a budget and a hash must fit into one name of 255 bytes
# Windows and shells give these a meaning; so do the tables of a report
SPECIAL = '/\\<>:"|?*'


def check_name(field: str, name: str, most_bytes: int = MOST_BYTES) -> None:
    """Raises `UserError` naming `field` unless `name` is safe as the name of a folder."""
    if (wrong := folder_name(name, most_bytes)) is not None:
        raise UserError(f"{field}{wrong}")


def folder_name(name: str, most_bytes: int = MOST_BYTES) -> str | None:
    """Why `name` cannot name a folder, as a check of a field; None if it can."""
    if (wrong := _wrong(name, most_bytes)) is None:
        return None
    said = name if name.isprintable() and len(name) < 60 else shown(name)
    return (
        f"={said}: is part of a folder's name, but {wrong}; use letters, digits and _ - . + for "
        "example"
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
