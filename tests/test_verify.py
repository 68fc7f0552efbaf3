"""kvx.verify: what makes an experiment unfit to learn from is said, check by check."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic import drifting_data

from kvx.cli.command import compose
from kvx.verify import checks
from kvx.verify.checks import Verdict

RUN = (
    "model=tiny_recall", "signals=full", "press=knorm", "budget=1.0,0.5,0.2",
    "decoding.max_new_tokens=64", "run.progress=false", "dataset.sampling.n_per_bin=4",
)  # fmt: skip

FEW = ("train.folds=2", "verify.min_prompts=10")


@pytest.fixture
def point(kvx, tmp_path):
    """A run of three points, scored; the folder of a compressed one."""
    assert kvx("run", "-m", *RUN).code == 0
    assert kvx("score").code == 0
    return next((tmp_path / "outputs/runs/default/points").glob("knorm-0.5-*"))


def verdicts(kvx, capfd, *arguments):
    """Exit code, and the verdict of every check."""
    from kvx.cli.command import run_stage

    capfd.readouterr()
    code = run_stage("verify", list(arguments))
    lines = capfd.readouterr().out.splitlines()
    return code, {line.split()[1]: line.split()[0] for line in lines}


def change(path, **columns):
    """Replace columns of a Parquet file, each by a function of its list of values."""
    table = pq.read_table(path)
    for name, function in columns.items():
        values = [function(i, v) for i, v in enumerate(table[name].to_pylist())]
        at = table.column_names.index(name)
        table = table.set_column(
            at, table.schema.field(name), pa.array(values, table.schema.field(name).type)
        )
    pq.write_table(table, path)


def test_each_thing_that_is_wrong_is_found(kvx, point, capfd):
    code, before = verdicts(kvx, capfd, *FEW)
    good = ("points", "responses", "budgets", "baseline", "traces", "lengths", "numbers", "probe",
            "degenerate", "caps", "prompts")  # fmt: skip
    assert {name: before[name] for name in good} == dict.fromkeys(good, "ok")
    assert before["balance"] in ("ok", "warn")

    requests, traces = point / "requests.parquet", point / "traces.parquet"
    sound = {path: path.read_bytes() for path in (requests, traces)}

    def after(path, check, **columns):
        change(path, **columns)
        code, found = verdicts(kvx, capfd, *FEW)
        path.write_bytes(sound[path])
        assert code == 1
        return found[check]

    def unproved(i, proved):
        return proved and i > 0

    def hole(i, values):
        return [float("nan"), *values[1:]] if i == 3 else values

    assert after(requests, "budgets", budget_verified=unproved) == "fail"
    assert after(traces, "numbers", entropy_nats=hole) == "fail"
    lists = ("entropy_nats", "logprob", "top1_prob", "top_logprobs")
    longest = pq.read_table(requests)["output_tokens"].to_pylist()
    first = longest.index(max(longest))
    assert after(
        traces, "lengths", **dict.fromkeys(lists, lambda i, v: v[:-1] if i == first else v)
    ) == "fail"  # fmt: skip
    assert verdicts(kvx, capfd, *FEW)[1] == before
    assert code in (0, 1)


def test_without_a_baseline_or_enough_prompts_it_fails(kvx, point, capfd, tmp_path):
    code, found = verdicts(kvx, capfd, "train.folds=30")
    assert (code, found["prompts"], found["splits"]) == (1, "fail", "fail")
    full = next((tmp_path / "outputs/runs/default/points").glob("knorm-1-*"))
    (full / "DONE").unlink()
    code, found = verdicts(kvx, capfd)
    assert (code, found["points"], found["baseline"], found["labels"]) == (
        1,
        "warn",
        "fail",
        "fail",
    )


def test_a_wrong_request_is_none_of_a_verdict(kvx, tmp_path):
    assert kvx("verify").code == 2  # no experiment
    assert kvx("verify", "train.features=all").code == 2


def test_prompts_on_two_sides_would_be_found(monkeypatch):
    data, config = drifting_data(40), compose()
    assert checks._splits(data, config).verdict is not Verdict.FAIL
    monkeypatch.setattr(
        checks.crossfit, "outer_folds", lambda data, train: (data.frame.index % 5).to_numpy()
    )
    found = checks._splits(data, config)
    assert found.verdict is Verdict.FAIL
    assert "two sides" in found.reason


def test_too_few_events_are_a_warning_and_none_a_failure():
    data, config = drifting_data(40), compose("verify.min_event_prompts=1000")
    assert checks._balance(data, config).verdict is Verdict.WARN
    sound = data.take(~data.about.events)
    assert checks._balance(sound, config).verdict is Verdict.FAIL
    assert checks._leads(sound, config).verdict is Verdict.FAIL
