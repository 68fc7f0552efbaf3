"""Presses as users write them: kvpress's classes and their own run rightly or end in one line."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import kvpress
import pytest
import torch
from kvpress import CriticalKVPress, KeyRerotationPress, KnormPress, SnapKVPress
from kvpress.pipeline import KVPressTextGenerationPipeline
from transformers import Qwen2Config, Qwen2ForCausalLM

from kvx.cli.command import compose
from kvx.config.identity import resolved
from kvx.config.press_choices import Keeps, PressNeed
from kvx.config.schema import BudgetConfig, BudgetKind, PressConfig
from kvx.engines.base import BudgetProof, PointFailed, PointWork, Response
from kvx.engines.kvpress.engine import KVPressEngine
from kvx.engines.kvpress.press_check import check_on_model
from kvx.engines.kvpress.transformers_versions import kvpress_hooks
from kvx.errors import UserError
from kvx.identity.hashing import digest
from kvx.points import Request, controller_identity
from tests.conftest import Kvx
from tests.test_engine import answers, recall

KNORM = {"_target_": "kvpress.KnormPress"}
SNAPKV = {"_target_": "kvpress.SnapKVPress", "window_size": 16}
# arguments that a class cannot do without
ARGUMENTS: dict[str, dict[str, Any]] = {
    "PerLayerCompressionPress": {"press": KNORM, "compression_ratios": [0.5, 0.5]},
    "ComposedPress": {"presses": [KNORM]},
    "DMSPress": {"press": KNORM, "threshold": 0.1},
    "PrefillDecodingPress": {"prefilling_press": KNORM},
    **{
        name: {"base_press": KNORM}
        for name in ("DecodingPress", "CompressionRatioDecodingPress", "CAMPress")
    },
    **{
        name: {"press": KNORM}
        for name in (
            "AdaKVPress", "BlockPress", "ChunkKVPress", "ChunkPress", "CriticalAdaKVPress",
            "CriticalKVPress", "EntropyGatedChunkKVPress", "KeyRerotationPress", "LUKVPress",
            "MergingPress",
        )
    },
    "SnapKVPress": {"window_size": 16}, "PyramidKVPress": {"window_size": 16},
}  # fmt: skip
NEEDS = {
    **{
        name: [PressNeed.masks]
        for name in ("AdaKVPress", "CriticalAdaKVPress", "KVgradPress", "KVzipPress")
    },
    "ObservedAttentionPress": [PressNeed.attention_weights],
    "KVComposePress": [PressNeed.changes_forward],
    "PerLayerCompressionPress": [PressNeed.uneven_layers],
}
NO_RATIO = "no budget can be set: compression ratio cannot be set for"
REFUSED = {
    "BasePress": "has no compression_ratio, so no budget can be set",
    "ScorerPress": "does not compress",
    **dict.fromkeys(
        ("DMSPress", "DuoAttentionPress", "SimLayerKVPress", "ThinKPress"), NO_RATIO,
    ),
    **dict.fromkeys(
        ("CAMPress", "CompressionRatioDecodingPress", "DecodingPress", "PrefillDecodingPress"),
        "has no compression_ratio",
    ),
    "RestoreKVPress": "appends entries to the prompt",
}  # fmt: skip
# look files up at a hub by the model's name
FROM_A_HUB = (
    "ExpectedAttentionStatsPress", "FastKVzipPress", "KVzapPress", "LUKVPress", "QFilterPress",
)  # fmt: skip
ASKED_OF_THE_QUESTION = ("FinchPress",)  # tests/test_wrappers.py
EVERY = [name for name in kvpress.__all__ if name.endswith("Press")]


BUDGETS = (
    BudgetConfig(ratio=0.5),
    BudgetConfig(ratio=0.1),
    BudgetConfig(kind=BudgetKind.tokens, tokens=60),
)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> PointWork:
    """Two prompts, to be asked with any press."""
    return recall(tmp_path_factory.mktemp("two"), "press=knorm", "budget=0.5", n=2)


def with_press(work: PointWork, name: str, **config: Any) -> PointWork:
    """The same prompts with a press of kvpress, written as a user's YAML."""
    method = {"_target_": f"kvpress.{name}", **ARGUMENTS.get(name, {})}
    press = PressConfig(name="mine", method=method, needs=NEEDS.get(name, []))
    if name == "ChunkKVPress":
        press.keeps = Keeps.by_method
    config = {"press": press, **config}
    point = replace(work.point, config=replace(work.point.config, **config))
    requests = tuple((Request(point, r.entry), example) for r, example in work.requests)
    return PointWork(point, requests)


def check(work: PointWork) -> None:
    KVPressEngine(work.point.config).check([work.point])


@pytest.mark.parametrize(
    "name", [n for n in EVERY if n not in {*REFUSED, *FROM_A_HUB, *ASKED_OF_THE_QUESTION}]
)
def test_a_press_of_kvpress_runs_and_keeps_what_is_asked(two: PointWork, name: str) -> None:
    for budget in BUDGETS:
        work = with_press(two, name, budget=budget)
        check(work)
        for response in answers(work):
            assert response.error_message is None
            assert response.kv is not None
            off = abs(response.kv.entries_effective - response.kv.entries_nominal)
            exact = response.budget_proof is BudgetProof.MEASURED
            assert exact == (off <= 1)
            assert exact or name == "ChunkKVPress"


@pytest.mark.parametrize("name", REFUSED)
def test_a_press_without_a_settable_budget_is_refused_in_one_line(
    two: PointWork, name: str
) -> None:
    with pytest.raises(UserError, match=r"\Apress=mine: [^\n]*\Z") as refused:
        check(with_press(two, name))
    assert REFUSED[name] in str(refused.value)
    assert name in str(refused.value)


@pytest.mark.parametrize("name", FROM_A_HUB)
def test_a_press_whose_files_are_not_there_is_refused_before_any_prompt(
    two: PointWork, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    work = with_press(two, name)
    model = KVPressEngine(work.point.config).loaded.model
    with pytest.raises(UserError, match=rf"\Apress=mine: {name} cannot be used with [^\n]*\Z"):
        check_on_model(work.point, model)


@pytest.mark.parametrize(
    ("name", "need"),
    [
        ("AdaKVPress", "masks"), ("KVgradPress", "masks"), ("KVzipPress", "masks"),
        ("KVComposePress", "changes_forward"), ("ObservedAttentionPress", "attention_weights"),
    ],
)  # fmt: skip
def test_what_is_declared_too_little_names_what_to_declare(
    two: PointWork, name: str, need: str
) -> None:
    work = with_press(two, name)
    work.point.config.press.needs = []
    with pytest.raises(UserError, match=rf"declare press.needs=\[{need}\]"):
        check(work)


class MyRerotation(KeyRerotationPress):
    """Somebody's own, made from kvpress's."""


@pytest.mark.parametrize("share", ["true", "false"])
@pytest.mark.parametrize(
    "target", ["kvpress.KeyRerotationPress", "tests.test_presses.MyRerotation"]
)
def test_packed_keys_are_decoded_where_kvpress_does(
    tmp_path: Path, target: str, share: str
) -> None:
    """Token for token; decoding on at the prompt's length gives other texts."""
    more = ["decoding.max_new_tokens=24", f"engine.share={share}", "signals=full"]
    work = recall(tmp_path, "press=knorm", "budget=0.3", *more, n=8)
    press = work.point.config.press
    press.method, press.score_uses_budget = {"_target_": target, "press": {**SNAPKV}}, True
    engine = KVPressEngine(work.point.config)
    engine.check([work.point])
    pipeline = KVPressTextGenerationPipeline(
        model=engine.loaded.model, tokenizer=engine.loaded.tokenizer
    )
    examples, compared = {e.example_id: e for _, e in work.requests}, 0
    for response in answers(work):
        example = examples[response.request.entry.example_id]
        assert response.token_ids is not None
        if response.token_ids[0] in engine.loaded.stop_ids:
            continue
        with kvpress_hooks(pipeline.model):
            theirs = pipeline(
                example.context, question=f" ? {example.question}", answer_prefix="",
                press=KeyRerotationPress(SnapKVPress(0.7, window_size=16)), max_new_tokens=24,
            )["answer"]  # fmt: skip
        assert response.text == theirs
        compared += 1
    assert compared >= 4


def test_points_that_were_decoded_elsewhere_are_others(two: PointWork) -> None:
    """Their answers differ from an older kvx's, so they must not be taken for done."""
    for name, stays in (("KnormPress", True), ("KeyRerotationPress", False)):
        point = with_press(two, name).point
        budget, seed = {"ratio": point.config.budget.ratio}, point.config.seed
        before = [
            point.variant_id, resolved(point.config.press), budget,
            controller_identity(point.config), seed,
        ]  # fmt: skip
        assert point.id.endswith(digest(before)) is stays


def test_a_guard_does_not_take_a_press_that_packs_keys(two: PointWork) -> None:
    guarded = compose("controller=reactive").controller
    work = with_press(two, "KeyRerotationPress", controller=guarded)
    with pytest.raises(UserError, match="moves what it keeps to other positions"):
        check(work)


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Qwen2, whose configuration does not say how large a head is."""
    import shutil

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=328, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.2,
        use_sliding_window=False, eos_token_id=2, bos_token_id=1, pad_token_id=0,
        tie_word_embeddings=False,
    )  # fmt: skip
    assert not hasattr(config, "head_dim")
    folder = tmp_path_factory.mktemp("qwen2")
    Qwen2ForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path("kvx/assets/tiny_recall") / name, folder)
    return folder


@pytest.mark.parametrize(
    ("press", "needs"), [("CriticalKVPress", []), ("CriticalAdaKVPress", [PressNeed.masks])]
)
def test_criticalkv_runs_where_the_configuration_says_no_head_size(
    tmp_path: Path, qwen2: Path, press: str, needs: list[PressNeed]
) -> None:
    small = ["model=hf", f"model.path={qwen2}", "model.dtype=float32"]
    more = ["budget=0.3", "decoding.max_new_tokens=6"]
    work = with_press(recall(tmp_path, "press=knorm", *small, *more, n=2), press)
    assert work.point.config.press.needs == needs
    engine = KVPressEngine(work.point.config)
    engine.check([work.point])
    found = answers(work)
    assert [r.error_message for r in found] == [None, None]
    model = engine.loaded.model
    assert not hasattr(model.config, "head_dim"), "the model is as it was"
    if press != "CriticalKVPress":
        return
    model.config.head_dim = 16
    try:
        pipeline = KVPressTextGenerationPipeline(model=model, tokenizer=engine.loaded.tokenizer)
        examples = {e.example_id: e for _, e in work.requests}
        for response in found:
            example = examples[response.request.entry.example_id]
            with kvpress_hooks(pipeline.model):
                theirs = pipeline(
                    example.context, question=f" ? {example.question}", answer_prefix="",
                    press=CriticalKVPress(KnormPress(0.7)), max_new_tokens=6,
                )["answer"]  # fmt: skip
            assert response.text == theirs
    finally:
        del model.config.head_dim


class Chunky(KnormPress):
    """Keeps tens: another number than is asked, by its method."""

    def compress(self, module: Any, hidden: Any, keys: Any, values: Any, *rest: Any) -> Any:
        n = max(1, int(keys.shape[2] * (1 - self.compression_ratio)) // 10 * 10)
        return keys[:, :, -n:], values[:, :, -n:]


def test_a_method_that_keeps_another_number_is_told_by_what_it_kept(tmp_path: Path) -> None:
    target = "press.method._target_=tests.test_presses.Chunky"
    tight = recall(tmp_path, "press=knorm", target, "budget=0.45", n=6)
    (failed,) = [
        item
        for item in KVPressEngine(tight.point.config).generate([tight])
        if isinstance(item, PointFailed)
    ]
    assert "press.keeps=by_method" in failed.message
    # a tolerance lets the point live, but calls nothing measured that is more than rounding
    for more in ("press.keeps=by_method", "press.tolerance_tokens=10"):
        work = recall(tmp_path, "press=knorm", target, "budget=0.45", more, n=6)
        for response in answers(work):
            assert response.kv is not None
            off = abs(response.kv.entries_effective - response.kv.entries_nominal)
            proof = BudgetProof.MEASURED if off <= 1 else BudgetProof.BY_METHOD
            assert response.budget_proof is proof
        assert any(r.budget_proof is BudgetProof.BY_METHOD for r in answers(work))


class Typo(KnormPress):
    """Has an error in a function that it calls."""

    def score(self, module: Any, hidden: Any, keys: torch.Tensor, *rest: Any) -> torch.Tensor:
        return _misspelt(keys)


def _misspelt(keys: torch.Tensor) -> torch.Tensor:
    return keys.norm(dim=-1) * undefined  # type: ignore[name-defined]  # noqa: F821


class Nothing(KnormPress):
    """Forgets to return."""

    def compress(self, *args: Any) -> None:
        return None


class TooManyValues(KnormPress):
    def compress(self, module: Any, hidden: Any, keys: Any, values: Any, *rest: Any) -> Any:
        return keys[:, :, :10], values[:, :, :20]


class Twice(KnormPress):
    def compress(self, module: Any, hidden: Any, keys: Any, values: Any, *rest: Any) -> Any:
        return keys.repeat(2, 1, 1, 1), values.repeat(2, 1, 1, 1)


class FewArguments(KnormPress):
    def score(self, keys: torch.Tensor) -> torch.Tensor:
        return keys.norm(dim=-1)


def _line(text: str) -> str:
    lines = Path(__file__).read_text().splitlines()
    return f"test_presses.py:{next(i for i, line in enumerate(lines, 1) if text in line)}"


@pytest.mark.parametrize("share", ["true", "false"])
@pytest.mark.parametrize(
    ("name", "said", "at"),
    [
        ("Typo", "NameError: name 'undefined' is not defined", "* undefined  # type"),
        ("Nothing", "returned a NoneType", "def compress(self, *args: Any) -> None"),
        ("FewArguments", "takes 2 positional arguments", "def score(self, keys: torch.Tensor) ->"),
    ],
)
def test_a_press_that_raises_is_one_line_with_its_place(
    kvx: Kvx, name: str, said: str, at: str, share: str
) -> None:
    small = ("dataset.source.n_examples=12", "dataset.sampling.n_per_bin=2")
    target = f"press.method._target_=tests.test_presses.{name}"
    outcome = kvx(
        "run", "-m", "press=knorm", "press.name=mine", target, "budget=1.0,0.5", *small,
        f"engine.share={share}",
    )  # fmt: skip
    assert outcome.code == 1
    last = outcome.err.strip().splitlines()[-1]
    assert "1 of 2 points failed, the others are complete; mine-0.5-" in last
    if share == "true" or name != "Nothing":
        assert said in last
    assert _line(at) in last
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize(
    ("name", "said"),
    [("TooManyValues", "kept 10 keys and 20 values"), ("Twice", "only the number of entries")],
)
def test_what_a_press_returns_is_checked(tmp_path: Path, name: str, said: str) -> None:
    target = f"press.method._target_=tests.test_presses.{name}"
    work = recall(tmp_path, "press=knorm", target, "budget=0.5", n=2)
    items = list(KVPressEngine(work.point.config).generate([work]))
    for item in items:
        assert isinstance(item, Response)
        assert said in (item.error_message or "")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import nowhere_to_be_found\n", "ModuleNotFoundError: No module named 'nowhere_to_be_f"),
        ("class P(\n", "was never closed"),
        ("x = undefined\n", "NameError: name 'undefined' is not defined"),
        ("from kvpress import KnormPress\n", "no such class"),
        ("P = 3\n", "Expected a callable target"),
        ("def P(): return 3\n", "has no compression_ratio"),
        (
            "from kvpress import KnormPress\nclass P(KnormPress):\n    def __post_init__(self):\n"
            "        raise ValueError\n", ":4)",
        ),
    ],
)  # fmt: skip
def test_a_press_that_cannot_be_made_says_why_and_where(
    kvx: Kvx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, said: str
) -> None:
    name = f"press_{abs(hash(source))}"
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    target = f"press.method._target_={name}.P"
    outcome = kvx("run", "press=knorm", target, "budget=0.5", "dataset.source.n_examples=12")
    assert outcome.code == 2
    last = outcome.err.strip().splitlines()[-1]
    assert f"press=knorm: {name}.P: " in last
    assert said in last
    assert "Traceback" not in outcome.err


def test_a_token_budget_is_checked_on_every_prompt(two: PointWork) -> None:
    """The shortest keeps all of it; others are compressed, and some are within the window."""
    first, second = sorted({e.compressed_tokens for e in two.point.manifest.entries})[:2]
    budget = BudgetConfig(kind=BudgetKind.tokens, tokens=first)
    work = with_press(two, "SnapKVPress", budget=budget)
    work.point.config.press.min_prompt_tokens = second
    with pytest.raises(UserError, match=rf"needs prompts of more than {second} .* has {second};"):
        check(work)
