"""Hydra's and OmegaConf's errors in one line that names the field and what to do."""

import os
import re
import traceback

from kvx.config.field_names import fields_of, no_such_field


def plainly(reason: str) -> str:
    """OmegaConf's reasons, as what is to be typed instead."""
    if re.search(r"Value '.*' is not a valid bool", reason):
        return "must be true or false"
    if re.search(r"field '.*' is not Optional", reason):
        return "must have a value"
    if "is not a ListConfig, list or tuple" in reason:
        return "must be a list, such as [a,b]"
    return reason


def explain(error: BaseException) -> str:
    """One line for a composition error; falls back to its own text, joined."""
    text = str(error)
    cause = str(error.__cause__) if error.__cause__ is not None else ""
    if (message := _of_an_override(text, cause)) is not None:
        return message
    if found := re.search(r"missing mandatory value: (\S+)", text, re.IGNORECASE):
        key = None if "." in found[1] else re.search(r"full_key: (\S+)", text)
        return f"{key[1] if key else found[1]}: needs a value"
    full_key = re.search(r"full_key: (\S+)", text)
    if full_key and (unexpected := re.search(r"unexpected keyword argument '(\w+)'", text)):
        named = f"{full_key[1]}.{unexpected[1]}"
        return f"{named}: {no_such_field(named)}"
    inside = re.search(r"In '([^']+)': \w+ raised while composing config:\n(.+)", text)
    if full_key and _UNKNOWN_KEY.search(text):
        place = f" (in {inside[1]}.yaml)" if inside else ""
        return f"{full_key[1]}: {no_such_field(full_key[1])}{place}"
    if inside:
        return f"{full_key[1] + ': ' if full_key else ''}{inside[2]} (in {inside[1]}.yaml)"
    first = text.splitlines()[0] if text else type(error).__name__
    return f"{full_key[1]}: {first}" if full_key else re.sub(r"\s*\n\s*", "; ", text.strip())


_UNKNOWN_KEY = re.compile(r"Key '[^']+' not in '\w+'")


def _of_an_override(text: str, cause: str) -> str | None:
    """The error in one argument of the command line; None if the error names no argument."""
    if found := re.search(
        r"Could not find '(\w+)/([^']+)'\s+Available options in '\w+':\s+([\s\S]+)", text
    ):
        group, option = found[1], found[2]
        options = ", ".join(re.findall(r"^\s*(\w+)\s*$", found[3], re.MULTILINE))
        return f"{group}={option}: unknown {group}; choose one of {options}"
    if found := re.search(r"Ambiguous value for argument '([^']+)'", text):
        return f"{found[1]}: several values; add -m to sweep over them"
    if found := re.search(r"Error merging override (\S+)", text):
        if (key := re.search(r"full_key: (\S+)", cause)) and _UNKNOWN_KEY.search(cause):
            return f"{key[1]}: {no_such_field(key[1])}"
        reason = cause.splitlines()[0] if cause else text.splitlines()[-1]
        return f"{found[1]}: {plainly(reason)}"
    if found := re.search(r"Could not override '([^']+)'", text):
        if below := fields_of(found[1]):
            first = f"{found[1]}.{next(iter(below))}"
            return f"{found[1]}: holds fields of its own; set one of them, e.g. {first}=…"
        return f"{found[1]}: {no_such_field(found[1])}"
    return None


def of_yaml(error: Exception) -> str | None:
    """One line for a file that is not YAML; None for any other error."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return None
    return f"{mark.name}, line {mark.line + 1}: no YAML ({getattr(error, 'problem', None)})"


def of_reading(error: OSError) -> bool:
    """Whether an operating system's refusal was met while reading.

    What cannot be read says so by itself. Else, as for a file in a closed folder, the code does:
    the innermost line that reads or writes.
    """
    path = error.filename
    if isinstance(path, str | os.PathLike) and os.path.exists(path):
        if not os.access(path, os.R_OK):
            return True
        if not os.access(path, os.W_OK):
            return False
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        for text in (frame.name, frame.line or ""):
            if _WRITES.search(text):
                return False
            if _READS.search(text):
                return True
    return False


_WRITES = re.compile(
    r"write|mkdir|makedirs|touch|rename|replace|unlink|rmtree|mkstemp|dump|save|lock|O_CREAT"
    r"|[\"'][wax]b?\+?[\"']"
)
_READS = re.compile(r"read|load|open\(|iterdir|scandir|listdir|glob|stat\(|is_file|is_dir|exists")
