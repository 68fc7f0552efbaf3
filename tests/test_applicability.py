"""What a press cannot do on a model is known from the configuration, and said without a failure."""

import json
import shutil
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer

from kvx.cli.press_files import shipped_presses
from kvx.config.model_features import ModelFeature
from kvx.config.schema import ModelConfig, PressConfig, PressNeed
from kvx.data.prompt import PromptParts
from kvx.engines.kvpress.applicability import missing_of, reason
from kvx.engines.kvpress.masked import prefill_masked
from kvx.engines.kvpress.model import LoadedModel
from kvx.engines.kvpress.prefill import prefill
from kvx.engines.kvpress.press import instantiate
from kvx.engines.kvpress.prompt_row import PromptRow
from kvx.engines.kvpress.streams import RandomStream
from kvx.presses.page import page
from tests.conftest import Kvx
from tests.models import TINY

BASE: dict[str, Any] = {
    "vocab_size": 328, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
    "max_position_embeddings": 2048,
    "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "tie_word_embeddings": False,
}  # fmt: skip
MIXED = ["sliding_attention", "full_attention"]
LATENT: dict[str, Any] = {
    "n_routed_experts": 4, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
    "kv_lora_rank": 32,
    "q_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 24,
    "n_shared_experts": 1,
    "num_key_value_heads": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
}  # fmt: skip
GATED: dict[str, Any] = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
    "linear_value_head_dim": 16, "num_hidden_layers": 4,
}  # fmt: skip
# family, its own fields, and the features that it lacks
FAMILIES: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    "llama": ("llama", {}, set()),
    "glm4": ("glm4", {}, {"queries", "window_attention", "future_rotary"}),
    "phi3": ("phi3", {"head_dim": None}, set()),
    "gemma3": (
        "gemma3_text", {"sliding_window": 64, "layer_types": MIXED, "query_pre_attn_scalar": 32},
        {"future_rotary", "uniform_layers", "replay"},
    ),
    "ministral": ("ministral", {"sliding_window": 64, "layer_types": MIXED}, {"uniform_layers"}),
    "mistral": ("mistral", {"sliding_window": 64}, {"uniform_layers", "full_layers"}),
    "qwen3_5": (
        "qwen3_5_text", GATED,
        {"queries", "window_attention", "future_rotary", "uniform_layers", "layered_cache"},
    ),
    "llama4": (
        "llama4_text",
        {"intermediate_size_mlp": 96, "num_local_experts": 2, "layer_types": ["full_attention"] * 2,
         "no_rope_layers": [1, 0], "attention_chunk_size": 2048},
        {"queries", "window_attention", "future_rotary"},
    ),
    "lfm2": (
        "lfm2", {"layer_types": ["conv", "full_attention"], "head_dim": None},
        {"output_projection", "uniform_layers", "layered_cache"},
    ),
    "deepseek_v3": (
        "deepseek_v3", {**LATENT, "head_dim": None},
        {"queries", "window_attention", "projected_keys", "head_size", "output_projection"},
    ),
    "gpt_oss": (
        "gpt_oss",
        {"layer_types": ["full_attention"] * 2, "num_local_experts": 2, "num_experts_per_tok": 1},
        {"queries", "window_attention", "future_rotary", "sdpa"},
    ),
}  # fmt: skip
PRESSES = [press for press in shipped_presses() if press.method is not None]
N_TOKENS = 150


def config_of(family: str) -> Any:
    kind, own, _ = FAMILIES[family]
    fields = {n: v for n, v in {**BASE, **own}.items() if not (n == "head_dim" and v is None)}
    return CONFIG_MAPPING[kind](**fields)


def model_of(family: str, folder: Path) -> ModelConfig:
    """A configuration without weights."""
    config_of(family).save_pretrained(folder)
    return ModelConfig(name=family, path=str(folder))


def with_weights(family: str, folder: Path) -> Path:
    """A tiny random model with the embedded model's tokenizer."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config_of(family)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, folder)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_model_lacks_is_known_from_its_configuration(tmp_path: Path, family: str) -> None:
    missing = missing_of(model_of(family, tmp_path))
    assert missing is not None
    assert set(missing) == FAMILIES[family][2]


@dataclass(frozen=True)
class Half:
    """The press of a configuration at half of the prompt, with kvpress's own queries."""

    config: PressConfig

    def build(self) -> Any:
        assert self.config.method is not None
        return instantiate(self.config.method, 0.5)

    def at(self, budget: float) -> "Half":
        return self

    @property
    def method_key(self) -> None:
        return None


def raising(loaded: LoadedModel, presses: Sequence[PressConfig]) -> set[str]:
    """The presses that raise on this model, run as kvx runs them."""
    found: set[str] = set()
    ids = [int(i) for i in torch.randint(3, 300, (N_TOKENS,)).tolist()]
    for eager in (False, True):
        group = [p for p in presses if (PressNeed.attention_weights in p.needs) is eager]
        if eager or not loaded.model._supports_sdpa:
            loaded.set_attention("eager")
        shared = [p for p in group if PressNeed.masks not in p.needs]
        rows = [PromptRow(Half(p), N_TOKENS // 2, RandomStream(0, loaded.devices)) for p in shared]
        prefill(loaded, ids, rows, 4, alone=False)
        found |= {p.name for p, row in zip(shared, rows, strict=True) if row.error is not None}
        for press in group:
            if press not in shared:
                try:
                    prefill_masked(
                        loaded, PromptParts(ids, [5]), Half(press).build(), N_TOKENS // 2
                    )
                except Exception:  # noqa: BLE001  what it raises is the model's affair
                    found.add(press.name)
    return found


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "mistral"])
@torch.inference_mode()
def test_presses_that_are_applicable_are_those_that_run(tmp_path: Path, family: str) -> None:
    """Of every shipped press: a reason where kvpress's code raises, and none where it does not."""
    folder = with_weights(family, tmp_path / "model")
    config = ModelConfig(name=family, path=str(folder))
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    loaded = LoadedModel(
        model, AutoTokenizer.from_pretrained(folder), torch.device("cpu"), frozenset({2})
    )
    missing = missing_of(config)
    assert missing is not None
    told = {p.name: reason(p, config, missing) for p in PRESSES}
    assert {name for name, why in told.items() if why is not None} == raising(loaded, PRESSES)


def test_a_press_of_windows_says_which_field_helps(tmp_path: Path) -> None:
    config = model_of("mistral", tmp_path)
    missing = missing_of(config)
    assert missing is not None
    for press in PRESSES:
        assert "each layer of the model holds a window" in str(reason(press, config, missing))


def test_a_chosen_attention_counts(tmp_path: Path) -> None:
    config = model_of("llama", tmp_path)
    config.attn_implementation = "eager"
    told = {press.name: reason(press, config, {}) for press in PRESSES}
    refused = {name for name, why in told.items() if why is not None}
    assert refused == {"adakv", "kvzip", "chunkkv"}
    assert all("model.attn_implementation=eager" in str(told[name]) for name in refused)


def test_what_no_configuration_tells_is_left_to_the_loading(tmp_path: Path) -> None:
    assert missing_of(ModelConfig(name="m", path=str(tmp_path / "nowhere"))) is None
    (tmp_path / "config.json").write_text('{"model_type": "a_family_of_next_year"}')
    assert missing_of(ModelConfig(name="m", path=str(tmp_path))) is None


def test_a_stranger_s_press_says_what_it_requires(tmp_path: Path) -> None:
    press = PressConfig(name="mine", method={"_target_": "a.b"}, requires=[ModelFeature.queries])
    config = model_of("glm4", tmp_path)
    missing = missing_of(config)
    assert missing is not None
    assert "rotary embedding has 16 of 32 dimensions" in str(reason(press, config, missing))
    press.requires = []
    assert reason(press, config, missing) is None


RUN = Path("outputs/runs/default")
SMALL = (
    "dataset.source.n_examples=20", "dataset.sampling.n_per_bin=1", "decoding.max_new_tokens=4",
)  # fmt: skip


def test_a_sweep_goes_on_without_what_is_not_applicable(
    kvx: Kvx, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = with_weights("ministral", tmp_path / "model")
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
    report = (RUN / "report.md").read_text()
    assert "| kvzip | mixed | 0.2, 0.5 | it scores the whole prompt in every layer" in report
    assert "Left out" not in report

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
    folder = with_weights("ministral", tmp_path / "model")
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
    lines = {line.split()[0]: line for line in found.splitlines()}
    assert set(lines) == {"press", *(press.name for press in PRESSES)}
    assert "no: it takes keys and values of one size" in lines["knorm"]
    plain = printed(kvx, capfd, "presses")
    assert all(line.endswith("  yes") for line in plain.splitlines()[1:])
    assert not any(Path().iterdir()) or {p.name for p in Path().iterdir()} == {"latent"}
    assert kvx("presses", "model=hf", "model.path=./nowhere").code == 2


def test_the_page_of_presses_is_current() -> None:
    committed = Path(__file__).parents[1] / "docs" / "presses.md"
    assert committed.read_text(encoding="utf-8") == page(), (
        "python -m kvx.presses.page > docs/presses.md"
    )
