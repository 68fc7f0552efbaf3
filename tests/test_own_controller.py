"""A controller of the user's own, named by `_target_`: in runs, replays, certificates and beside a
model, and known by its code.
"""

import importlib
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

import kvx as library
from kvx.analyze.frames import load_experiment
from kvx.certify.certificate import read
from kvx.cli.command import compose
from kvx.errors import UserError
from kvx.guard.controllers import Alarms
from kvx.guard.controllers.base import Observation
from kvx.identity import reload
from kvx.run.planning import plan
from kvx.run.worker import engine_of
from kvx.serve.certified import with_certified_budget
from tests.conftest import Kvx, finish, kvx_process
from tests.guarding import a_prompt, options, tiny_model
from tests.serving import post, serving
from tests.test_serve import WORDS

# it alarms where the model has been undecided for a while: a state per sequence, forgotten with it
MODULE = '''
from dataclasses import dataclass
from typing import ClassVar

from kvx.config.fields import option
from kvx.guard.controllers import Alarms
from my_means import mean


@dataclass
class Undecided(Alarms):
    """Alarms while the mean entropy of the last tokens is high."""

    kind: ClassVar[str] = "undecided"

    window: int = option(3, "tokens whose entropy is averaged", at_least=1)
    limit_nats: float = option(0.5, "mean entropy that is an alarm", above=0)

    @property
    def reads_repetition(self):
        return False

    def scores(self, key):
        return Entropies(self)


class Entropies:
    def __init__(self, config):
        self._config = config
        self._nats = []

    def step(self, seen):
        self._nats.append(seen.entropy_nats)
        last = self._nats[-self._config.window :]
        enough = len(last) == self._config.window
        return (mean(last) / self._config.limit_nats if enough else 0.0), "undecided"

    def rollback(self, n_kept):
        del self._nats[n_kept:]
'''
HELPER = "def mean(values):\n    return sum(values) / len(values)\n"
TARGET = "my_undecided.Undecided"
OWN = ("controller.name=undecided", f"controller._target_={TARGET}", "controller.j=2",
       "controller.cooldown=4", "controller.rollback_tokens=4")  # fmt: skip
FEW = ("dataset.source.n_examples=60", "dataset.sampling.n_per_bin=2", "run.progress=false")
POINT = ("press=knorm", "budget=0.1", "decoding.max_new_tokens=64")


@dataclass(frozen=True)
class Home:
    """A folder on `sys.path` with the user's modules."""

    path: Path

    def write(self, text: str = MODULE, name: str = "my_undecided") -> None:
        (self.path / f"{name}.py").write_text(text)

    def edit(self, old: str, new: str, name: str = "my_undecided") -> None:
        text = (self.path / f"{name}.py").read_text()
        assert old in text
        self.write(text.replace(old, new), name)


def forget_own() -> None:
    for name in [n for n in sys.modules if n.startswith("my_")]:
        del sys.modules[name]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(reload, "_seen", {})
    forget_own()
    made = Home(tmp_path)
    made.write()
    made.write(HELPER, "my_means")
    return made


def own_class() -> Any:
    return importlib.import_module("my_undecided").Undecided


def points() -> dict[str, dict[str, Any]]:
    files = Path("outputs/runs/default/points").glob("*/point.json")
    return {info["id"]: info for info in map(json.loads, (f.read_text() for f in files))}


def table(point_id: str, name: str) -> pd.DataFrame:
    file = Path("outputs/runs/default/points") / point_id / f"{name}.parquet"
    frame: pd.DataFrame = pq.read_table(file).to_pandas()
    return frame


# it acts


def test_a_run_records_what_it_did(kvx: Kvx, home: Home) -> None:
    outcome = kvx("run", *FEW, *POINT, *OWN)
    assert outcome.code == 0, outcome.err
    (found,) = points().values()
    assert found["id"].startswith("knorm-0.1-undecided-")
    assert found["controller"] == "undecided"
    recorded = found["config"]["controller"]
    assert (recorded["_target_"], recorded["kind"]) == (TARGET, "undecided")
    assert (recorded["window"], recorded["limit_nats"], recorded["cooldown"]) == (3, 0.5, 4)
    events, requests = table(found["id"], "events"), table(found["id"], "requests")
    assert set(events["reason"]) == {"undecided"}
    assert events["dropped_ids"].map(len).gt(0).any()
    assert len(requests) == 10
    assert (requests["guard_mean_budget"] > 0.1).any()
    first = events.groupby("request_id")["token"].min()
    assert first.min() >= 2  # no earlier than a whole window was seen
    never = kvx("run", *FEW, *POINT, *OWN, "controller.limit_nats=50")
    assert never.code == 0
    (calm,) = points().keys() - {found["id"]}
    assert not len(table(calm, "events"))


def test_workers_in_processes_of_their_own_use_it(home: Home, tmp_path: Path) -> None:
    sweep = ("-m", *FEW, *POINT, *OWN, "controller.window=2,3", "hydra/launcher=kvx_local",
             "hydra.launcher.workers=1")  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[1]}")
        outcome = finish(kvx_process(tmp_path, "run", *sweep))
        patch.chdir(tmp_path)
        assert outcome.code == 0, outcome.err
        found = {i["config"]["controller"]["window"]: i["id"] for i in points().values()}
        assert sorted(found) == [2, 3]
        assert all(set(table(i, "events")["reason"]) == {"undecided"} for i in found.values())


def test_a_simulation_replays_it(kvx: Kvx, home: Home) -> None:
    run = ("-m", "press=none,knorm", "budget=0.1", "signals=full", *FEW, POINT[2])
    assert kvx("run", *run).code == 0
    assert kvx("score", *FEW).code == 0
    quick = ("simulate.controllers=[none,reactive]", "simulate.match=reactive",
             "simulate.n_boot=100", "simulate.n_thresholds=3")  # fmt: skip

    def shares() -> pd.Series:
        rows = pq.read_table("outputs/runs/default/guard/simulation.parquet").to_pandas()
        rows = rows[(rows["group"] == "all") & (rows["role"] == "controller")]
        found: pd.Series = rows.set_index("controller")["trigger_rate"]
        return found

    assert kvx("simulate", *quick, *OWN).code == 0
    assert set(shares().index) == {"none", "reactive", "undecided"}
    eager = shares()["undecided"]
    assert eager > shares()["none"] == 0
    assert "| undecided |" in Path("outputs/runs/default/guard/simulate.md").read_text()
    assert "nothing to do" in kvx("simulate", *quick, *OWN).err
    assert kvx("simulate", *quick, *OWN, "controller.limit_nats=50").code == 0
    assert shares()["undecided"] == 0
    home.edit("/ self._config.limit_nats", "/ 50")  # the same settings, other code
    assert kvx("simulate", *quick, *OWN).code == 0
    assert shares()["undecided"] == 0


def test_the_library_takes_an_object_of_it(home: Home) -> None:
    from kvpress import StreamingLLMPress

    mine = own_class()(limit_nats=0.5, cooldown=4, j=2, rollback_tokens=4)
    guard = library.guarded(tiny_model(), StreamingLLMPress(0.8), mine)
    ids = a_prompt(90)
    out = guard.generate(**options(ids, max_new_tokens=40, return_dict_in_generate=True))
    assert out.guard[0].events[0].reason == "undecided"
    assert guard.controller.name == "custom"
    calm = library.guarded(tiny_model(), StreamingLLMPress(0.8), replace(mine, limit_nats=50.0))
    plain = library.guarded(tiny_model(), StreamingLLMPress(0.8), "none")
    same = [g.generate(**options(ids, max_new_tokens=40)).tolist() for g in (calm, plain)]
    assert same[0] == same[1]
    assert calm.events == [[]]


def test_the_library_takes_a_class_that_nothing_can_import() -> None:
    """As one that is made within a function."""
    from kvpress import StreamingLLMPress

    @dataclass
    class AtTen(Alarms):
        def score(self, seen: Observation) -> tuple[float, str]:
            return float(seen.token == 10), "ten"

    guard = library.guarded(tiny_model(), StreamingLLMPress(0.8), AtTen())
    guard.generate(**options(a_prompt(90), max_new_tokens=20))
    assert [(e.token, e.reason) for e in guard.events[0]][:1] == [(10, "ten")]


def test_a_server_follows_its_answers_with_it(home: Home) -> None:
    given = ("model=tiny_recall", "press=streaming", "budget=0.2", *OWN, "controller.limit_nats=.3")
    body = {"model": "tiny_recall", "prompt": WORDS, "max_tokens": 40, "ignore_eos": True}
    with serving(*given) as server:
        answer = post(server.url, body)
        assert answer.status_code == 200, answer.text
        guard = answer.json()["kvx"]["guard"]
        without = post(server.url, body | {"kvx": {"controller": "none"}}).json()["kvx"]
        home.edit("return", "retrun")  # half an edit: the server keeps what it began with
        later = post(server.url, body)
        assert later.status_code == 200, later.text
        assert later.json()["choices"][0]["text"] == answer.json()["choices"][0]["text"]
    assert guard["controller"] == "undecided"
    assert guard["events"][0]["reason"] == "undecided"
    assert "guard" not in without


def test_the_example_of_the_documentation_works_as_it_stands(kvx: Kvx, home: Home) -> None:
    page = Path(__file__).parents[1] / "docs" / "guard" / "controllers.md"
    if not page.is_file():
        pytest.skip("installed without its documentation")
    text = page.read_text().partition("## A controller of your own")[2]
    (module,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (option,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    home.write(module, "my_controllers")
    folder = home.path / "mine" / "controller"
    folder.mkdir(parents=True)
    (folder / "undecided.yaml").write_text(option)
    own = ("--config-dir", "mine", "press=knorm", "budget=0.1", POINT[2], *FEW)
    sweep = (*own, "-m", "controller=none,undecided", "controller.limit_nats=0.3,0.5")
    refused = kvx("run", *sweep)
    assert "controller.limit_nats: no such field" in refused.err  # of none
    assert kvx("run", *own, "-m", "controller=none,undecided").code == 0
    assert kvx("run", *own, "-m", "controller=undecided", "controller.limit_nats=0.3,0.5").code == 0
    found = {i: info for i, info in points().items() if info["controller"] == "undecided"}
    assert sorted(p["config"]["controller"]["limit_nats"] for p in found.values()) == [0.3, 0.5]
    for point_id in found:
        assert set(table(point_id, "events")["reason"]) == {"undecided"}
    wrong = kvx("run", *own, "controller=undecided", "controller.window=0")
    assert "controller.window=0: must be at least 1" in wrong.err


# it is known by its code


def point_id(*arguments: str) -> str:
    (point,) = plan([compose(*FEW, *POINT, *OWN, *arguments)])
    return point.id


def test_its_code_and_its_options_are_in_the_id(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = point_id()
    assert point_id() == first
    seen = [first]
    seen += [point_id(f"controller.{given}") for given in ("window=5", "limit_nats=2", "k=3")]
    edits = [
        ("mean(last)", "max(last)", "my_undecided"),
        ("option(3,", "option(6,", "my_undecided"),  # the default of a setting that is not given
        ("len(values)", "len(values) + 1", "my_means"),
    ]
    for old, new, module in edits:
        home.edit(old, new, module)
        seen.append(point_id())
        home.edit(new, old, module)
    assert len(set(seen)) == len(seen)
    assert point_id() == first
    # beside one that never acts, its code is nobody's
    assert TARGET not in str(plan([compose(*FEW, *POINT)])[0].sources)


def test_settings_that_were_added_since_are_known_in_the_same_process(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    point_id()
    home.edit("    limit_nats:", '    least: int = option(0, "x")\n    limit_nats:')
    config = compose(*FEW, *POINT, *OWN, "controller.least=7")
    assert vars(config.controller)["least"] == 7
    plan([config])
    home.edit("option(3,", "option(6,")
    assert vars(compose(*FEW, *POINT, *OWN).controller)["window"] == 6


def test_edited_code_makes_new_points_and_the_run_says_so(kvx: Kvx, home: Home) -> None:
    assert kvx("run", *FEW, *POINT, *OWN).code == 0
    (first,) = points()
    home.edit("mean(last)", "(mean(last) - 50)")
    edited = kvx("run", *FEW, *POINT, *OWN)
    assert edited.code == 0
    line = f"run: the code of {TARGET} changed since {first} was run: new points are made"
    assert edited.err.count(line) == 1
    (second,) = points().keys() - {first}
    assert len(table(first, "events"))
    assert not len(table(second, "events"))  # the new code ran
    assert kvx("score", *FEW).code == 0
    labels = load_experiment(Path("outputs/runs/default"), Path("outputs")).controller_labels
    codes = {i: info["sources"][TARGET][:8] for i, info in points().items()}
    assert labels == {i: f"undecided(code={code})" for i, code in codes.items()}


@pytest.mark.parametrize("module", ["my_undecided", "my_means"])
def test_code_that_changes_between_plan_and_start_is_refused(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.chdir(tmp_path)
    planned = plan([compose(*FEW, *POINT, *OWN)])
    _ = [point.id for point in planned]
    engine = engine_of(planned[0].config)
    engine.check(planned)
    home.edit("mean", "mean", module)
    (home.path / f"{module}.py").write_text((home.path / f"{module}.py").read_text() + "# other\n")
    line = f"controller=undecided: the code of {TARGET} changed while this was starting; type"
    with pytest.raises(UserError, match=line):
        engine.check(planned)


def test_a_sweep_that_was_asked_for_before_an_edit_is_refused(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fields: dict[str, Any] = {
        "press": "knorm", "budget": 0.1, "dataset.source.n_examples": 60,
        "controller": {"_target_": TARGET, "name": "undecided"},
    }  # fmt: skip
    asked = library.sweep(**fields)
    before = asked.point_ids()
    home.edit("mean(last)", "max(last)")
    with pytest.raises(UserError, match=rf"the code of {TARGET} changed while this was starting"):
        asked.point_ids()
    assert library.sweep(**fields).point_ids() != before


def test_a_certificate_is_of_its_code(kvx: Kvx, home: Home) -> None:
    guarded = ("-m", "press=none,streaming", "budget=0.5", *OWN, "decoding.max_new_tokens=32")
    few = (FEW[0], "dataset.sampling.n_per_bin=6", FEW[2])
    assert kvx("run", *guarded, *few).code == 0
    assert kvx("score", *few).code == 0
    settings = ("certify.loss=catastrophe", "certify.alpha=0.7", "certify.delta=0.5")
    outcome = kvx("certify", *settings)
    assert outcome.code == 0, outcome.err
    (file,) = Path("outputs/runs/default/certificates").glob("streaming-undecided-*.json")
    made = read(file)
    (source,) = {i["sources"][TARGET] for i in points().values() if TARGET in i["sources"]}
    assert made.controller["code"] == {TARGET: source}
    assert source in file.with_suffix(".md").read_text()
    served = ("model=tiny_recall", "press=streaming", "budget=certified", *OWN,
              f"certificate={file}", "decoding.max_new_tokens=32")  # fmt: skip
    config, promise = with_certified_budget(compose(*served, stage="serve"))
    assert promise is not None
    assert config.budget.ratio == 0.5
    home.edit("len(values)", "len(values) + 1", "my_means")
    with pytest.raises(UserError, match=rf"another code of {TARGET} \({source[:8]}\), this has"):
        with_certified_budget(compose(*served, stage="serve"))
    # the points of the new code are another curve
    assert kvx("run", *guarded, *few).code == 0
    assert kvx("score", *few).code == 0
    assert kvx("certify", *settings).code == 0
    codes = {
        read(f).controller["code"][TARGET]
        for f in file.parent.glob("*.json")
        if read(f).controller["name"] == "undecided"
    }
    assert len(codes) == 2
    assert source in codes


# what is refused


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("@dataclass\nclass Und", "class Und", "is no field of it; decorate the class with @data"),
        ("    window: int", "    code: int = 3\n    window: int", "field code needs another name"),
        ("    window: int", "    window: set", "controller.window"),
        ("import mean", "import median", "ImportError: cannot import name 'median'"),
        ("Undecided(Alarms)", "Undecided", "must be a subclass of kvx.guard.controllers"),
    ],
)
def test_a_class_that_cannot_be_a_controller(
    kvx: Kvx, home: Home, old: str, new: str, says: str
) -> None:
    home.edit(old, new)
    outcome = kvx("run", *FEW, *POINT, *OWN)
    assert outcome.code == 2, outcome.err
    assert says in outcome.err
    assert outcome.err.count("\n") == 1


def test_what_it_raises_is_told_with_its_line(kvx: Kvx, home: Home) -> None:
    home.edit("enough = ", "1 / (len(last) - 3)\n        enough = ")
    assert kvx("run", *FEW, *POINT, *OWN).code == 0
    (found,) = points()
    messages = table(found, "requests")["error_message"].dropna()
    line = 1 + MODULE[: MODULE.index("enough = ")].count("\n")
    said = f"ZeroDivisionError: division by zero (controller=undecided, my_undecided.py:{line})"
    assert set(messages) == {said}
    assert 0 < len(messages) < 10  # the answers that ended before had no third token


def test_two_classes_that_share_a_module_are_both_read_again(home: Home) -> None:
    """Whichever of them is looked at first."""
    from kvx.identity.user_code import source_of

    home.write("from my_means import mean\nclass Press: pass\n", "my_press")
    load: Callable[[str], ModuleType] = importlib.import_module
    targets = ("my_press.Press", TARGET)
    for target in targets:
        source_of(target)
        load(target.partition(".")[0])
    home.edit("len(values)", "len(values) + 1", "my_means")
    for target in targets:
        source_of(target)
    assert load("my_undecided").mean([1.0]) == load("my_press").mean([1.0]) == 2.0
