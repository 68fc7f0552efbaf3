"""What `compare.a` names: an experiment, a point, or a file or folder of another tool."""

import contextlib
import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from kvx.compare.experiments import read_experiment
from kvx.compare.inspect_log import read_log
from kvx.compare.kvpress_predictions import read_predictions
from kvx.compare.lm_eval_samples import newest, read_samples
from kvx.compare.results import Result, checked
from kvx.errors import UserError, first_line

KINDS = (
    "an experiment of kvx, a samples_*.jsonl of lm-eval, a log of inspect_ai (.eval, .json), or a "
    "predictions.csv of kvpress"
)
HEAD = 65536  # characters of a JSON file that tell what it is


def read(
    field: str, text: str, runs: Path, metric: str | None, cluster: str | None
) -> list[Result]:
    """The results that `text` names, checked.

    `runs` is the folder of experiments. Raises `UserError` for what does not exist, and for files
    that hold no examples with scores.
    """
    path = Path(text).expanduser()
    if path.is_dir() and (found := _of_folder(path, metric, cluster)):
        return [checked(r) for r in found]
    if path.is_file():
        return [checked(_of_file(path, metric, cluster))]
    name, _, start = text.rstrip("/").partition("/")
    if (runs / name / "points").is_dir():
        return [checked(r) for r in read_experiment(runs / name, start)]
    if path.is_dir():
        raise UserError(f"{field}={text}: no results in this folder; name {KINDS}")
    raise UserError(f"{field}={text}: no such file, folder or experiment of {runs}; name {KINDS}")


def _of_folder(path: Path, metric: str | None, cluster: str | None) -> Sequence[Result]:
    if (path / "points").is_dir():
        return read_experiment(path.resolve())
    if (path / "point.json").is_file():
        return read_experiment(path.resolve().parents[1], path.resolve().name)
    if tables := sorted(path.rglob("predictions.csv")):
        return [_of_file(table, metric, cluster) for table in tables]
    if samples := newest(path):
        return [_of_file(one, metric, cluster) for one in samples]
    logs = [p for p in sorted([*path.glob("*.eval"), *path.glob("*.json")]) if _is_log(p)]
    return [_of_file(log, metric, cluster) for log in logs]


def _of_file(path: Path, metric: str | None, cluster: str | None) -> Result:
    if not path.stat().st_size:
        raise UserError(f"{path}: is empty")
    match path.suffix:
        case ".csv":
            with _as_written_by(path, "kvpress"):
                return read_predictions(path, metric, cluster)
        case ".jsonl":
            with _as_written_by(path, "lm-eval"):
                return read_samples(path, cluster)
        case ".eval":
            if not zipfile.is_zipfile(path):
                raise UserError(f"{path}: is no log of inspect_ai, or was cut off while written")
            with _as_written_by(path, "inspect_ai"):
                return read_log(path, cluster)
        case ".json":
            _refuse_means(path)
            with _as_written_by(path, "inspect_ai"):
                return read_log(path, cluster)
    raise UserError(f"{path}: not a kind of file that is known here; name {KINDS}")


@contextlib.contextmanager
def _as_written_by(path: Path, tool: str) -> Iterator[None]:
    """Raises `UserError` where a foreign file has another shape than its `tool` gives it.

    Readers check what tools leave out; a file edited by hand can have anything anywhere.
    """
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else first_line(error)
        raise UserError(f"{path}: is not as {tool} writes it ({what})") from error


def _is_log(path: Path) -> bool:
    return path.suffix == ".eval" or '"eval"' in _head(path)


def _head(path: Path) -> str:
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(HEAD)


def _refuse_means(path: Path) -> None:
    """Raises `UserError` for files of known tools that hold means and no examples."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({first_line(error)})") from None
    if isinstance(found, dict) and "results" in found and "lm_eval_version" in found:
        raise UserError(
            f"{path}: holds means only; name a samples_*.jsonl beside it (lm-eval writes them with "
            "--log_samples)"
        )
    if path.name == "metrics.json":
        raise UserError(f"{path}: holds means only; name the predictions.csv beside it")
