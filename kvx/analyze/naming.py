"""Labels of presses, controllers and variants in tables: a name, and the settings that differ."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any


def told_apart(names: Mapping[str, str], settings: Mapping[str, Any]) -> dict[str, str]:
    """For each id its name, with the settings that differ where several share one."""
    alike: dict[str, list[str]] = defaultdict(list)
    for i, name in names.items():
        alike[name].append(i)
    found: dict[str, str] = {}
    for name, ids in alike.items():
        suffixes = differences({i: settings[i] for i in ids})
        found |= {i: f"{name}({s})" if s else name for i, s in suffixes.items()}
    return found


def metric_title(name: str) -> str:
    """`exact match`; a metric of the user's keeps its dotted name."""
    return name if "." in name else name.replace("_", " ")


def flat(value: Any, prefix: str = "") -> dict[str, str]:
    """A nested configuration as `a.b: text`."""
    if not isinstance(value, dict):
        return {prefix: str(value).replace("\n", "\\n")}  # a template's, in one line
    found: dict[str, str] = {}
    for key, inner in value.items():
        found |= flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return found


def differences(configs: dict[str, Any]) -> dict[str, str]:
    """For each id, `name=value` of the fields in which the configurations differ."""
    flattened = {i: flat(c) for i, c in configs.items()}
    keys = sorted({k for f in flattened.values() for k in f})
    differing = [k for k in keys if len({f.get(k) for f in flattened.values()}) > 1]
    # the label has model and dataset names already
    differing = [k for k in differing if not k.endswith((".name", ".revision"))]
    return {
        i: ", ".join(_setting(k, f[k]) for k in differing if k in f) for i, f in flattened.items()
    }


def _setting(key: str, value: str) -> str:
    """`window_size=16`; of an implementation only the class."""
    name = key.rsplit(".", 1)[-1]
    return value.rsplit(".", 1)[-1] if name == "_target_" else f"{name}={value}"
