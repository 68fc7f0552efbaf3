"""The shipped presses: all of kvpress's are there, are themselves where they say so, and find their
files.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kvpress
import pytest
import torch
from huggingface_hub import constants
from kvpress import KnormPress, LeverageScorePress, RandomPress, SimLayerKVPress
from kvpress.presses.expected_attention_with_stats import ExpectedAttentionStats
from kvpress.presses.qfilter_press import QFilters
from transformers import LlamaConfig, LlamaForCausalLM

from kvx.cli.command import compose
from kvx.cli.press_files import shipped_presses
from kvx.config.press_config import PressConfig
from kvx.config.schema import BudgetConfig
from kvx.engines.kvpress import needed_files
from kvx.engines.kvpress.applicability import not_applicable
from kvx.engines.kvpress.engine import KVPressEngine
from kvx.engines.kvpress.press import instantiate
from kvx.errors import UserError
from kvx.presses.itself import smallest_kept, smallest_prompt
from kvx.presses.properties import DECODING
from kvx.run import applicable
from kvx.run.bundle import run_points
from tests.conftest import Kvx
from tests.test_conditions import point_of
from tests.test_engine import answers, recall

PRESSES = {press.name: press for press in shipped_presses() if press.method is not None}
SNAPKV = compose("press=snapkv", "budget=0.5")
ABSTRACT = {"BasePress", "ScorerPress"}


def classes() -> set[str]:
    """The classes of kvpress that shipped presses are."""
    return {
        str(press.method["_target_"]).removeprefix("kvpress.")
        for press in PRESSES.values()
        if press.method is not None
    }


def test_every_class_of_kvpress_has_a_press() -> None:
    """Apart from those that compress what is generated, and abstract ones."""
    every = {name for name in kvpress.__all__ if name.endswith("Press")}
    assert every - classes() == {*ABSTRACT, *DECODING}


def test_every_press_says_what_it_keeps_and_whose_it_is() -> None:
    for press in PRESSES.values():
        assert press.summary
        assert press.paper.startswith("https://") or press.name in (
            "random",
            "composed",
            "per_layer",
        )


@pytest.mark.parametrize("n", [1029, 1030])
@torch.inference_mode()
def test_simlayerkv_drops_nothing_of_a_prompt_that_it_flags(n: int) -> None:
    """Of one token more, a layer that is lazy whatever it attends to keeps 1,027 entries."""
    config = LlamaConfig(
        hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, vocab_size=8,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    press = instantiate(PRESSES["simlayerkv"], 1 - 1e-9)
    assert isinstance(press, SimLayerKVPress)
    assert press.lazy_threshold == pytest.approx(1e-9)
    module, hidden = model.model.layers[0].self_attn, torch.randn(1, n, 16)
    keys, values = torch.randn(2, 1, 1, n, 8)
    rotary = model.model.rotary_emb(hidden, torch.arange(n)[None])
    kept, _ = press.compress(module, hidden, keys, values, None, {"position_embeddings": rotary})
    told = point_of(replace(SNAPKV, press=PRESSES["simlayerkv"])).degenerate_reason(n)
    assert (told is None) == (kept.shape[2] == 1027) == (n == 1030)
    assert kept.shape[2] in (1027, n)


def test_leverage_is_the_same_for_all_keys_where_it_is_flagged() -> None:
    """Large keys, so that the term which keeps the matrix invertible does not count."""
    leverage, compactor = (
        replace(SNAPKV, press=PRESSES[name]) for name in ("leverage_score", "compactor")
    )
    for n in (48, 49, 50):
        torch.manual_seed(0)
        keys = 1e3 * torch.randn(1, 2, n, 64, dtype=torch.float64)
        scores = LeverageScorePress.compute_leverage_scores(keys, 48)
        alike = float(scores.amax() - scores.amin()) < 0.01
        assert alike == (n <= 49), scores
        assert (point_of(leverage).degenerate_reason(n) is not None) == alike
        # it leaves out its sinks
        assert (point_of(compactor).degenerate_reason(n + 12) is not None) == alike


def test_a_press_is_itself_from_the_prompt_and_the_budget_that_the_table_tells() -> None:
    assert smallest_prompt(PRESSES["lagkv"]) == 260
    assert smallest_prompt(PRESSES["simlayerkv"]) == 1030
    assert (smallest_prompt(PRESSES["snapkv"]), smallest_kept(PRESSES["snapkv"], 1024)) == (66, 65)
    assert smallest_kept(PRESSES["pyramidkv"], 1024) == 512
    assert smallest_kept(PRESSES["pyramidkv"], 8192) == 1280
    assert smallest_kept(PRESSES["simlayerkv"], 1024) is None


def test_random_keeps_others_in_every_layer_and_prompt_and_the_same_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    score = RandomPress.score

    def noting(self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append(score(self, *args, **kwargs))
        return seen[-1]

    monkeypatch.setattr(RandomPress, "score", noting)
    work = recall(tmp_path, "press=random", "budget=0.5", "decoding.max_new_tokens=1", n=2)
    first = [r.token_ids for r in answers(work)]
    n = min(scores.shape[-1] for scores in seen)
    kept = [tuple(scores[0, 0, :n].topk(n // 2).indices.sort().values.tolist()) for scores in seen]
    assert len(set(kept)) == len(kept) == 4  # two layers of two prompts
    once, seen[:] = list(seen), []
    assert [r.token_ids for r in answers(work)] == first
    assert all(torch.equal(a, b) for a, b in zip(once, seen, strict=True))


def test_random_with_a_seed_of_its_own_is_refused(tmp_path: Path) -> None:
    """It would keep the same positions in every layer and prompt."""
    work = recall(tmp_path, "press=random", "+press.method.seed=3", "budget=0.5", n=1)
    with pytest.raises(UserError, match=r"seed=3: keeps the same positions .* leave it out"):
        KVPressEngine(work.point.config).check([work.point])


@pytest.mark.parametrize("name", ["Llama-3.1-8B", "Meta-Llama-3-8B-Instruct", "Qwen3-8B"])
def test_files_have_the_names_that_kvpress_asks_for(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    asked: list[str] = []

    class Asked(Exception):  # noqa: N818
        pass

    def note(repository: str) -> None:
        asked.append(repository)
        raise Asked

    monkeypatch.setattr(QFilters, "from_pretrained", note)
    monkeypatch.setattr(ExpectedAttentionStats, "from_pretrained", note)
    config = SimpleNamespace(
        name_or_path=f"owner/{name}", num_hidden_layers=1, num_attention_heads=1, head_dim=4
    )
    for press in (PRESSES["qfilter"], PRESSES["expected_attention_stats"]):
        with pytest.raises(Asked):
            instantiate(press, 0.5).post_init_from_model(SimpleNamespace(config=config))
        (needed,) = press.hub
        address = needed_files.address(needed, press, f"owner/{name}")
        assert address == f"{asked.pop()}:model.safetensors"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache of the hub, which cannot be reached."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    needed_files._unavailable.cache_clear()
    yield tmp_path / "hub"
    needed_files._unavailable.cache_clear()


def test_a_press_without_its_file_is_one_line_before_a_model_is_loaded(kvx: Kvx, hub: Path) -> None:
    small = ("dataset.source.n_examples=12", "dataset.sampling.n_per_bin=1")
    for name, said in (
        ("qfilter", "it needs model.safetensors of nthngdy/tiny_recall_qfilt at the hub, which is"),
        ("lukv", "it needs a file that there is for meta-llama/Llama-3.1-8B-Instruct only"),
        ("restorekv", "it appends entries to the prompt"),
    ):
        outcome = kvx("run", f"press={name}", "budget=0.5", *small)
        assert outcome.code == 2
        last = outcome.err.strip().splitlines()[-1]
        assert last.startswith(
            f"kvx run: press={name} on model=tiny_recall: not applicable: {said}"
        )
    assert not Path("outputs/runs").exists()


def test_presses_with_their_file_in_the_cache_answer_shared_as_alone(
    tmp_path: Path, hub: Path
) -> None:
    files = hub / "models--nthngdy--tiny_recall_qfilt"
    (files / "refs").mkdir(parents=True)
    (files / "refs" / "main").write_text("a" * 40)
    torch.manual_seed(0)
    QFilters(num_layers=2, num_kv_heads=2, kv_head_dim=64).save_pretrained(
        files / "snapshots" / ("a" * 40)
    )
    stats = ExpectedAttentionStats(2, 2, 64, "data", "model", 1, 1, 4)
    stats.query_mean.data.normal_()
    stats.save_pretrained(tmp_path / "stats")
    for press in (
        ("press=qfilter",),
        ("press=expected_attention_stats", f"press.method.stats_folder={tmp_path / 'stats'}"),
    ):
        found = []
        for share in ("true", "false"):
            work = recall(tmp_path, *press, "budget=0.5", f"engine.share={share}", n=2)
            assert not_applicable(work.point.config) is None
            KVPressEngine(work.point.config).check([work.point])
            given = answers(work)
            assert all(r.error_message is None for r in given)
            found.append({r.request.id: r.token_ids for r in given})
        assert found[0] == found[1]


class Unprepared(KnormPress):  # type: ignore[misc]
    """Cannot be used on any model, which only a loaded one shows."""

    def post_init_from_model(self, model: Any) -> None:
        raise RuntimeError("wants another model")


def test_a_sweep_goes_on_without_what_its_prompts_or_the_loaded_model_rule_out(
    tmp_path: Path,
) -> None:
    small = (
        "dataset.source.n_examples=12", "dataset.sampling.n_per_bin=1",
        "decoding.max_new_tokens=2", "dataset.binning.n_bins=2", "budget=0.5", "press=snapkv",
        f"paths.output={tmp_path}",
    )  # fmt: skip
    sweep = [
        compose(*small),
        compose(*small, "press.method.window_size=5000"),
        replace(compose(*small), press=unprepared()),
    ]
    points = run_points(sweep)
    assert (points[0].dir / "DONE").exists()
    told = [(point.dir / "NOT_APPLICABLE").read_text() for point in points[1:]]
    assert told[0].startswith("it needs prompts of more than 5000 tokens, but example recall-")
    assert told[1].startswith("Unprepared cannot be used with")
    assert "RuntimeError: wants another model (test_press_catalogue.py:" in told[1].replace(
        "tests/", ""
    )
    with pytest.raises(UserError, match="press=mine on model=tiny_recall: not applicable: Unprep"):
        run_points(sweep[2:])


def unprepared() -> PressConfig:
    return PressConfig(name="mine", method={"_target_": "tests.test_press_catalogue.Unprepared"})


def test_a_budget_without_an_endpoint_is_not_applicable() -> None:
    there = "engine.endpoints={1.0: http://a:1/v1, 0.5: http://b:1/v1}"
    config = compose("engine=openai", there, "press=snapkv")
    sweep = []
    for ratio in (1.0, 0.5, 0.2):
        sweep.append(point_of(replace(config, budget=BudgetConfig(ratio=ratio))))
        vars(sweep[-1])["id"] = str(ratio)
    told = applicable.not_applicable(sweep)
    assert list(told.values()) == ["engine.endpoints: none for budget 0.2; there are 1, 0.5"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["press=observed_attention", "model.attn_implementation=sdpa"], "set it to eager or auto"),
        (["press=snapkv", "press.needs=[query_in_prompt]"], "add prompt.query_aware=true"),
    ],
)
def test_what_the_settings_rule_out_is_not_applicable(arguments: list[str], said: str) -> None:
    assert said in str(not_applicable(compose(*arguments, "budget=0.5")))
    assert not_applicable(compose(*arguments, "budget=1.0")) is None
