"""Each point as kvpress's own evaluation would have left it: the folders of its leaderboard.

Written after `evaluation/evaluate.py` of kvpress 0.5.5: `<dataset>__<data_dir>__<model>__<press>__
<compression_ratio>` with predictions.csv, metrics.json and config.yaml.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import OmegaConf

from kvx.analyze.facts import keeps_another_number
from kvx.data.example import Example
from kvx.data.frozen_examples import load_examples
from kvx.errors import UserError
from kvx.scoring.metrics import METRICS
from kvx.store.atomic import write_text
from kvx.store.catalog import PointRecord, requests_of

# presses that kvpress's registry calls otherwise. Its expected_attention is AdaKV around it.
NAMES = {
    "none": "no_press", "streaming": "streaming_llm", "adakv": "adakv_snapkv",
    "criticalkv": "critical_snapkv", "expected_attention": "expected_attention_without_adakv",
}  # fmt: skip
MATCHES = ("string_match_all", "string_match_any")  # RULER's, of which kvpress has one name


def target_of(point: PointRecord) -> str:
    """The name of the folder that `write_point` makes."""
    return folder_name(point.info, compression_ratio(point, requests_of([point])))


def write_point(point: PointRecord, output: Path, folder: Path) -> Path:
    """Write one point below `folder`; where.

    A request without a response has an empty answer, which scores nothing. Raises `UserError` for a
    point of a controller, which the leaderboard has no name for.
    """
    if point.is_guarded:
        raise UserError(f"{point.dir}: a controller steered it; kvpress's leaderboard has none")
    examples = load_examples(point.manifest_dir(output))
    requests = requests_of([point])
    asked = [examples[i] for i in requests["example_id"]]
    texts = [text if isinstance(text, str) else "" for text in requests["text"]]
    ratio = compression_ratio(point, requests)
    tasks = [task_of(example, point.info) for example in asked]
    table = pd.DataFrame(
        {
            "task": tasks,
            "question": [e.question for e in asked],
            "answer": [str(np.array(e.answers)) if len(e.answers) else "[]" for e in asked],
            "answer_prefix": [_prefix(e, point.info) for e in asked],
            "max_new_tokens": [e.max_new_tokens or _limit(point.info) for e in asked],
            "predicted_answer": texts,
            "compression_ratio": ratio,
        }
    )
    target = folder / folder_name(point.info, ratio)
    write_text(target / "predictions.csv", table.to_csv(index=False))
    metrics = metrics_of(point.info["metrics"], tasks, texts, asked)
    write_text(target / "metrics.json", json.dumps(metrics, indent=4) + "\n")
    write_text(target / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(_config(point, ratio))))
    return target


def compression_ratio(point: PointRecord, requests: pd.DataFrame) -> float:
    """1 - budget; of a budget in tokens, or a press that kept another number by its method, the
    mean share that it dropped, as measured.
    """
    if point.info["budget_kind"] == "ratio" and not keeps_another_number(requests).any():
        return round(1 - float(point.info["budget"]), 10)
    kept = requests["kv_entries_effective"].astype(float) / requests["compressed_tokens"]
    return float(1 - kept.mean())


def folder_name(info: Mapping[str, Any], ratio: float) -> str:
    """The name of a point's folder, in kvpress's order."""
    parts = [*_dataset(info), _model(info).replace("/", "--"), _press(info), f"{ratio:.2f}"]
    if info["config"]["prompt"]["query_aware"]:
        parts.append("query_aware")
    return "__".join(part for part in parts if part)


def task_of(example: Example, info: Mapping[str, Any]) -> str:
    return str(example.meta.get("task", info["config"]["dataset"]["task"]))


def metrics_of(
    names: Sequence[str], tasks: Sequence[str], texts: Sequence[str], asked: Sequence[Example]
) -> dict[str, dict[str, float]]:
    """Mean of each metric in percent, per task; RULER's two are called string_match."""
    rows: dict[str, dict[str, list[float]]] = {}
    for task, text, example in zip(tasks, texts, asked, strict=True):
        for name, metric in _metrics(names, task):
            found = METRICS.get(metric, "dataset.metrics")
            value = found(text, example.answers, example.meta).value
            rows.setdefault(task, {}).setdefault(name, []).append(value)
    return {
        task: {name: round(100 * float(np.mean(values)), 2) for name, values in found.items()}
        for task, found in sorted(rows.items())
    }


def _metrics(names: Sequence[str], task: str) -> Iterator[tuple[str, str]]:
    for name in names:
        if name not in MATCHES:
            yield name, name
    if any(name in MATCHES for name in names):
        yield "string_match", MATCHES[task.split("_")[0] == "qa"]


def _config(point: PointRecord, ratio: float) -> dict[str, Any]:
    """The fields of kvpress's EvaluationConfig that a point has."""
    config, (dataset, task) = point.info["config"], _dataset(point.info)
    return {
        "dataset": dataset,
        "data_dir": task,
        "model": _model(point.info),
        "press_name": _press(point.info),
        "compression_ratio": ratio,
        "fraction": 1.0,
        "max_new_tokens": config["decoding"]["max_new_tokens"],
        "query_aware": config["prompt"]["query_aware"],
        "press_init_command": _command(config["press"].get("method"), ratio),
        "seed": point.info["seed"],
        "made_by": f"kvx {point.info['provenance']['versions'].get('kvx', '?')}, point {point.id}",
    }


def _command(method: Mapping[str, Any] | None, ratio: float | None) -> str:
    """A press as Python would make it, with its ratio at the innermost one."""
    if method is None:
        return "None"
    inner = any(isinstance(value, Mapping) for value in method.values())
    arguments = [
        f"{k}={_command(v, ratio) if isinstance(v, Mapping) else repr(v)}"
        for k, v in method.items()
        if k != "_target_"
    ]
    own = [] if inner or ratio is None else [f"compression_ratio={ratio:g}"]
    return f"{str(method['_target_']).rpartition('.')[2]}({', '.join([*own, *arguments])})"


def _dataset(info: Mapping[str, Any]) -> tuple[str, str]:
    config = info["config"]["dataset"]
    return str(config["name"]), str(config["task"])


def _model(info: Mapping[str, Any]) -> str:
    """A hub id as it is; of a local folder the model's name."""
    path = str(info.get("model_path") or "")
    is_hub_id = path.count("/") == 1 and not path.startswith((".", "/", "~"))
    return path if is_hub_id and not Path(path).exists() else str(info["model"])


def _press(info: Mapping[str, Any]) -> str:
    return NAMES.get(str(info["press"]), str(info["press"]))


def _prefix(example: Example, info: Mapping[str, Any]) -> str:
    own = example.answer_prefix
    return str(info["config"]["dataset"]["template"]["answer_prefix"]) if own is None else own


def _limit(info: Mapping[str, Any]) -> int:
    return int(info["config"]["decoding"]["max_new_tokens"])
