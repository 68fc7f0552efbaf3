"""What a press cannot do on a model is known from the configuration, and said without a failure."""

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import AutoTokenizer
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRotaryEmbedding

from kvx.cli.press_files import shipped_presses
from kvx.config.model_features import ModelFeature
from kvx.config.press_choices import PressLayers, PressNeed, Queries
from kvx.config.schema import ModelConfig, PressConfig
from kvx.data.prompt import PromptParts
from kvx.engines.kvpress.adapted import Finch
from kvx.engines.kvpress.applicability import missing_of, reason
from kvx.engines.kvpress.masked import prefill_masked
from kvx.engines.kvpress.model import LoadedModel
from kvx.engines.kvpress.prefill import prefill
from kvx.engines.kvpress.press import ALONE, instantiate, with_queries
from kvx.engines.kvpress.prompt_row import PromptRow
from kvx.engines.kvpress.streams import RandomStream
from kvx.presses.page import page
from tests.conftest import Kvx
from tests.families import make, write
from tests.presses import RUNNABLE

# what families lack of the features that presses may require, and of what masks need
LACKS: dict[str, set[str]] = {
    "llama": set(),
    "phi3": set(),
    "glm4": {"queries", "window_attention", "future_rotary", "whole_rotation"},
    "gemma3_text": {"whole_rotation", "future_rotary", "uniform_layers", "replay"},
    "gemma3n": {"whole_rotation", "future_rotary", "uniform_layers", "separate_layers"},
    "ministral": {"uniform_layers"},
    "mistral_window": {"uniform_layers", "full_layers"},
    "qwen3_5_text": {
        "whole_rotation", "queries", "window_attention", "future_rotary", "uniform_layers",
    },
    "qwen2_5_vl": {"queries", "window_attention", "future_rotary", "replay"},
    "llama4_full": {"whole_rotation", "queries", "window_attention", "future_rotary"},
    "lfm2": {"output_projection", "uniform_layers"},
    "jamba": {"whole_rotation", "queries", "window_attention", "future_rotary", "uniform_layers"},
    "deepseek_v3": {
        "queries", "window_attention", "projected_keys", "output_projection", "head_size",
        "equal_sizes", "whole_rotation",
    },
    "gpt_oss_full": {"queries", "window_attention", "future_rotary", "sdpa"},
}  # fmt: skip
if hasattr(Qwen2_5_VLRotaryEmbedding, "recomposition_frequencies"):
    # a newer transformers merges the three positions of a token before its layers see them
    LACKS["qwen2_5_vl"] = {"replay"}
ALL = [press for press in shipped_presses() if press.method is not None]
PRESSES = [press for press in ALL if press.name in RUNNABLE]
N_TOKENS = 300


def model_of(family: str, folder: Path) -> ModelConfig:
    """A configuration without weights."""
    make(family).config.save_pretrained(folder)
    return ModelConfig(name=family, path=str(folder))


# versions of transformers differ in the rotary embedding of Qwen2.5-VL
@pytest.mark.parametrize("family", [name for name in LACKS if name != "qwen2_5_vl"])
def test_what_a_model_lacks_is_known_from_its_configuration(tmp_path: Path, family: str) -> None:
    missing = missing_of(model_of(family, tmp_path))
    assert missing is not None
    assert set(missing) - {"latent_cache"} == LACKS[family]  # which only some versions have


@dataclass(frozen=True)
class Half:
    """The press of a configuration at half of the prompt."""

    config: PressConfig

    def build(self) -> Any:
        made = with_queries(instantiate(self.config, 0.5), self.config.queries)
        if isinstance(made, Finch):
            made.asked_with(10)
        return made

    def at(self, budget: float) -> "Half":
        return self

    @property
    def method_key(self) -> None:
        return None

    @property
    def reads_weights(self) -> bool:
        return PressNeed.attention_weights in self.config.needs


@torch.inference_mode()
def raising(loaded: LoadedModel, presses: Sequence[PressConfig]) -> set[str]:
    """The presses that raise on this model, run as kvx runs them."""
    found: set[str] = set()
    ids = [int(i) for i in torch.randint(3, 300, (N_TOKENS,)).tolist()]
    for eager in (False, True):
        group = [p for p in presses if (PressNeed.attention_weights in p.needs) is eager]
        can = loaded.model._supports_sdpa and not eager
        loaded.set_attention("sdpa" if can else "eager")
        shared = [p for p in group if not ALONE & set(p.needs)]
        rows = [PromptRow(Half(p), N_TOKENS // 2, RandomStream(0, loaded.devices)) for p in shared]
        prefill(loaded, ids, rows, 4, alone=False)
        found |= {p.name for p, row in zip(shared, rows, strict=True) if row.error is not None}
        for press in (p for p in group if p not in shared):
            row = PromptRow(Half(press), N_TOKENS // 2, RandomStream(0, loaded.devices))
            try:
                if PressNeed.masks in press.needs:
                    made = Half(press).build()
                    prefill_masked(loaded, PromptParts(ids, [5]), made, N_TOKENS // 2)
                else:
                    prefill(loaded, ids, [row], 4, alone=True)
            except Exception:  # noqa: BLE001  what it raises is the model's affair
                found.add(press.name)
    return found


def at_work(press: PressConfig) -> PressConfig:
    """`press`, with arguments for prompts as short as these."""
    assert press.method is not None
    if press.name == "simlayerkv":  # it scores no prompt that it need not shorten
        return replace(press, method=press.method | {"n_recent": N_TOKENS // 2})
    return press


# kvx itself refuses presses of windows, and masks on layers that share entries
REFUSED = ("mistral_window", "gemma3n")


@pytest.mark.parametrize("family", [name for name in LACKS if name not in REFUSED])
def test_presses_that_are_applicable_are_those_that_run(tmp_path: Path, family: str) -> None:
    """Of every shipped press: a reason where it raises, and none where it does not."""
    config = ModelConfig(name=family, path=str(write(family, tmp_path / family)))
    model = make(family)
    model.config.name_or_path = config.path  # where KVzip finds the tokenizer
    tokenizer = AutoTokenizer.from_pretrained(config.path)
    loaded = LoadedModel(model, tokenizer, torch.device("cpu"), frozenset({2}))
    missing = missing_of(config)
    assert missing is not None
    for queries in Queries:
        presses = [replace(press, queries=queries) for press in map(at_work, PRESSES)]
        told = {p.name for p in presses if reason(p, config, missing) is not None}
        raised = raising(loaded, presses)
        if family == "llama4_full":  # it turns neighbours by pairs, where kvpress turns halves
            raised |= told & {"key_rerotation", "finch"}
        if family == "qwen2_5_vl":  # it takes the mean over three positions, and raises nothing
            raised |= told & {"simlayerkv"}
        assert told == raised, queries


def test_a_press_of_windows_says_which_field_helps(tmp_path: Path) -> None:
    config = model_of("mistral_window", tmp_path)
    missing = missing_of(config)
    assert missing is not None
    for press in PRESSES:
        why = str(reason(press, config, missing))
        assert "each layer of the model holds a window" in why
        assert "press.layers=all" in why
        told = reason(replace(press, layers=PressLayers.all), config, missing)
        assert (told is None) is (not ALONE & set(press.needs))


def test_a_chosen_attention_counts(tmp_path: Path) -> None:
    config = model_of("llama", tmp_path)
    config.attn_implementation = "eager"
    told = {press.name: reason(press, config, {}) for press in PRESSES}
    refused = {name for name, why in told.items() if why is not None}
    assert refused == {press.name for press in PRESSES if PressNeed.masks in press.needs}
    assert all("model.attn_implementation=eager" in str(told[name]) for name in refused)


def test_what_no_configuration_tells_is_left_to_the_loading(tmp_path: Path) -> None:
    assert missing_of(ModelConfig(name="m", path=str(tmp_path / "nowhere"))) is None
    (tmp_path / "config.json").write_text('{"model_type": "a_family_of_next_year"}')
    assert missing_of(ModelConfig(name="m", path=str(tmp_path))) is None


def test_a_stranger_s_press_says_what_it_requires(tmp_path: Path) -> None:
    press = PressConfig(
        name="mine", method={"_target_": "a.b"}, requires=[ModelFeature.queries],
        queries=Queries.kvpress,
    )  # fmt: skip
    config = model_of("glm4", tmp_path)
    missing = missing_of(config)
    assert missing is not None
    assert "rotary embedding has 16 of 32 dimensions" in str(reason(press, config, missing))
    assert "press.queries=model does not" in str(reason(press, config, missing))
    for change in ({"requires": []}, {"queries": Queries.model}):
        assert reason(replace(press, **change), config, missing) is None


RUN = Path("outputs/runs/default")
SMALL = (
    "dataset.source.n_examples=20", "dataset.sampling.n_per_bin=1", "decoding.max_new_tokens=4",
)  # fmt: skip


def test_a_sweep_goes_on_without_what_is_not_applicable(
    kvx: Kvx, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = write("ministral", tmp_path / "model")
    of_model = ("model=hf", f"model.path={folder}", "model.name=mixed", *SMALL)
    sweep = ("-m", *of_model, "press=none,knorm,kvzip", "budget=1.0,0.5,0.2")
    line = "press=kvzip on model=mixed: not applicable: it scores the whole prompt in every layer"

    capfd.readouterr()
    assert kvx("plan", *sweep).code == 0
    planned = json.loads(printed(kvx, capfd, "plan", *sweep, "plan.format=json"))
    assert {g["press"]: (g["points"], g["not_applicable"]) for g in planned["groups"]} == {
        "none": (1, 0), "knorm": (3, 0), "kvzip": (1, 2),
    }  # fmt: skip
    assert planned["not_applicable"] == [
        f"{line}, but the model has layers that hold a window of the prompt (2 points)"
    ]
    assert not RUN.exists()

    ran = kvx("all", *sweep)
    assert ran.code == 0
    assert ran.err.count(line) == 1
    assert "5 points complete" in ran.err
    apart = sorted(RUN.glob("points/*/NOT_APPLICABLE"))
    assert [path.parent.name.rpartition("-")[0] for path in apart] == ["kvzip-0.2", "kvzip-0.5"]
    assert "it scores the whole prompt" in apart[0].read_text()
    assert sorted(path.name for path in apart[0].parent.iterdir() if path.name[0] != ".") == [
        "NOT_APPLICABLE", "point.json",
    ]  # fmt: skip
    report = (RUN / "details.md").read_text()
    assert "| kvzip | mixed | 0.2, 0.5 | it scores the whole prompt in every layer" in report
    assert "Left out" not in report
    told = "**Not applicable.** kvzip on mixed at 0.2, 0.5: it scores the whole prompt"
    assert told in (RUN / "report.md").read_text()

    status = printed(kvx, capfd, "status")
    assert "7 points: 5 done, 2 not applicable" in status
    assert "25 of 25 (100%)" in status
    assert kvx("status").code == 0
    again = kvx("run", *sweep)
    assert (again.code, "all 5 points are complete" in again.err) == (0, True)
    assert kvx("run", *of_model, "press=kvzip", "budget=1.0").code == 0
    with sqlite3.connect(RUN / "kv_transition.sqlite") as tables:
        rows = pd.read_sql("select press, budget_label, reason from not_applicable", tables)
    assert rows["budget_label"].tolist() == ["0.2", "0.5"]


def printed(kvx: Kvx, capfd: pytest.CaptureFixture[str], stage: str, *arguments: str) -> str:
    """What a stage prints on standard output."""
    from kvx.cli.command import run_stage

    capfd.readouterr()
    run_stage(stage, list(arguments))
    return capfd.readouterr().out


def test_a_run_of_nothing_applicable_is_refused_in_one_line(kvx: Kvx, tmp_path: Path) -> None:
    folder = write("ministral", tmp_path / "model")
    of_model = ("model=hf", f"model.path={folder}", "model.name=mixed", *SMALL)
    ran = kvx("run", "-m", *of_model, "press=kvzip", "budget=0.5,0.2")
    assert ran.code == 2
    (line,) = [x for x in ran.err.splitlines() if "not applicable" in x]
    assert line.startswith("kvx run: press=kvzip on model=mixed: not applicable: it scores")
    assert "(2 points)" in line
    assert not RUN.exists()


def test_a_point_that_became_applicable_is_run(kvx: Kvx) -> None:
    """As after an update of kvx or transformers."""
    ask = ("press=knorm", "budget=0.5", *SMALL)
    assert kvx("run", *ask).code == 0
    (folder,) = RUN.glob("points/*")
    for path in (folder / "DONE", *folder.glob("*.parquet")):
        path.unlink()
    (folder / "NOT_APPLICABLE").write_text("a reason of last year\n")
    assert kvx("run", *ask).code == 0
    assert (folder / "DONE").exists()
    assert not (folder / "NOT_APPLICABLE").exists()


def test_the_presses_of_a_model_are_listed(
    kvx: Kvx, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model_of("deepseek_v3", tmp_path / "latent")
    found = printed(kvx, capfd, "presses", "model=hf", f"model.path={tmp_path / 'latent'}")
    table, fallen = found.split("\n\n")[:2]
    lines = {line.split()[0]: line for line in table.splitlines()}
    assert set(lines) == {"press", *(press.name for press in ALL)}
    told = " ".join(fallen.split())
    assert "prompt_tokens < n_sink + 2 * lag_size the prompt has no two partitions" in told
    assert "which kvx does not do: CAMPress, CompressionRatioDecodingPress" in found
    assert "no: it takes keys and values of one size" in lines["lagkv"]
    model_of("glm4", tmp_path / "partial")
    ask = ("presses", "model=hf", f"model.path={tmp_path / 'partial'}")
    for queries, verdict in (("model", "yes"), ("kvpress", "16 of 32 dimensions")):
        found = printed(kvx, capfd, *ask, f"press.queries={queries}")
        line = next(line for line in found.splitlines() if line.startswith("snapkv "))
        assert verdict in line
    table = printed(kvx, capfd, "presses").split("\n\n")[0]
    plain = {line.split()[0]: line.rpartition("  ")[2] for line in table.splitlines()[1:]}
    assert {name for name, verdict in plain.items() if verdict != "yes"} == {
        press.name for press in ALL if press not in PRESSES
    }
    assert plain["restorekv"].startswith("no: it appends entries to the prompt")
    assert {path.name for path in Path().iterdir()} == {"latent", "partial"}
    assert kvx("presses", "model=hf", "model.path=./nowhere").code == 2


def test_the_page_of_presses_is_current() -> None:
    committed = Path(__file__).parents[1] / "docs" / "presses.md"
    assert committed.read_text(encoding="utf-8") == page(), (
        "python -m kvx.presses.page > docs/presses.md"
    )
