"""Labels of presses, controllers and variants in tables: a name, and the settings that differ."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from kvx.points import OWN


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


# what a benchmark's tasks have each of their own
_OF_TASK = ("task", "category", "source", "template", "metrics", "answer_format", "overflow")
_TAKEN_OVER = ("max_new_tokens", "until")


def benchmark_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """A point's configuration without what tells points, or a benchmark's tasks, apart."""
    kept = {name: value for name, value in config.items() if name not in OWN}
    of_task = {*_OF_TASK, *_TAKEN_OVER}
    kept["dataset"] = {n: v for n, v in config["dataset"].items() if n not in of_task}
    kept["decoding"] = {n: v for n, v in config["decoding"].items() if n not in _TAKEN_OVER}
    return kept


def variant_settings(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """For each variant the settings in which it differs from others.

    Of its data only those in which it differs from variants of the same data set and task.
    """
    suffixes = differences({v: benchmark_settings(c) for v, c in configs.items()})
    by_data: dict[tuple[str, str], dict[str, Any]] = defaultdict(dict)
    for variant, config in configs.items():
        data, decoding = config["dataset"], config["decoding"]
        own = {n: decoding[n] for n in _TAKEN_OVER if n in decoding}
        left_out = benchmark_settings(config)["dataset"]
        by_data[data["name"], data["task"]][variant] = {
            "dataset": {n: v for n, v in data.items() if n not in left_out},
            "decoding": own,
        }
    of_data = {v: text for alike in by_data.values() for v, text in differences(alike).items()}
    return {v: _joined(suffixes[v], of_data[v]) for v in configs}


def _joined(*texts: str) -> str:
    parts = [part for text in texts if text for part in text.split(", ")]
    return ", ".join(dict.fromkeys(parts))


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
