"""kvpress's evaluation: a folder with predictions.csv, config.yaml and metrics.json (0.5.x)."""

import ast
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kvx.compare.results import Result, asked_key, references_key
from kvx.errors import UserError, first_line
from kvx.scoring.metrics import METRICS

KIND = "kvpress"
CONTROL = re.compile(r"[\x00-\x1f]")
STRING = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""")
REFERENCES = ("answer", "answers")
F1_TASKS = {
    "narrativeqa", "qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "musique", "triviaqa",
}  # fmt: skip
TRIVIAQA = "triviaqa"  # of which kvpress scores the first line


def read_predictions(path: Path, metric: str | None, cluster: str | None) -> Result:
    """The rows of a predictions.csv, scored here: the file holds answers, and no scores.

    RULER and LongBench's tasks with F1 are scored by their own metric; for others name one of kvx's
    with `compare.metric`. Raises `UserError` for a file without the columns of an evaluation.
    """
    table = _table(path)
    config = _config(path)
    references = next(name for name in REFERENCES if name in table)
    answers = [parsed(text) for text in table[references]]
    name, scored = _scorer(path, config, table, metric)
    scores = [
        scored(prediction, own, task)
        for prediction, own, task in zip(
            table["predicted_answer"], answers, table.get("task", table[references]), strict=True
        )
    ]
    dataset = str(config.get("dataset", "?"))
    press, ratio = str(config.get("press_name", "?")), config.get("compression_ratio")
    questions = table["question"] if "question" in table else [""] * len(table)
    keys = [asked_key(q, a) for q, a in zip(questions, answers, strict=True)]
    return Result(
        path=path,
        kind=KIND,
        label=path.parent.name,
        examples=pd.DataFrame(
            {
                "id": [None] * len(table),
                "prompt": [None] * len(table),
                "asked": keys,
                "references": [references_key(a) for a in answers],
                "cluster": _clusters(path, table, cluster),
            },
            dtype=object,
        ),
        scores=pd.DataFrame({name: np.asarray(scores, dtype=np.float64)}),
        higher_is_better={name: True},
        place={
            "dataset": f"{dataset}/{config['data_dir']}" if config.get("data_dir") else dataset,
            "model": str(config.get("model", "?")),
            "press": press,
            "compression_ratio": _ratio(ratio),
        },
        settings=config,
        notes=_check(path, table, name, scores),
    )


def parsed(text: str) -> list[str]:
    """The references of a cell: a text, a Python list, or what NumPy prints of an array.

    `['a' 'b']` is two references, as an array has no commas.
    """
    if not (text.startswith("[") and text.endswith("]")):
        return [text]
    found = [str(ast.literal_eval(part)) for part in STRING.findall(text)]
    return found or [part for part in re.split(r"[,\s]+", text[1:-1]) if part]


def _ratio(value: Any) -> str:
    """A compression ratio in one form, also where a YAML file has it as a text."""
    try:
        return f"{float(value):g}"
    except (TypeError, ValueError):
        return "?" if value is None else str(value)


def _table(path: Path) -> pd.DataFrame:
    try:
        # an answer may be the text None or nan
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({first_line(error)})") from None
    if "predicted_answer" not in table or not any(name in table for name in REFERENCES):
        raise UserError(
            f"{path}: has no columns predicted_answer and answer; name a predictions.csv of "
            "kvpress's evaluation"
        )
    return table


def _config(path: Path) -> dict[str, Any]:
    """config.yaml beside the predictions; empty where it is missing."""
    try:
        found = OmegaConf.to_container(OmegaConf.load(path.with_name("config.yaml")))
    except FileNotFoundError:
        return {}
    except (yaml.YAMLError, OmegaConfBaseException, OSError) as error:
        raise UserError(
            f"{path.with_name('config.yaml')}: cannot be read ({first_line(error)})"
        ) from None
    return {str(k): v for k, v in found.items()} if isinstance(found, dict) else {}


Scorer = Callable[[str, Sequence[str], str], float]


def _scorer(
    path: Path, config: dict[str, Any], table: pd.DataFrame, metric: str | None
) -> tuple[str, Scorer]:
    """The metric's name, and its function of prediction, references and task."""
    tasks = set(table["task"]) if "task" in table else set()
    dataset = config.get("dataset")
    if metric is not None and metric not in ("string_match", "qa_f1_score"):
        own = METRICS.get(metric, "compare.metric")
        return metric, lambda text, answers, task: own(text, answers).value
    if metric == "string_match" or dataset == "ruler":
        return "string_match", _ruler
    if metric == "qa_f1_score" or (str(dataset).startswith("longbench") and tasks <= F1_TASKS):
        return "qa_f1_score", _longbench
    raise UserError(
        f"{path}: holds answers without scores, and kvx does not know the metric of dataset "
        f"{dataset or '? (no config.yaml beside it)'}; name one of kvx's with compare.metric"
    )


def _ruler(text: str, answers: Sequence[str], task: str) -> float:
    any_or_all = "string_match_any" if task.split("_")[0] == "qa" else "string_match_all"
    return METRICS.get(any_or_all, "")(CONTROL.sub("", text.strip()), answers).value


def _longbench(text: str, answers: Sequence[str], task: str) -> float:
    if task == TRIVIAQA:
        text = text.lstrip().split("\n")[0]
    return METRICS.get("qa_f1", "")(text, answers).value


def _clusters(path: Path, table: pd.DataFrame, column: str | None) -> list[str] | list[None]:
    if column is None:
        return [None] * len(table)
    if column not in table:
        raise UserError(
            f"{path}: compare.cluster={column} is no column; there are {', '.join(table.columns)}"
        )
    return [str(value) for value in table[column]]


def _check(path: Path, table: pd.DataFrame, name: str, scores: Sequence[float]) -> list[str]:
    """Says where kvpress's own metrics.json tells other means than these scores."""
    try:
        told = json.loads(path.with_name("metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    if name == "string_match" and isinstance(told, dict) and "task" in table:
        means = pd.Series(scores).groupby(table["task"]).mean() * 100
        pairs = {
            task: (mean, told[task].get("string_match"))
            for task, mean in means.items()
            if isinstance(told.get(task), dict)
        }
    elif isinstance(told, int | float):
        pairs = {name: (float(np.mean(scores)) * 100, told)}
    else:
        return []
    return [
        f"{path.with_name('metrics.json')} tells {theirs} of {task}, these answers give {ours:.2f}"
        for task, (ours, theirs) in pairs.items()
        if theirs is None or abs(ours - theirs) > 0.006
    ]
