"""Runs see what shapes their answers: edited code, retrained models, names that are paths."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from kvx.analyze.frames import load_experiment
from kvx.certify.series import all_series
from kvx.config.folder_names import MOST_BYTES
from kvx.config.folders import package_dir
from tests.conftest import Kvx

SMALL = ("dataset.source.n_examples=60", "dataset.sampling.n_per_bin=2")
PRESS = """
from dataclasses import dataclass
from kvpress import ScorerPress

@dataclass
class MyPress(ScorerPress):
    def score(self, module, hidden_states, keys, values, attentions, kwargs):
        return {sign}keys.norm(dim=-1)
"""
MINE = (
    "press=knorm", "press.method._target_=my_identity_press.MyPress", "press.name=mine",
    "budget=0.3",
)  # fmt: skip
SOURCE = """
from kvx.data.sources.recall import RecallSource

class MySource(RecallSource):
    def revision(self):
        return "always the same"

    def examples(self):
        for example in super().examples():
            yield example  # {note}
"""


def points(name: str = "default") -> dict[str, dict[str, object]]:
    found = (
        json.loads(p.read_text()) for p in Path(f"outputs/runs/{name}/points").glob("*/point.json")
    )
    return {info["id"]: info for info in found}


def test_an_edited_press_makes_new_points_that_are_another_curve(
    kvx: Kvx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    module = tmp_path / "my_identity_press.py"
    module.write_text(PRESS.format(sign="-"))
    assert kvx("run", *SMALL).code == 0
    assert kvx("run", *SMALL, *MINE).code == 0
    assert "nothing to do" in kvx("run", *SMALL, *MINE).err
    module.write_text(PRESS.format(sign="+"))
    edited = kvx("run", *SMALL, *MINE[:-1], "budget=0.2")
    (first,) = (i for i in points() if i.startswith("mine-0.3-"))
    line = f"run: the code of my_identity_press.MyPress changed since {first} was run: new points"
    assert edited.code == 0
    assert edited.err.count(line) == 1
    again = kvx("run", *SMALL, *MINE)
    assert again.code == 0
    assert "nothing to do" not in again.err
    assert line not in again.err
    assert "nothing to do" in kvx("run", *SMALL, *MINE).err
    mine = {i: p for i, p in points().items() if i.startswith("mine-0.3-")}
    assert len({p["sources"]["my_identity_press.MyPress"] for p in mine.values()}) == len(mine) == 2
    answers = [
        pd.read_parquet(f"outputs/runs/default/points/{i}/requests.parquet")["token_ids"].map(list)
        for i in mine
    ]
    assert not answers[0].equals(answers[1])  # the new code ran, in the process that knew the old
    assert kvx("score", *SMALL).code == 0
    experiment = load_experiment(Path("outputs/runs/default"), Path("outputs"))
    curves = all_series(experiment.points)
    assert sorted(len(c.points) for c in curves) == [1, 2]
    assert {c.press for c in curves} == {
        label for i, label in experiment.press_labels.items() if i.startswith("mine-")
    }
    assert all(c.press.startswith("mine(code=") for c in curves)


def test_another_version_of_kvx_makes_no_points_new(kvx: Kvx) -> None:
    few = ("dataset.source.n_examples=20", "dataset.sampling.n_per_bin=1", "press=knorm")
    assert kvx("run", *few, "budget=0.5").code == 0
    (path,) = Path("outputs/runs/default/points").glob("*/point.json")
    info = json.loads(path.read_text())
    info["sources"] = {name: "kvx 0.0.1" if name.startswith("kvx.") else source
                       for name, source in info["sources"].items()}  # fmt: skip
    path.write_text(json.dumps(info))
    another = kvx("run", *few, "budget=0.4")
    assert another.code == 0
    assert "changed since" not in another.err
    assert "nothing to do" in kvx("run", *few, "budget=0.5").err


def test_other_prompts_for_the_same_command_are_told(kvx: Kvx) -> None:
    """As of an older kvx that rendered them otherwise."""
    few = ("dataset.source.n_examples=20", "dataset.sampling.n_per_bin=1", "press=knorm")
    assert kvx("run", *few, "budget=0.5").code == 0
    (path,) = Path("outputs/runs/default/points").glob("*/point.json")
    info = json.loads(path.read_text())
    info["manifest"]["key"] = "0" * 8
    path.write_text(json.dumps(info))
    said = kvx("run", *few, "budget=0.4").err
    line = f"the prompts or the choice of examples of recall__kv changed since {info['id']} was run"
    assert line in said


def test_an_edited_data_source_makes_a_new_manifest_and_new_points(
    kvx: Kvx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    module = tmp_path / "my_identity_source.py"
    own = (*SMALL, "dataset.source._target_=my_identity_source.MySource")
    ran = []
    for note in ("one", "two"):
        module.write_text(SOURCE.format(note=note))
        ran.append(kvx("run", *own))
    assert [r.code for r in ran] == [0, 0]
    assert len(points()) == 2
    assert "the code of my_identity_source.MySource changed since" in ran[1].err
    assert ran[1].err.count("new points are made") == 1
    assert "nothing to do" in kvx("run", *own).err


def test_a_retrained_model_in_the_same_folder_is_another_model(kvx: Kvx, tmp_path: Path) -> None:
    """In one process, as a notebook does it; the second model's answers are its own."""
    folder = Path(shutil.copytree(package_dir() / "assets" / "tiny_recall", tmp_path / "model"))
    own = (*SMALL, f"model.path={folder}")
    assert kvx("run", *own).code == 0
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    torch.manual_seed(0)
    noisy = {k: v + 3 * v.std() * torch.randn_like(v) for k, v in weights.items()}
    save_file(noisy, folder / "model.safetensors", metadata={"format": "pt"})
    retrained = kvx("run", *own)
    assert retrained.code == 0
    assert len(points()) == 2
    assert "the files of model=tiny_recall changed since" in retrained.err
    texts = [
        pd.read_parquet(f"outputs/runs/default/points/{i}/requests.parquet")["token_ids"].map(list)
        for i in points()
    ]
    assert not texts[0].equals(texts[1])


def test_answers_of_several_versions_are_told(kvx: Kvx) -> None:
    assert kvx("run", "-m", *SMALL, "press=knorm", "budget=1.0,0.5").code == 0
    folder = Path("outputs/runs/default/points")
    (path,) = folder.glob("knorm-0.5-*/point.json")
    info = json.loads(path.read_text())
    info["provenance"]["versions"]["transformers"] = "4.99.0"
    path.write_text(json.dumps(info))
    more = kvx("run", "-m", *SMALL, "press=knorm", "budget=1.0,0.5,0.2")
    assert f"{info['id']} was begun with transformers 4.99.0, this is" in more.err
    for stage in ("score", "analyze", "report"):
        assert kvx(stage, *SMALL).code == 0
    text = Path("outputs/runs/default/details.md").read_text()
    assert f"**Several versions of transformers.** 4.99.0: {info['id']};" in text
    # a point that is resumed holds both
    (path.parent / "DONE").unlink()
    (path.parent / "requests.parquet").unlink()
    assert kvx("run", *SMALL, "press=knorm", "budget=0.5").code == 0
    (resumed,) = json.loads(path.read_text())["resumed_with"]
    assert resumed["transformers"] != "4.99.0"


WRONG = (
    "a/b", "../../x", "..", ".", ".hidden", "a\\b", "tab\tbed", "new\nline", " a", "a.", "a|b",
    "x" * (MOST_BYTES + 1), "nul\x00", "zero\u200bwidth", "lone\ud800",
)  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_name_that_is_a_path_is_refused(name: str) -> None:
    from kvx.config.folder_names import check_name
    from kvx.errors import UserError

    with pytest.raises(
        UserError, match=r"^press\.name=.*: is part of a folder's name, but "
    ) as told:
        check_name("press.name", name)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "field", ["experiment_name", "press.name", "controller.name", "dataset.name", "dataset.task"]
)
def test_every_name_of_a_folder_has_the_rule(kvx: Kvx, tmp_path: Path, field: str) -> None:
    refused = kvx("run", *SMALL, f"{field}=../../x")
    assert refused.code == 2
    assert f"{field}=../../x: is part of a folder's name" in refused.err
    assert refused.err.count("\n") == 1
    assert not list(tmp_path.rglob("outputs"))


@pytest.mark.parametrize("name", ["gsm8k_few-shot", "Ünïcode", "a b", "v1.2+x", "x" * MOST_BYTES])
def test_ordinary_names_stay(name: str) -> None:
    from kvx.config.folder_names import check_name

    check_name("press.name", name)


def test_names_in_files_lead_nowhere_else(kvx: Kvx) -> None:
    assert kvx("run", *SMALL).code == 0
    (path,) = Path("outputs/runs/default/points").glob("*/point.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dataset": "../../../evil"}))
    assert "is not a folder's name" in kvx("score", *SMALL).err
