"""Hydra's and OmegaConf's errors in one line that names the field and what to do."""

import re


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
    if found := re.search(
        r"Could not find '(\w+)/([^']+)'\s+Available options in '\w+':\s+([\s\S]+)", text
    ):
        group, option = found[1], found[2]
        options = ", ".join(re.findall(r"^\s*(\w+)\s*$", found[3], re.MULTILINE))
        return f"{group}={option}: unknown {group}; choose one of {options}"
    if found := re.search(r"Ambiguous value for argument '([^']+)'", text):
        return f"{found[1]}: several values; add -m to sweep over them"
    if found := re.search(r"Error merging override (\S+)", text):
        reason = cause.splitlines()[0] if cause else text.splitlines()[-1]
        return f"{found[1]}: {plainly(reason)}"
    if found := re.search(r"Could not override '([^']+)'", text):
        return f"{found[1]}: no such field; see `--cfg job` for the fields there are"
    if found := re.search(r"missing mandatory value: (\S+)", text, re.IGNORECASE):
        key = None if "." in found[1] else re.search(r"full_key: (\S+)", text)
        return f"{key[1] if key else found[1]}: needs a value"
    full_key = re.search(r"full_key: (\S+)", text)
    if found := re.search(r"In '([^']+)': \w+ raised while composing config:\n(.+)", text):
        return f"{full_key[1] + ': ' if full_key else ''}{found[2]} (in {found[1]}.yaml)"
    first = text.splitlines()[0] if text else type(error).__name__
    return f"{full_key[1]}: {first}" if full_key else re.sub(r"\s*\n\s*", "; ", text.strip())
