"""The command line: nothing typed is dropped or changed without a word."""

import os
import sys
from errno import EACCES
from pathlib import Path

import pytest

from kvx.cli.arguments import refuse_sweeps, understood
from kvx.cli.command import compose, describe
from kvx.config.overrides import parse, readable
from kvx.config.schema import BudgetConfig, BudgetKind
from kvx.engines.openai.body import endpoints
from kvx.errors import UserError
from kvx.points import budget_label
from kvx.serve.start import serve
from tests.conftest import Kvx


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("++decoding.temprature=0.7", "decoding.temprature: no such field; did you mean dec"),
        ("+model.load_in_4bit=true", "model.load_in_4bit: no such field; model has name, path"),
        ("+budgt=0.5", "budgt: no such field; did you mean budget?"),
        ("+presss=knorm", "presss: no such field; did you mean press?"),
        ("++engine.top_logprob=3", "engine.top_logprob: no such field; did you mean engine.top_l"),
        ("++engine.timeouts.connect_s=3", "engine.timeouts: no field of this engine; it is one of"),
        ("engine.api=chat", "engine.api: no field of this engine; it is one of engine=openai"),
        ("++decoding.a.b=3", "decoding.a: no such field; decoding has max_new_tokens"),
        ("++decoding={temprature:3}", "did you mean decoding.temperature?"),
        ("+temperature=0.7", "did you mean decoding.temperature?"),
        ("decoding.temprature=0.7", "did you mean decoding.temperature?"),
        ("++dataset.sampling.n_per_bins=3", "did you mean dataset.sampling.n_per_bin?"),
        ("press=[knorm,snapkv]", "to sweep, type -m press=knorm,snapkv"),
        ("press=snapkv,[knorm,tova]", "to sweep, type -m press=snapkv,knorm,tova"),
        ("budget=[0.5,0.2]", "a list is not a budget; to sweep, type -m budget=0.5,0.2"),
        ("+press=3", "+press=3: options have names"),
        ("++score.metric=[qa_f1]", "score.metric: no such field; did you mean score.metrics?"),
    ],
)
def test_a_key_that_no_field_takes_is_refused(typed: str, says: str) -> None:
    with pytest.raises(UserError) as refused:
        compose(typed)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_added_budget_is_the_budget_and_quotes_are_not_shown() -> None:
    for typed in ("+budget=0.5", "++budget=0.5"):
        assert compose("press=knorm", typed).budget.ratio == 0.5
    with pytest.raises(UserError, match=r": '0\.5' is not a budget"):
        understood(['budget="0.5","0.2"'])


def test_overrides_may_stand_behind_an_option(kvx: Kvx, capfd: pytest.CaptureFixture[str]) -> None:
    outcome = kvx("run", "experiment=demo", "--cfg", "job", "seed=7", "--package", "seed")
    assert outcome.code == 0, outcome.err
    assert understood(["--config-dir", "a=b", "seed=7", "-m"])[1:] == ["-m", "--config-dir", "a=b"]


def test_free_form_nodes_take_any_key() -> None:
    config = compose(
        "press=snapkv", "budget=0.5", "+press.method.mine=1", "+dataset.source.own={a: 1}"
    )
    assert config.press.method is not None
    assert config.press.method["mine"] == 1
    assert config.dataset.source["own"] == {"a": 1}


def write(tmp_path: Path, name: str, text: str) -> str:
    path = tmp_path / "conf" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return f"--config-dir={tmp_path / 'conf'}"


SWEPT = "# @package _global_\nexperiment_name: mine\nhydra: {%ssweeper: {params: {%s}}}\n"


@pytest.mark.parametrize(
    ("name", "text", "arguments", "says"),
    [
        ("experiment/mine.yaml", "# @package _global_\ndecoding: {temprature: 1}\n",
         ["experiment=mine"],
         "decoding.temprature: no such field; did you mean decoding.temperature? (in exp"),
        ("experiment/mine.yaml", "# @package _global_\nbudgt: 1\n", ["experiment=mine"],
         "budgt: no such field; did you mean budget?"),
        ("press/mine.yaml", "name: mine\ntolerance_token: 3\n", ["press=mine"],
         "press.tolerance_token: no such field; did you mean press.tolerance_tokens?"),
        ("press/mine.yaml", "name: mine\nmethod: {}\n bad: 3\n", ["press=mine"],
         "mine.yaml, line 3: no YAML ("),
        ("experiment/mine.yaml", "# @package _global_\nhydra: {sweep: {press: knorm}}\n",
         ["experiment=mine"], "hydra.sweep.press: no such field; see `--cfg hydra`"),
        ("experiment/mine.yaml", SWEPT % ("", "press: 'snapkv,knorm'"), ["experiment=mine"],
         "press=snapkv,knorm: the experiment sweeps it; add -m"),
        ("experiment/mine.yaml", SWEPT % ("mode: MULTIRUN, ", "run.shard_s: '1,2'"),
         ["experiment=mine"], "run.shard_s=1,2: several values, but run.shard_s tells no points"),
        ("experiment/mine.yaml",
         SWEPT % ("mode: MULTIRUN, ", "press: '[snapkv,knorm]', budget: '0.5,0.2'"),
         ["experiment=mine"], "press=[snapkv,knorm]: press takes one option"),
    ],
)  # fmt: skip
def test_files_are_held_to_the_schema_too(
    kvx: Kvx, tmp_path: Path, name: str, text: str, arguments: list[str], says: str
) -> None:
    outcome = kvx("plan", write(tmp_path, name, text), *arguments)
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1), outcome.err
    assert says in outcome.err


def test_an_experiment_sweeps_budgets_as_the_command_line_does(
    kvx: Kvx, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = SWEPT % ("mode: MULTIRUN, ", "press: snapkv, budget: '0.5,0.12345678'")
    folder = write(tmp_path, "experiment/mine.yaml", text)
    few = ["dataset.source.n_examples=20", "dataset.sampling.n_per_bin=1"]
    assert kvx("prepare", folder, "experiment=mine", *few).code == 0
    assert kvx("plan", folder, "experiment=mine", "plan.format=json", *few).code == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["engine.share=true,false"], "engine.share tells no points apart"),
        (["run.shard_requests=4,8"], "run.shard_requests tells no points apart"),
        (["latency.repeats=2,3"], "latency.repeats tells no points apart"),
        (["paths.cache=a,b"], "paths.cache tells no points apart"),
        (["certificate=a,b"], "certificate tells no points apart"),
        (["model.name=a,b"], "model.name=a,b: several values, but model.name tells no points"),
        (["dataset.metrics=[exact_match],[qa_f1]"], "dataset.metrics tells no points apart"),
        (["press=snapkv", "budget=0.5", "controller=none,balanced", "guard.stream=hold,restart"],
         "guard.stream=hold,restart: several values"),
        (["dataset.until=[a],[b]", "decoding.until=[c]"], "dataset.until tells no points apart"),
        (["press=snapkv", "budget=0.5", "controller=none,gate", "guard.model=a,b"],
         "guard.model=a,b: several values"),
        (["press=snapkv", "budget=0.5", "controller=always_safe", "guard.let_go=true,false"],
         "guard.let_go=true,false: several values"),
        (["press=snapkv", "budget=0.5", "guard.ladder=[0.25],[0.5]"], "guard.ladder tells no"),
        (["press=none", "budget=1.0,0.5"], "press=none: keeps the full cache"),
        (["budget.tokens=256,512"], "budget.tokens=256: is read with budget=tokens only"),
        (["press=snapkv,knorm", "--cfg", "job"], "leave out -m"),
        (["hydra/launcher=kvx_local", "+hydra.launcher.workrs=2", "seed=0,1"],
         "hydra.launcher.workrs: no such field; did you mean hydra.launcher.workers?"),
        (["dataset.until.x=a", "seed=0,1"], "'x': is inside a list; give the whole list"),
        (["score.metrics=[nope]", "seed=0,1"], "score.metrics: unknown metric 'nope'"),
        (["++hydra.joob.name=x", "seed=0,1"], "hydra.joob: no such field; did you mean hydra.job?"),
        (["++hydra.sweeper.parms.press=knorm", "seed=0,1"], "hydra.sweeper.parms: no such field"),
    ],
)  # fmt: skip
def test_a_sweep_that_would_drop_values_is_refused(
    kvx: Kvx, arguments: list[str], says: str
) -> None:
    outcome = kvx("plan", "-m", *arguments)
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1), outcome.err
    assert says in outcome.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["measure=quality,latency"],
        ["press=none,snapkv", "budget=1.0,0.5", "controller=none,reactive"],
        ["press=snapkv", "budget=0.5", "controller=none,reactive", "guard.ladder=[0.25],[0.5]"],
        ["press=snapkv", "budget=256t,64t"],
    ],
)
def test_a_grid_may_name_a_point_twice(kvx: Kvx, arguments: list[str]) -> None:
    few = ("dataset.source.n_examples=20", "dataset.sampling.n_per_bin=1")
    assert kvx("prepare", "-m", *arguments, *few).code == 0


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("model.path=/x/epoch=3", "/x/epoch=3"),
        ("model.path=/x/été/模型", "/x/été/模型"),
        ("model.path=/x/run(1)#2&3", "/x/run(1)#2&3"),
        ("paths.output=/x/it's=here", "/x/it's=here"),
        ("paths.output=C:\\x=1\\", "C:\\x=1\\"),
        ("dataset.source.path=/x/ü,b=1", ["/x/ü", "b=1"]),
        ("model.revision=12345e6", "12345e6"),
        ("experiment_name=2024_01", "2024_01"),
        ("guard.model=~/models/a", os.path.expanduser("~/models/a")),
        ("model.path='/x/a=b'", "/x/a=b"),
        ("seed=3", 3),
        ("dataset.metrics=[exact_match]", ["exact_match"]),
    ],
)
def test_paths_mean_what_was_typed(typed: str, meant: object) -> None:
    override = parse(readable(typed))
    assert override is not None
    value = override.value()
    if override.is_sweep_override():
        value = list(override.sweep_iterator(transformer=lambda v: v))
    assert (
        [getattr(v, "text", v) for v in value] == meant
        if isinstance(meant, list)
        else value == meant
    )


def test_a_sweep_over_such_paths_is_a_sweep() -> None:
    with pytest.raises(UserError, match="several values; a server takes one"):
        refuse_sweeps("serve", ["model.path=/x/epoch=3,/x/epoch=4"])
    with pytest.raises(UserError, match=r"paths\.cache tells no points apart"):
        refuse_sweeps("run", ["paths.cache=/x/a=1,/x/a=2"])


def test_a_path_with_an_equals_sign_reaches_the_configuration(tmp_path: Path) -> None:
    assert compose(f"paths.output={tmp_path}/été/epoch=3").paths.output.endswith("été/epoch=3")


@pytest.mark.parametrize(
    ("typed", "labels"),
    [
        ("0.5", ["0.5"]),
        ("1.0,0.9999999,0.12345678", ["1", "0.9999999", "0.12345678"]),
        ("0.123456,0.1234561", ["0.123456", "0.1234561"]),
        ("range(0.2,1.0,0.4)", ["0.2", "0.6"]),
        ("range(0.1,1.05,0.1)", [*(f"0.{k}" for k in range(1, 10)), "1"]),
        ("range(1.0,0.3,-0.2)", ["1", "0.8", "0.6", "0.4"]),
    ],
)
def test_a_budget_is_kept_as_typed(typed: str, labels: list[str]) -> None:
    (rewritten,) = understood([f"budget={typed}"])
    ratios = [float(v) for v in rewritten.removeprefix("budget.ratio=").split(",")]
    assert [budget_label(BudgetConfig(ratio=r)) for r in ratios] == labels
    assert [float(label) for label in labels] == ratios  # nothing is lost in a label


def test_a_token_budget_is_typed_as_it_is_told() -> None:
    assert understood(["budget=256t"]) == ["budget=tokens", "budget.tokens=256"]
    assert understood(["budget=256t,512t"]) == ["budget=tokens", "budget.tokens=256,512"]
    budget = compose("press=snapkv", "budget=256t").budget
    assert (budget.kind, budget.tokens, budget_label(budget)) == (BudgetKind.tokens, 256, "256t")


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("1.0,true", "'true' is not a budget"),
        ("true", "'true' is not a budget"),
        ("256t,0.5", "mixes numbers and token counts"),
        ("256t,tokens", "mixes token counts and option names"),
        ("range(0.1,1.1,0.1)", "has 11 values in Hydra, the last is 1.1, more than the full cache; "
                               "type budget=range(0.1,1.05,0.1)"),
        ("interval(0.1,1)", "cannot be swept; list the budgets"),
        ("range(0.1,1,0)", "cannot be swept; list the budgets"),
        ("256T", "'256T' is not a budget"),
        ("0.5t", "'0.5t' is not a budget"),
    ],
)  # fmt: skip
def test_what_is_no_budget_is_one_line(typed: str, says: str) -> None:
    with pytest.raises(UserError) as refused:
        understood([f"budget={typed}"])
    assert says in str(refused.value)


def test_servers_are_found_by_the_whole_budget() -> None:
    urls = endpoints({0.12345678: "http://a/v1", "0.123457": "http://b/v1", "64t": "http://c/v1"})
    ratio = BudgetKind.ratio
    assert list(urls) == [(ratio, 0.12345678), (ratio, 0.123457), (BudgetKind.tokens, 64)]
    with pytest.raises(UserError, match="True is not a budget"):
        endpoints({True: "http://a/v1"})


def test_a_refusal_while_reading_says_read(tmp_path: Path) -> None:
    path = str(tmp_path / "there" / "data.jsonl")

    def read_rows() -> None:
        raise PermissionError(EACCES, "Permission denied", path)

    def write_text() -> None:
        raise PermissionError(EACCES, "Permission denied", path)

    for raises, says in ((read_rows, "cannot read "), (write_text, "cannot write ")):
        with pytest.raises(PermissionError) as denied:
            raises()
        code, line = describe(denied.value)
        assert code == 2
        assert line.startswith(f"{says}{path}: Permission denied; ")


@pytest.mark.skipif(not hasattr(os, "setuid") or os.getuid() != 0, reason="needs another user")
def test_a_file_that_cannot_be_read_is_told_so(tmp_path: Path) -> None:
    """As somebody who is not root, whom nothing is refused."""
    import subprocess

    for folder in (tmp_path, *tmp_path.parents[:-1]):
        folder.chmod(folder.stat().st_mode | 0o055)
    data = tmp_path / "data.jsonl"
    data.write_text("{}\n")
    data.chmod(0)
    code = (
        "import os; os.setuid(65534)\n"
        "from kvx.cli.command import describe\n"
        f"try: open({str(data)!r}).read()\n"
        "except OSError as error: print(describe(error)[1])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if "No module named" not in done.stderr:  # an interpreter in root's own home
        assert done.stdout.startswith(f"cannot read {data}: Permission denied; "), done.stderr


def test_serve_refuses_an_engine_that_it_would_ignore() -> None:
    with pytest.raises(UserError, match=r"engine=openai: kvx\.serve generates itself"):
        serve([compose("engine=openai")])
