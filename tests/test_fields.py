"""What the schema says of its fields: help for each, the page made of it, no default twice."""

import dataclasses
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from kvx.cli.command import compose
from kvx.config.fields import Limits, about, check
from kvx.config.folders import conf_dir
from kvx.config.guard import GuardConfig
from kvx.config.help import describe, entries, page
from kvx.errors import UserError
from kvx.guard.controllers import Controller
from tests.controllers import CLASSES


def test_every_field_has_help() -> None:
    assert [e.name for e in entries() if not e.about.help] == []


@pytest.mark.parametrize("cls", CLASSES)
def test_every_field_of_a_controller_has_help(cls: type[Controller]) -> None:
    assert [f.name for f in dataclasses.fields(cls) if not about(f).help] == []


def test_the_page_of_fields_is_what_the_schema_says() -> None:
    committed = Path(__file__).parents[1] / "docs" / "fields.md"
    assert committed.read_text(encoding="utf-8") == page(), "python -m kvx.config.help"


def test_config_yaml_repeats_no_default_of_the_schema() -> None:
    own = OmegaConf.to_container(OmegaConf.load(conf_dir() / "config.yaml"), resolve=False)
    assert isinstance(own, dict)
    del own["defaults"], own["hydra"]
    assert own == {
        "decoding": {
            "max_new_tokens": "${dataset.max_new_tokens}", "until": "${dataset.until}",
        },
        "paths": {"cache": "${kvx_cache:}"},
    }  # fmt: skip


def test_help_of_a_section_names_fields_defaults_and_ranges() -> None:
    text = describe(["serve"])
    assert "serve.port=8000" in text
    assert "0: any free one (between 0 and 65535)" in text
    assert "train." not in text


def test_what_a_field_can_change_is_told() -> None:
    changes = {e.name: e.changes for e in entries()}
    assert changes["experiment_name"] == changes["train.horizon"] == "nothing"
    assert changes["press.method"] == changes["guard.let_go"] == "results"
    assert changes["engine.max_rows"] == "near ties"
    assert changes["guard.shadow"] == changes["model.path"] == changes["prompt.date"] == "derived"
    assert changes["model.name"] == "nothing"
    assert changes["score.metrics"] == changes["dataset.metrics"] == "scores"
    assert changes["dataset.until"] == "as `decoding.until`"
    assert changes["decoding.until"] == "results"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.dtype=int8", "model.dtype=int8: use one of auto, float32, bfloat16, float16"),
        ("prompt.date=tomorrow", "prompt.date=tomorrow: write a day as 2026-01-31, or null"),
        ("budget=1.5", "budget=1.5: must be above 0 and at most 1"),
        ("budget=0t", "budget.tokens=0: must be at least 1"),
        ("dataset.binning.edges=[9,5]", "dataset.binning.edges=[9, 5]: give at least two ascend"),
        ("score.until=[a,'']", "score.until: holds an empty text"),
        ("guard.ladder=[0.5,0.2]", "guard.ladder=[0.5,0.2]: must be ascending budgets"),
        ("train.shares=[0.5,0.4]", "train.shares=[0.5, 0.4]: give three shares"),
        ("+budgt=0.5", "budgt: no such field; did you mean budget?"),
        ("++foo=1", "foo: no such field; see `--cfg job`"),
    ],
)
def test_a_wrong_value_is_refused_in_one_line_at_its_field(override: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        compose(override)
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)


def test_a_guard_without_configuration_is_checked_too() -> None:
    with pytest.raises(UserError, match="must be at least 1; controller=none"):
        check(GuardConfig(max_interventions=0), "guard.")


def test_a_list_as_default_is_not_shared() -> None:
    first, second = GuardConfig(), GuardConfig()
    first.ladder.append(0.9)
    assert second.ladder == [0.25, 0.5]


def test_bounds_are_told_in_words() -> None:
    assert str(Limits(above=0, at_most=1)) == "above 0 and at most 1"
