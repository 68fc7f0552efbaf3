"""Files of other tools that were edited, or written in part: one sentence, and no traceback."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from kvx.compare.lm_eval_samples import read_samples
from kvx.compare.page import Page
from kvx.compare.sides import read
from kvx.compare.table import compare, frame
from kvx.errors import UserError
from tests.test_compare import HALF, INSPECT, result, samples

Log = dict[str, Any]


def read_one(path: Path, cluster: str | None = None) -> Any:
    (found,) = read("compare.a", str(path), Path("none"), None, cluster)
    return found


def edited(tmp_path: Path, edit: Callable[[Log], Any]) -> Path:
    log = json.loads((INSPECT / "full.json").read_text())
    edit(log)
    path = tmp_path / "log.json"
    path.write_text(json.dumps(log))
    return path


def nulls(log: Log) -> None:
    log["eval"] |= {"config": None, "dataset": None}
    log["samples"][0]["scores"] = dict.fromkeys(log["samples"][0]["scores"])


def test_nulls_of_an_inspect_log_are_what_is_missing(tmp_path: Path) -> None:
    whole, partly = read_one(INSPECT / "full.json"), read_one(edited(tmp_path, nulls))
    assert len(partly.examples) == len(whole.examples)
    assert partly.scores["match"].isna().sum() == whole.scores["match"].isna().sum() + 1


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda log: log["samples"][1].pop("id"), "sample 2 has no id and input"),
        (lambda log: log["samples"].insert(0, "x"), "sample 1 has no id and input"),
        (lambda log: log.update(eval=[1]), "is not as inspect_ai writes it"),
        (lambda log: log["samples"][0].update(scores=[1]), "is not as inspect_ai writes it"),
        (lambda log: log["eval"].update(config={"epochs": "two"}), "is not as inspect_ai writes"),
    ],
)
def test_an_odd_log_is_named(tmp_path: Path, edit: Callable[[Log], Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as found:
        read_one(edited(tmp_path, edit))
    assert str(tmp_path) in str(found.value)


@pytest.mark.parametrize(
    ("line", "cluster", "said"),
    [
        ({"doc_id": 0, "doc": "a text", "acc": 1}, "topic", "its doc is no mapping of fields"),
        ({"doc_id": [0], "doc": {}, "acc": 1}, None, "line 1: doc_id is no number"),
        ({"doc_id": 0, "doc": {}, "metrics": 3}, None, "is not as lm-eval writes it"),
    ],
)
def test_odd_samples_of_lm_eval_are_named(
    tmp_path: Path, line: Log, cluster: str | None, said: str
) -> None:
    path = tmp_path / "samples_x.jsonl"
    path.write_text(json.dumps(line) + "\n")
    with pytest.raises(UserError, match=said):
        read_one(path, cluster)


@pytest.mark.parametrize(
    ("config", "ratio"), [("compression_ratio: '0.5'", "0.5"), ("compression_ratio: some", "some")]
)
def test_a_ratio_may_be_a_text(tmp_path: Path, config: str, ratio: str) -> None:
    shutil.copy(HALF / "predictions.csv", tmp_path)
    (tmp_path / "config.yaml").write_text(f"{config}\ndataset: ruler\n")
    assert read_one(tmp_path / "predictions.csv").place["compression_ratio"] == ratio


def test_a_damaged_config_is_named(tmp_path: Path) -> None:
    shutil.copy(HALF / "predictions.csv", tmp_path)
    (tmp_path / "config.yaml").write_text("dataset: [ruler")
    with pytest.raises(UserError, match=r"config\.yaml: cannot be read"):
        read_one(tmp_path / "predictions.csv")


def test_a_direction_that_no_file_tells_is_known_or_said_to_be_assumed(tmp_path: Path) -> None:
    def written(metric: str, results: Log | None = None) -> Path:
        folder = tmp_path / metric
        folder.mkdir()
        at = "2026-01-01T00-00-00.0"
        path = folder / f"samples_x_{at}.jsonl"
        path.write_text(json.dumps({"doc_id": 0, "doc": {}, metric: 2.5}) + "\n")
        if results is not None:
            (folder / f"results_{at}.json").write_text(json.dumps(results))
        return path

    known = read_samples(written("word_perplexity"), None)
    assert known.higher_is_better == {"word_perplexity": False}
    assert not known.notes
    guessed = read_samples(written("mine"), None)
    assert guessed.higher_is_better == {"mine": True}
    assert "direction of mine: higher is taken as better" in guessed.notes[0]
    told = read_samples(written("theirs", {"higher_is_better": {"x": {"theirs": False}}}), None)
    assert told.higher_is_better == {"theirs": False}
    assert not told.notes
    assert not read_samples(samples("full", "sums"), None).notes


def test_an_inspect_scorer_of_ones_own_has_an_assumed_direction(tmp_path: Path) -> None:
    def rename(log: Log) -> None:
        for sample in log["samples"]:
            sample["scores"] = {"distance": next(iter((sample["scores"] or {"": {}}).values()))}

    assert not any("direction" in note for note in read_one(INSPECT / "full.json").notes)
    assert any("of distance" in note for note in read_one(edited(tmp_path, rename)).notes)


def test_the_level_of_intervals_is_told_as_it_is() -> None:
    ids = [str(i) for i in range(10)]
    found = compare(result(ids, [1.0] * 10), result(ids, [1.0] * 5 + [0.0] * 5), None, None, 0.975)
    assert found is not None
    page = Page("a", "b", [found], frame([found]), 0, 0.975)
    assert "97.5% intervals" in page.text()
    assert "97.5\\% intervals" in page.latex()
    assert isinstance(page.rows, pd.DataFrame)
