"""Fast composition of sweeps gives what Hydra gives, point by point, errors included."""

import itertools
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, open_dict

from kvx.config.composer import Composer
from kvx.config.folders import conf_dir
from kvx.config.messages import explain
from kvx.config.schema import Config, shared_store
from kvx.config.sweep import compose_sweep, typed
from kvx.errors import UserError
from tests.conftest import Kvx
from tests.waiting import HANGS_S

# options whose effects are not confined to their node
ODD = {
    "press/global.yaml": "# @package _global_\nseed: 7\n"
    "press: {name: g, method: {_target_: kvpress.KnormPress}}\n",
    "press/nested.yaml": "defaults:\n  - knorm\n  - /press/extra/${model}@_here_\nname: nested\n",
    "press/extra/tiny_recall.yaml": "degenerate_at_tokens: 3\n",
    "press/extra/smollm2.yaml": "degenerate_at_tokens: 5\n",
    "press/asks.yaml": "name: asks\nmethod: {_target_: kvpress.KnormPress}\n"
    "degenerate_at_tokens: ${dataset.max_new_tokens}\n",
    "experiment/one.yaml": "# @package _global_\ndefaults:\n  - override /dataset: gsm8k\n"
    "experiment_name: one\npress: {degenerate_at_tokens: 11}\nseed: 2\n",
    "experiment/two.yaml": "# @package _global_\ndefaults:\n  - override /model: smollm2\n"
    "experiment_name: two\ndecoding: {max_new_tokens: 5}\nbudget: {ratio: 0.7}\n",
    "experiment/three.yaml": "# @package _global_\nexperiment_name: three\n"
    "prompt: {query_aware: true}\ndataset: {max_new_tokens: ${seed}}\nmodel: {dtype: bfloat16}\n",
    "dataset/several.yaml": "name: several\ntask: a\nmax_new_tokens: 9\nmetrics: [exact_match]\n"
    "source: {_target_: kvx.data.sources.recall.RecallSource, n_examples: 40}\n"
    "tasks:\n  a: {}\n  b: {max_new_tokens: 5, metrics: [qa_f1], source: {n_facts: 3}}\n"
    "  c: {source: {_target_: kvx.data.sources.recall.RecallSource, seed: 1}}\n",
    "dataset/fewer.yaml": "defaults:\n  - several\nname: fewer\nmax_new_tokens: 3\n"
    "tasks:\n  b: null\n  c: {metrics: [qa_f1]}\n",
    "experiment/picks.yaml": "# @package _global_\ndefaults:\n  - override /dataset: several\n"
    "experiment_name: picks\ndataset: {task: b, max_new_tokens: 6}\n",
    # choices that decide about other choices, and a node that two files fill
    "experiment/follows.yaml": "# @package _global_\ndefaults:\n"
    "  - /press/extra/${model}@press\nexperiment_name: follows\n",
    "experiment/twice.yaml": "# @package _global_\ndefaults:\n  - /press/tova@press\n"
    "  - _self_\nexperiment_name: twice\npress: {tolerance_tokens: 4}\n",
}

COLUMNS = [
    ["press=snapkv", "press=streaming", "press=none", "press=asks"],
    ["press=snapkv", "press=tova"],
    ["press=knorm", "press=global", "press=nested"],
    ["press=snapkv", "press=snapvk"],
    ["press=snapkv"],
    ["dataset=recall", "dataset=gsm8k", "dataset=local"],
    ["dataset=niah", "dataset=recall"],
    ["model=tiny_recall", "model=smollm2"],
    ["model=hf", "model=tiny_recall"],
    ["budget=ratio", "budget=tokens"],
    ["experiment=one", "experiment=two", "experiment=three", "experiment=null"],
    ["experiment=two", "experiment=demo"],
    ["experiment=follows"],
    ["experiment=twice"],
    ["experiment=twice", "experiment=follows"],
    ["experiment=one"],
    ["dataset=several"],
    ["dataset=several", "dataset=recall", "dataset=fewer"],
    ["dataset.task=a", "dataset.task=b", "dataset.task=c"],
    ["dataset.task=b"],
    ["dataset.task=b", "dataset.task=nosuch"],
    ["experiment=picks", "experiment=one"],
    ["budget.ratio=1", "budget.ratio=0.5", "budget.ratio=0.25"],
    ["budget.ratio=0.5", "budget.ratio=abc"],
    ["budget.tokens=16", "budget.tokens=32"],
    ["seed=0", "seed=1", "seed=2"],
    ["seed=${budget.tokens}", "seed=4"],
    ["press.method.window_size=16", "press.method.window_size=32"],
    ["press.method.window_size=16"],
    ["press.degenerate_at_tokens=${.method.window_size}", "press.degenerate_at_tokens=1"],
    ["press.degenerate_at_tokens='${dataset.sampling.n_per_bin}'", "press.degenerate_at_tokens=2"],
    ["+press.method.extra=1", "+press.method.extra=two"],
    ["++press.method.kernel_size=7", "++press.method.kernel_size=9"],
    ["+press.name=other", "+press.name=another"],
    ["press.method={_target_:kvpress.TOVAPress}", "press.method=null"],
    ["dataset.max_new_tokens=3", "dataset.max_new_tokens=4"],
    ["dataset.source.seed=1", "dataset.source.seed=2"],
    ["dataset.metrics=[qa_f1]", "dataset.metrics=[exact_match,qa_f1]"],
    ["model.path=/x", "model.path=/y"],
    ["model.path=/x"],
    ["decoding.max_new_tokens=2", "decoding.max_new_tokens=many"],
    ["paths.cache=/c", "paths.cache=${paths.output}"],
    ["paths.output=o", "paths.output=p"],
    ["experiment_name=a", "experiment_name=b"],
    ["experiment_name=run-${seed}-${press.name}"],
    ["measure=latency", "measure=both"],
    ["nosuch=1", "nosuch=2"],
    ["press.nosuch=1"],
    ["+top=1", "+top=2"],
    ["~controller"],
    ["run={shard_requests:3}", "run={shard_requests:4}"],
    ["run.shard_requests=5"],
]


@pytest.fixture(scope="module")
def odd_conf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped configuration with the odd options beside it."""
    folder = tmp_path_factory.mktemp("conf") / "conf"
    shutil.copytree(conf_dir(), folder)
    for name, text in ODD.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


class Counting(Composer):
    """Hydra's composition, each point composed once in all tests and counted in every one."""

    def __init__(self) -> None:
        super().__init__(GlobalHydra.instance().config_loader(), "run", [], self._compose)
        self.asked = 0

    def _compose(self, overrides: Sequence[str]) -> DictConfig:
        self.asked += 1
        return hydras(tuple(overrides))


@pytest.fixture
def in_hydra(odd_conf: Path) -> Iterator[None]:
    with shared_store(), initialize_config_dir(str(odd_conf), version_base="1.3"):
        yield
    hydras.cache_clear()


@cache
def hydras(overrides: tuple[str, ...]) -> DictConfig:
    """The configuration of one point as Hydra composes it."""
    loader = GlobalHydra.instance().config_loader()
    cfg = loader.load_configuration("run", list(overrides), RunMode.RUN)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


def outcome(work: Callable[[], list[Config]]) -> Any:
    try:
        return [repr(vars(config)) for config in work()]  # types too: 1 is not 1.0
    except Exception as error:  # noqa: BLE001  whatever both ways raise is compared
        return explain(error)


def points(columns: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """The grid, with one column per key as Hydra's sweeper makes it."""
    by_key = {c[0].partition("=")[0]: c for c in columns}
    return list(itertools.product(*by_key.values()))


@given(st.lists(st.sampled_from(COLUMNS), max_size=4))
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_any_sweep_is_what_hydra_makes_of_it(in_hydra: None, columns: list[list[str]]) -> None:
    rows = points(columns)[:16]
    expected = outcome(lambda: [typed(hydras(row)) for row in rows])
    found = outcome(lambda: compose_sweep(rows, Counting()))
    assert found == expected


@pytest.mark.parametrize(
    "columns",
    [
        # options that Hydra has to compose, with values that are set on one after the other
        [["controller=balanced", "controller=relax_only"], ["controller.k=2", "controller.k=3"],
         ["budget.ratio=0.5", "budget.ratio=0.25"]],
        [["experiment=one", "experiment=two"], ["seed=3", "seed=4"],
         ["press.degenerate_at_tokens='${dataset.sampling.n_per_bin}'",
          "press.degenerate_at_tokens=2"]],
        [["press=global", "press=nested"], ["decoding.max_new_tokens=2"],
         ["dataset.max_new_tokens=3", "dataset.max_new_tokens=4"]],
        # no options at all
        [["press=snapkv"], ["press.method.window_size=16", "press.method.window_size=32"],
         ["experiment_name=a", "experiment_name=run-${seed}-${press.name}"]],
        [["press=snapkv"], ["run={shard_requests:3}", "run={shard_requests:4}"],
         ["seed=${budget.tokens}", "seed=4"], ["budget.tokens=16", "budget.tokens=32"]],
        # controllers, each with the fields of its class
        [["controller=none", "controller=ngram", "controller=gate"],
         ["controller.cooldown=4", "controller.cooldown=5"]],
        [["controller=none", "controller=ngram"], ["controller.rate=0.5"]],
        # tasks of a dataset, below an experiment's values and the command line's
        [["dataset=several"], ["dataset.task=a", "dataset.task=b", "dataset.task=c"],
         ["press=snapkv", "press=tova"], ["budget.ratio=0.5", "budget.ratio=0.25"],
         ["dataset.max_new_tokens=7", "dataset.max_new_tokens=${seed}"]],
        [["dataset=several", "dataset=recall"], ["dataset.task=b"], ["seed=1", "seed=2"]],
        [["experiment=picks", "experiment=one"], ["press=snapkv", "press=tova"]],
    ],
)  # fmt: skip
def test_values_beside_any_options_are_set_as_hydra_sets_them(
    in_hydra: None, columns: list[list[str]]
) -> None:
    rows = points(columns)
    expected = outcome(lambda: [typed(hydras(row)) for row in rows])
    assert outcome(lambda: compose_sweep(rows, Counting())) == expected
    assert outcome(lambda: compose_sweep(rows[::-1], Counting())) == (
        expected[::-1] if isinstance(expected, list) else expected
    )


def test_controllers_need_no_more_compositions_than_presses(in_hydra: None) -> None:
    rows = points([["controller=none", "controller=ngram", "controller=gate"],
                   [f"budget.ratio={i / 20}" for i in range(1, 21)], ["press=knorm"]])  # fmt: skip
    composer = Counting()
    compose_sweep(rows, composer)
    assert composer.asked == 1


def test_a_big_sweep_needs_one_composition(in_hydra: None) -> None:
    presses = ["snapkv", "streaming", "knorm", "keydiff", "tova"]
    columns = [[f"press={p}" for p in presses], [f"budget.ratio={i / 20}" for i in range(1, 21)],
               [f"seed={i}" for i in range(5)], ["model=tiny_recall", "model=smollm2"]]  # fmt: skip
    rows, composer = points(columns), Counting()
    configs = compose_sweep(rows, composer)
    assert composer.asked == 1
    assert len({id(c.dataset) for c in configs}) == 1
    assert configs[-1] == typed(hydras(rows[-1]))


@pytest.mark.parametrize(
    ("sweep", "says"),
    [
        (["press=snapkv,snapvk"], "press=snapvk: unknown press; choose one of"),
        (["press=snapkv", "seed=1,two"], "seed=two: Value 'two' of type 'str' could not be"),
        (
            ["press=snapkv,knorm", "press.method.window_size=16,32"],
            "window_size: no such field",
        ),
        (["press=snapkv", "+seed=1,2"], "+seed"),
        (["model=tiny_recall,hf"], "model.path: needs a value"),
        (["press=snapkv,streaming", "budget=0.5,3"], "budget=3: must be above 0"),
    ],
)
def test_what_is_wrong_with_one_point_of_a_sweep_is_said_in_one_line(
    kvx: Kvx, sweep: list[str], says: str
) -> None:
    outcome = kvx("run", "-m", *sweep)
    assert outcome.code == 2
    assert len(outcome.err.splitlines()) == 1, outcome.err
    assert says in outcome.err


def test_a_sweep_is_planned_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from kvx.cli.command import run_stage\n"
        "arguments = ['-m', 'press=snapkv,knorm', 'budget=range(0.1,1.0,0.1)', 'seed=1,2,3']\n"
        "seen = []\n"
        "assert run_stage('run', arguments, seen.extend) == 0\n"
        "assert len(seen) == 54 and 'torch' not in sys.modules and 'submitit' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, timeout=HANGS_S)


def test_a_task_comes_after_its_file_and_before_everything_else(in_hydra: None) -> None:
    def dataset(*row: str) -> Any:
        (config,) = compose_sweep([row], Counting())
        return config.dataset

    own, b, c = (dataset("dataset=several", f"dataset.task={task}") for task in "abc")
    assert (own.max_new_tokens, own.metrics, own.source["n_examples"]) == (9, ["exact_match"], 40)
    assert (b.max_new_tokens, b.metrics) == (5, ["qa_f1"])
    assert b.source == {**own.source, "n_facts": 3}
    assert c.source == {"_target_": own.source["_target_"], "seed": 1}  # a source of its own
    assert list(b.tasks) == ["a", "b", "c"]
    heir = dataset("dataset=fewer", "dataset.task=c")
    assert (heir.max_new_tokens, heir.metrics, heir.source) == (3, ["qa_f1"], c.source)
    with pytest.raises(UserError, match="no task of dataset=fewer; use all, or one of a, c"):
        dataset("dataset=fewer", "dataset.task=b")
    picked = dataset("experiment=picks")
    assert (picked.task, picked.max_new_tokens, picked.metrics) == ("b", 6, ["qa_f1"])
    assert dataset("experiment=picks", "dataset.max_new_tokens=7").max_new_tokens == 7
    assert dataset("experiment=picks", "dataset.task=c").max_new_tokens == 6


def test_all_is_every_task_of_a_dataset_beside_the_rest_of_the_sweep(in_hydra: None) -> None:
    rows = [("dataset=several", "dataset.task=all", p) for p in ("press=tova", "press=knorm")]
    found = [(c.dataset.task, c.press.name) for c in compose_sweep(rows, Counting())]
    assert found == [(t, p) for p in ("tova", "knorm") for t in "abc"]
    alone = compose_sweep([("dataset=recall", "dataset.task=all")], Counting())
    assert [c.dataset.task for c in alone] == ["kv"]  # a dataset of one task
