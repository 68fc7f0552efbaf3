"""Points that kvpress would rank by another attention are marked, and have ids of their own."""

from pathlib import Path
from typing import Any

import kvpress
import pytest

from kvx.data.model_attention import RECOMPUTED, recomputes
from kvx.data.model_attention import SAME as SAME_TYPES
from kvx.engines.kvpress.agreement import measure
from tests import families
from tests.conftest import request_rows
from tests.query_reference import (
    SAME,
    THERE,
    model_of,
)


def test_families_that_are_known_to_be_the_same_are() -> None:
    """Their points keep their ids, so kvpress's own queries must be right on them."""
    types = {name: families.FAMILIES[name].model_type for name in THERE}
    known = [name for name, kind in types.items() if kind in SAME_TYPES and name != "phi3_partial"]
    assert {"llama_yarn", "qwen2_window", "phi3_longrope", "seed_oss"} < set(known)
    for name in known:
        if name in ("seed_oss", *SAME):
            assert measure(model_of(name)).reasons == {}, name


def test_classes_that_change_ids_are_those_that_recompute() -> None:
    assert all(issubclass(getattr(kvpress, name), kvpress.BasePress) for name in RECOMPUTED)
    nested = {"_target_": "kvpress.AdaKVPress", "press": {"_target_": "kvpress.SnapKVPress"}}
    assert recomputes(nested)
    assert not recomputes({"_target_": "kvpress.KnormPress"})
    assert not recomputes(None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return families.write("smollm3", tmp_path / "smollm3")


RUN = (
    "-m", "experiment=demo", "experiment_name=q", "measure=quality", "model=hf", "budget=1.0,0.5",
    "press=snapkv_w16,knorm", "dataset.source.n_examples=30", "dataset.sampling.n_per_bin=1",
    "decoding.max_new_tokens=4",
)  # fmt: skip


def _rows(kvx: Any, folder: Path, *more: str) -> Any:
    assert kvx("all", *RUN, f"model.path={folder}", *more).code == 0
    rows = request_rows(Path("outputs/runs/q"))
    return rows[rows["point_id"].str.startswith("snapkv_w16-0.5")], rows


def test_an_adapted_press_is_marked_in_every_row_and_table(kvx: Any, folder: Path) -> None:
    own, rows = _rows(kvx, folder)
    assert own["adapted"].str.contains("kvpress's queries differ from the model's by").all()
    assert not own["degenerate"].any()
    assert rows[~rows.index.isin(own.index)]["adapted"].isna().all()
    assert "Adapted press" in Path("outputs/runs/q/details.md").read_text()


def test_a_press_that_is_not_its_method_is_marked(kvx: Any, folder: Path) -> None:
    own, rows = _rows(kvx, folder, "press.queries=kvpress")
    assert own["degenerate"].all()
    assert own["degenerate_reason"].str.startswith("not the method: kvpress's queries").all()
    assert rows["adapted"].isna().all()
    assert not rows[~rows.index.isin(own.index)]["degenerate"].any()
    assert "not the method: kvpress's queries" in Path("outputs/runs/q/details.md").read_text()


def test_one_press_with_both_queries_in_one_prefill_is_two_methods(kvx: Any, folder: Path) -> None:
    """In either order, each point answers as it does alone."""
    alone = {}
    for queries in ("model", "kvpress"):
        name = f"experiment_name={queries}"
        assert (
            kvx("run", *RUN, SNAPKV, name, f"model.path={folder}", f"press.queries={queries}").code
            == 0
        )
        alone |= _texts(queries)
    for order in ("model,kvpress", "kvpress,model"):
        name = order.replace(",", "_")
        both = f"press.queries={order}"
        assert (
            kvx("run", *RUN, SNAPKV, f"experiment_name={name}", f"model.path={folder}", both).code
            == 0
        )
        assert _texts(name) == alone


SNAPKV = "press=snapkv_w16"


def _texts(name: str) -> dict[tuple[str, str], list[int]]:
    """Output tokens by point and example."""
    rows = request_rows(Path("outputs/runs") / name)
    keys = zip(rows["point_id"], rows["example_id"], strict=True)
    return dict(zip(keys, map(list, rows["token_ids"]), strict=True))
