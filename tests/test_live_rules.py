"""What a controller adds to a point's identity, and where it is refused before anything starts."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvx.cli.command import compose, run_stage
from kvx.config import fields
from kvx.config.guard import GuardConfig, Shadow, StreamPolicy
from kvx.config.schema import Config
from kvx.errors import UserError
from kvx.identity.hazard_files import CARD, DEFAULT, MODEL
from kvx.points import Point, guard_identity
from kvx.run.planning import plan
from tests.conftest import Kvx

SMALL = (
    "dataset.source.n_examples=60", "dataset.sampling.n_per_bin=2", "press=knorm", "budget=0.5",
)  # fmt: skip
# of points that ran before there was a live guard
BEFORE = {
    "": "none-1-391b2bd3",
    "press=snapkv budget=0.5": "snapkv-0.5-6982754e",
    "press=knorm budget=0.2 signals=full decoding.max_new_tokens=80": "knorm-0.2-0a4ce9d8",
}


@pytest.fixture(scope="module")
def point(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`point("controller=reactive")`: one point of a run."""
    output = tmp_path_factory.mktemp("points")

    def of(*overrides: str) -> Point:
        (found,) = plan([compose(*SMALL, *overrides, f"paths.output={output}")])
        return found

    return of


def test_without_a_controller_the_guard_counts_for_nothing(point: Any, tmp_path: Path) -> None:
    guard = ("guard.shadow=none", "guard.ladder=[0.3]", "guard.max_interventions=9",
             "guard.model=nowhere", "guard.stream=restart")  # fmt: skip
    for typed, point_id in BEFORE.items():
        (found,) = plan([compose(*typed.split(), *guard, f"paths.output={tmp_path}")])
        assert found.id == point_id
    assert point(*guard).id == point().id


def test_of_the_guard_what_changes_results_counts(point: Any) -> None:
    plain = point("controller=reactive")
    assert plain.id.startswith("knorm-0.5-reactive-")
    assert plain.variant_id == point().variant_id
    same = ("guard.shadow=recompute", "guard.stream=restart", "guard.model=nowhere")
    assert point("controller=reactive", *same).id == plain.id
    others = ("guard.shadow=none", "guard.ladder=[0.5]", "guard.max_interventions=3",
              "guard.let_go=false", "controller.k=2", "controller.rollback_tokens=8")  # fmt: skip
    ids = {point("controller=reactive", other).id for other in others}
    assert len({plain.id, *ids}) == 1 + len(others)


def test_what_a_guard_did_before_let_go_is_known_by_its_old_name(point: Any) -> None:
    def identity(*overrides: str) -> dict[str, Any]:
        return guard_identity(point(*overrides).config)

    assert identity("controller=reactive", "guard.let_go=false") == {}
    assert identity("controller=reactive") == {"let_go": True}
    assert identity("controller=always_safe") == {}  # never lets go


def test_a_hazard_model_is_known_by_its_files_not_by_its_place(point: Any, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(DEFAULT, copy)
    plain = point("controller=balanced")
    assert point("controller=balanced", f"guard.model={copy}").id == plain.id
    card = json.loads((copy / CARD).read_text())
    card["thresholds"]["balanced"]["hazard"] = 0.5
    (copy / CARD).write_text(json.dumps(card))
    assert point("controller=balanced", f"guard.model={copy}").id != plain.id
    assert point("controller=reactive", f"guard.model={copy}").id == point("controller=reactive").id


guards = st.builds(
    GuardConfig, shadow=st.sampled_from(Shadow), stream=st.sampled_from(StreamPolicy),
    ladder=st.sets(st.sampled_from([0.1, 0.25, 0.5, 0.75])).map(sorted),
    max_interventions=st.integers(1, 5), let_go=st.booleans(),
)  # fmt: skip


@pytest.fixture(scope="module")
def reactive(point: Any) -> Point:
    found: Point = point("controller=reactive")
    return found


@settings(deadline=None, max_examples=50)
@given(one=guards, other=guards)
def test_two_guards_share_a_point_exactly_if_they_give_the_same_results(
    reactive: Point, one: GuardConfig, other: GuardConfig
) -> None:
    def what_counts(guard: GuardConfig) -> list[object]:
        return [guard.shadow is Shadow.none, guard.ladder, guard.max_interventions, guard.let_go]

    def id_of(guard: GuardConfig) -> str:
        fields.check(guard, "guard.")
        config = Config(**{**vars(reactive.config), "guard": guard})
        return str(reactive.beside(config).id)

    assert (id_of(one) == id_of(other)) == (what_counts(one) == what_counts(other))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["controller=reactive", "engine=openai", "engine.base_url=http://localhost:1/v1"],
         "controller=reactive: cannot act in engine=openai, a server it does not control; use "
         "engine=kvpress, or kvx.serve with this controller"),
        (["controller=reactive", "press=adakv"],
         "press=adakv hides entries and evicts none, so there is nothing that could come back"),
        (["controller=always_safe", "press.needs=[changes_forward]"],
         "press=knorm changes the forward pass"),
        (["controller=random"], "controller.rate: needs a value in a live run"),
        (["controller=balanced", "guard.model=nowhere"],
         "nowhere: no hazard model (No such file or directory); make one with kvx.train"),
        (["controller=reactive", "controller.name=a/b"], "controller.name=a/b: is part of"),
        (["controller=reactive", "budget=1.0"],
         "controller=reactive: the full cache leaves it nothing to give back"),
        (["controller=balanced", "press=none", "budget=1.0"],
         "the full cache leaves it nothing to give back"),
        (["guard.ladder=[0.5,0.25]"], "guard.ladder=[0.5,0.25]: must be ascending"),
        (["guard.ladder=[0.5,0.5]"], "guard.ladder=[0.5,0.5]: must be ascending"),
        (["guard.ladder=[0.5,1.0]"], "guard.ladder=[0.5,1]: must be ascending"),
        (["guard.max_interventions=0"], "guard.max_interventions=0: must be at least 1"),
        (["guard.shadow=disk"], "guard.shadow"),
        (["guard.let_go=maybe"], "guard.let_go=maybe: must be true or false"),
        (["guard.let_go=null"], "guard.let_go=null: must have a value"),
        (["guard.shade=host"], "guard.shade: no such field"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stage", ["run", "plan"])
def test_wrong_requests_are_one_line_and_start_nothing(
    kvx: Kvx, stage: str, arguments: list[str], says: str
) -> None:
    outcome = kvx(stage, *SMALL, *arguments)
    lines = [line for line in outcome.err.splitlines() if line]
    assert (outcome.code, len(lines)) == (2, 1), outcome.err
    assert says in lines[0]
    assert not Path("outputs").exists()


def test_a_hazard_model_must_be_whole_and_of_live_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def refused(*overrides: str) -> str:
        config = compose(*SMALL, "controller=balanced", f"guard.model={copy}", *overrides)
        with pytest.raises(UserError) as caught:
            plan([config])
        assert "\n" not in str(caught.value)
        return str(caught.value)

    copy = tmp_path / "copy"
    shutil.copytree(DEFAULT, copy)
    whole = json.loads((copy / CARD).read_text())
    for change, says in (
        ({"features": {"names": ["entropy_nats", "hidden_state_norm"]}},
         "not a model for live use: no such feature: hidden_state_norm; train one"),
        ({"thresholds": {}}, "no threshold for the operating point balanced"),
        ({"format": 99}, "has format 99"),
    ):  # fmt: skip
        (copy / CARD).write_text(json.dumps({**whole, **change}))
        assert says in refused()
    (copy / CARD).write_text(json.dumps(whole))
    (copy / MODEL).write_text("{}")
    assert "is not the model that card.json describes" in refused()
    (copy / MODEL).unlink()
    assert "no hazard model" in refused()
    assert not Path("outputs").exists()


def test_controllers_are_swept_and_the_full_cache_has_none(kvx: Kvx, tmp_path: Path) -> None:
    """`-m controller=none,balanced,always_safe budget=1.0,0.5` is four points."""
    found: list[Point] = []
    sweep = ("-m", *SMALL[:2], "press=none,knorm", "budget=1.0,0.5",
             "controller=none,balanced,always_safe", "controller.safe_budget=0.75")  # fmt: skip
    assert run_stage("run", list(sweep), lambda configs: found.extend(plan(configs))) == 0
    assert sorted(p.id.rpartition("-")[0] for p in found) == [
        "knorm-0.5", "knorm-0.5-always_safe", "knorm-0.5-balanced", "knorm-1", "none-1",
    ]  # fmt: skip
    assert {p.variant_id for p in found} == {found[0].variant_id}
    (balanced,) = (p for p in found if "balanced" in p.id)
    assert balanced.config.controller.safe_budget == 0.75
    (full,) = (p for p in found if p.id.startswith("none"))
    (alone,) = plan([compose(*SMALL[:2], "press=none")])
    assert full.id == alone.id


@pytest.mark.parametrize("stage", ["simulate", "score"])
def test_stages_that_read_take_any_controller(kvx: Kvx, stage: str) -> None:
    outcome = kvx(stage, "controller=reactive", "engine=openai", "press=adakv")
    assert "no finished point" in outcome.err
