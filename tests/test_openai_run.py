"""engine=openai through the real command line and store: counts, resuming, proof of budgets."""

import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from conftest import Kvx, kvx_process, request_rows
from fault_server import KEY, OK, FaultServer, answer_to, prompt_of, serving

from kvx.engines.openai import session
from tests.waiting import HANGS_S, wait_until

ENGINE_SIZE = 64  # bytes of one entry in the made-up accounting
BUDGETED = 'engine.extra_body={keep: ${budget}, method: "${press}"}'
FAULTS = (
    "429", "429_after", "500", "503", "reset", "cut", "malformed", "wrong_schema",
    "empty_choices", "error_in_stream", "context", "stall", "slow_first", "length", "empty",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name in ("OPENAI_BASE_URL", "KVX_BASE_URL", "KVX_MODEL_NAME"):
        monkeypatch.delenv(name, raising=False)


def small(server: FaultServer, *overrides: str, name: str = "e") -> list[str]:
    return [
        "engine=openai", f"engine.base_url={server.url}", f"experiment_name={name}",
        "dataset.binning.n_bins=1", "dataset.sampling.n_per_bin=4",
        "dataset.source.n_examples=20", "dataset.source.max_words=400", *overrides,
    ]  # fmt: skip


def kv_of(body: dict[str, Any], kept: float | None = None) -> dict[str, Any]:
    """What an honest kvx server says about a body with a `kvx` object."""
    asked = body["kvx"]
    full = len(body["prompt"][: asked["compress_chars"]].split())
    entries = max(1, int(full * (1 - (1 - (kept or asked["budget"])))))
    return {
        "press": asked["press"], "budget": asked["budget"], "budget_kind": "ratio",
        "kv": {
            "entries_nominal": entries, "entries_effective": entries, "entries_physical": entries,
            "bytes_nominal": entries * ENGINE_SIZE, "bytes_effective": entries * ENGINE_SIZE,
            "bytes_physical": entries * ENGINE_SIZE, "bytes_full": full * ENGINE_SIZE,
            "bytes_peak": (full + 10) * ENGINE_SIZE,
        },
    }  # fmt: skip


def report_of(kvx: Kvx, *arguments: str) -> str:
    for stage in ("run", "score", "analyze", "report"):
        outcome = kvx(stage, *arguments)
        assert outcome.code == 0, outcome.err
    return Path("outputs/runs/e/details.md").read_text()


def rows() -> pd.DataFrame:
    return request_rows(Path("outputs/runs/e"))


def test_a_thousand_requests_with_faults_end_answered_or_typed(
    kvx: Kvx, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "FIRST_BACKOFF_S", 0.01)
    draw, lock = random.Random(0), threading.Lock()

    def plan(n: int, body: dict[str, Any]) -> str:
        with lock:
            return draw.choice(FAULTS) if draw.random() < 0.3 else OK

    with serving(FaultServer(plan)) as server:
        arguments = small(
            server, "dataset.sampling.n_per_bin=500", "dataset.source.n_examples=500",
            "dataset.source.min_words=200", "dataset.source.max_words=250", "press=snapkv",
            "engine.max_retries=2", "engine.timeouts.first_token_s=2", "engine.probe=false",
            "engine.timeouts.between_tokens_s=2",
            "engine.concurrency=8",  # auto waits out the slow faults one after the other
        )  # fmt: skip
        outcome = kvx("run", *arguments, "-m", "budget=1.0,0.5")
        assert outcome.code == 0, outcome.err
        found = rows()
        assert len(found) == 1000
        assert found["request_id"].is_unique
        failed = found[~found["has_response"]]
        assert found["has_response"].sum() + failed["error_type"].notna().sum() == 1000
        assert set(failed["error_type"]) <= {
            "RATE_LIMITED", "TIMEOUT", "ENGINE_ERROR", "CONTEXT_LENGTH_EXCEEDED",
        }  # fmt: skip
        assert failed["error_message"].str.len().gt(0).all()
        # 2 % of the attempts are refused for good, the others are tried three times
        assert 5 <= len(failed) < 100
        texts = {answer_to(prompt_of(body)) + " " for body in server.bodies}
        answered = found[found["has_response"] & (found["finish_reason"] == "stop")]
        assert set(answered["text"]) - {""} <= texts
        # an answer that arrived whole was not asked for again; on a busy machine the last bytes
        # of a few may reach their client after it has stopped waiting
        assert 0 <= sum(server.answered.values()) - found["has_response"].sum() <= 5


def shards(folder: Path) -> int:
    return len(list(folder.glob("outputs/runs/e/points/*/requests-*.parquet")))


class Stops:
    """A server's plan: so many answers, and no more until it goes on."""

    def __init__(self, answers: int) -> None:
        self.answers, self.goes_on = answers, False

    def __call__(self, n: int, body: dict[str, Any]) -> str:
        return OK if self.goes_on or n < self.answers else "slow_first"


def test_a_killed_run_asks_only_for_what_is_missing(kvx: Kvx, tmp_path: Path) -> None:
    stops = Stops(60)
    with serving(FaultServer(stops)) as server:
        arguments = small(
            server, "dataset.sampling.n_per_bin=150", "dataset.source.n_examples=150",
            "engine.concurrency=2", "run.progress=false", "run.shard_requests=5",
            "engine.timeouts.first_token_s=600",
        )  # fmt: skip
        process = kvx_process(tmp_path, "run", *arguments)
        wait_until(lambda: len(server.bodies) == 62, "two wait for the 61st answer", process)
        wait_until(lambda: shards(tmp_path) >= 10, "50 answers are written", process)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=HANGS_S)
        before = len(request_rows(tmp_path / "outputs/runs/e"))
        assert 50 <= before <= 60
        asked, stops.goes_on = len(server.bodies), True
        outcome = kvx("run", *arguments)
        assert outcome.code == 0, outcome.err
        found = request_rows(tmp_path / "outputs/runs/e")
        assert len(found) == 150
        assert found["request_id"].is_unique
        assert len(server.bodies) - asked == 150 - before


def test_ctrl_c_keeps_what_has_arrived(tmp_path: Path) -> None:
    with serving(FaultServer(Stops(30))) as server:
        arguments = small(
            server, "dataset.sampling.n_per_bin=150", "dataset.source.n_examples=150",
            "engine.concurrency=1", "run.progress=false", "engine.timeouts.first_token_s=600",
            "run.shard_requests=8",
        )  # fmt: skip
        process = kvx_process(tmp_path, "run", *arguments)
        wait_until(lambda: len(server.bodies) == 31, "one waits for the 31st answer", process)
        wait_until(lambda: shards(tmp_path) >= 3, "24 answers are written", process)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=HANGS_S)
        assert process.returncode == 130, err
        # one may be in hand between the engine and the file
        assert 29 <= len(request_rows(tmp_path / "outputs/runs/e")) <= 30


def test_accounting_proves_a_budget(kvx: Kvx) -> None:
    with serving(FaultServer(accounting=kv_of, owned_by="kvx")) as server:
        text = report_of(kvx, *small(server, "press=snapkv", "-m", "budget=1.0,0.5"))
        assert "told by the server in every response, and none contradicts" in text
        found = rows()
        assert found["budget_verified"].all()
        assert set(found["budget_proof"]) == {"server"}
        half = found[found["point_id"].str.startswith("snapkv-0.5")]
        assert (half["kv_entries_effective"] / half["compressed_tokens"]).between(0.49, 0.51).all()
        assert {body["kvx"]["budget"] for body in server.bodies} == {1.0, 0.5}
        assert {body["kvx"]["press"] for body in server.bodies} == {"snapkv"}


def test_accounting_that_contradicts_fails_the_point(kvx: Kvx) -> None:
    def always_half(body: dict[str, Any]) -> dict[str, Any]:
        return kv_of(body, kept=0.5)

    with serving(FaultServer(accounting=always_half, owned_by="kvx")) as server:
        outcome = kvx("run", *small(server, "press=snapkv", "-m", "budget=0.5,0.2"))
        assert outcome.code == 1
        assert "was asked to keep" in outcome.err
        assert "1 of 2 points failed, the others are complete" in outcome.err


def test_a_server_that_ignores_the_budget_is_named(kvx: Kvx) -> None:
    with serving(FaultServer()) as server:
        text = report_of(kvx, *small(server, "press=snapkv", BUDGETED, "-m", "budget=1.0,0.2"))
        found = rows()
        assert {body["keep"] for body in server.bodies} == {1.0, 0.2}
        assert {body["method"] for body in server.bodies} == {"snapkv"}
        assert len(server.bodies) == len(found) + 3
    assert not found["budget_verified"].any()
    assert set(found["budget_proof"]) == {"probe_same"}
    assert "**Not every budget is proved.**" in text
    assert "**The server ignores the budget** of snapkv-0.2" in text
    twins = pq.read_table("outputs/runs/e/comparisons.parquet").to_pandas()
    assert len(twins)  # the template did not make the points incomparable


def test_a_budget_with_an_effect_is_still_not_proved(kvx: Kvx) -> None:
    with serving(FaultServer(shift=lambda body: 0.1 * (1 - body["keep"]))) as server:
        text = report_of(kvx, *small(server, "press=snapkv", BUDGETED, "-m", "budget=1.0,0.2"))
    assert set(rows()["budget_proof"]) == {"probe_differs"}
    assert not rows()["budget_verified"].any()
    assert "**Some effect, not known how much**" in text


def test_without_logprobs_a_probe_settles_nothing(kvx: Kvx) -> None:
    with serving(FaultServer(gives_logprobs=False)) as server:
        report_of(kvx, *small(server, "press=snapkv", BUDGETED, "-m", "budget=1.0,0.2"))
    assert set(rows()["budget_proof"]) == {"probe_unclear"}


def test_a_budget_that_is_never_sent_is_said_so(kvx: Kvx) -> None:
    with serving(FaultServer()) as server:
        arguments = small(server, "press=snapkv", "-m", "budget=1.0,0.2")
        outcome = kvx("run", *arguments)
        assert "THE BUDGET IS NOT SENT" in outcome.err
        assert "**The budget was never sent**" in report_of(kvx, *arguments)


def test_endpoints_are_chosen_by_budget(kvx: Kvx) -> None:
    with (
        serving(FaultServer()) as full,
        serving(FaultServer(shift=lambda body: 0.2)) as fifth,
    ):
        where = f"engine.endpoints={{1.0: {full.url}, 0.2: {fifth.url}}}"
        outcome = kvx("run", *small(full, "press=snapkv", where, "-m", "budget=1,0.2"))
        assert outcome.code == 0, outcome.err
        assert len(full.bodies) == 4 + 2  # the probe asks twice at the highest budget
        assert len(fifth.bodies) == 4 + 1
        assert set(rows()["budget_proof"]) == {"probe_differs"}
        refused = kvx("run", *small(full, "press=snapkv", where, "budget=0.5"))
        assert refused.code == 2
        assert "engine.endpoints: none for budget 0.5; there are 1, 0.2" in refused.err
        two = small(full, where, "-m", "press=snapkv,knorm", "budget=0.2", name="two")
        assert "told apart by budget, not by press (knorm, snapkv)" in kvx("run", *two).err


def test_parameters_of_a_press_are_not_sent_so_two_of_them_are_refused(kvx: Kvx) -> None:
    with serving(FaultServer()) as server:
        two = small(server, BUDGETED, "-m", "press=snapkv", "press.method.window_size=16,32")
        outcome = kvx("run", *two, "budget=0.2")
        assert outcome.code == 2
        assert "press=snapkv: its parameters are not sent" in outcome.err
        assert not server.bodies


def test_a_server_whose_press_has_other_parameters_is_contradicted(kvx: Kvx) -> None:
    def other_window(body: dict[str, Any]) -> dict[str, Any]:
        method = {"_target_": "kvpress.SnapKVPress", "window_size": 5, "kernel_size": 5}
        return {**kv_of(body), "method": method}

    with serving(FaultServer(accounting=other_window, owned_by="kvx")) as server:
        outcome = kvx("run", *small(server, "press=snapkv", "-m", "budget=1.0,0.5"))
    assert outcome.code == 1
    assert "1 of 2 points failed" in outcome.err  # at the full cache no press is at work
    assert "window_size is" in outcome.err
    assert "5 at the server" in outcome.err


def test_latencies_are_the_clients(kvx: Kvx) -> None:
    with serving(FaultServer(delay_s=0.02)) as server:
        arguments = small(server, "measure=latency", "latency.n_per_bin=2", "latency.repeats=2")
        outcome = kvx("run", *arguments)
        assert outcome.code == 0, outcome.err
        (path,) = Path("outputs/runs/e").glob("points/*/latency.parquet")
        found = pq.read_table(path).to_pandas()
        assert len(found) == 4
        assert len(server.bodies) == 4 + 1
        assert server.most_in_flight == 1
        assert found["ttft_s"].between(0.02, 2).all()
        assert (found["latency_s"] >= found["ttft_s"]).all()
        assert found["tpot_s"].notna().all()
        assert found["prefill_s"].isna().all()
        assert set(found["machine"]) == {f"{server.url}, timed by its client"}


def test_traces_say_where_their_signals_come_from(kvx: Kvx) -> None:
    with serving(FaultServer()) as server:
        assert kvx("run", *small(server)).code == 0
    (path,) = Path("outputs/runs/e").glob("points/*/traces.parquet")
    found = pq.read_table(path).to_pandas()
    assert set(found["signals_source"]) == {"top20"}
    assert {len(x) for x in found["logprob"]} == {2}
    assert {len(top) for x in found["top_logprobs"] for top in x} == {2}
    assert {len(x) for x in found["arrival_s"]} == {2}


def test_the_key_is_in_no_file_and_no_line(kvx: Kvx) -> None:
    Path(".env").write_text(f"OPENAI_API_KEY={KEY}\nKVX_MODEL_NAME=tiny_recall\n")
    os.environ.pop("OPENAI_API_KEY")
    plan = {0: "expired_key", 1: "500"}
    with serving(FaultServer(lambda n, body: plan.get(n, OK), key=KEY)) as server:
        with Path(".env").open("a") as file:
            file.write(f"OPENAI_BASE_URL={server.url}\n")
        arguments = [a for a in small(server) if not a.startswith("engine.base_url")]
        outcome = kvx("all", *arguments, "engine.probe=false")
        assert outcome.code == 0, outcome.err
        assert len(server.bodies) == 4 + 1
    assert KEY not in outcome.err
    Path(".env").unlink()
    files = [path for path in Path().rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    (failed,) = rows()["error_message"].dropna()
    assert "[OPENAI_API_KEY]" in failed


def test_what_identifies_a_point_is_not_where_its_server_is(kvx: Kvx) -> None:
    with serving(FaultServer()) as one, serving(FaultServer()) as other:
        assert kvx("run", *small(one)).code == 0
        again = kvx("run", *small(other, "engine.concurrency=7", "engine.max_retries=1"))
        assert "nothing to do" in again.err
        assert not other.bodies
        assert kvx("run", *small(other, "engine.model=another")).code == 0
        assert len(other.bodies) == 4


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("engine.base_url=http://127.0.0.1:9/v1", "no server answers there (connection lost"),
        ("engine.base_url=null", "which server? set engine.base_url, or OPENAI_BASE_URL"),
        ("engine.base_url=http://me:pw@127.0.0.1/v1", "would be saved with the results"),
        ("engine.base_url=127.0.0.1:8000", "not a server's address"),
        ("engine.base_url='http://127.0.0.1/v1?key=x'", "remove what follows the path"),
        (f"engine.extra_body={{k: {KEY}}}", "the key is in a field of engine"),
        ("engine.concurrency=0", "engine.concurrency=0: must be auto, or at least 1"),
        ("engine.concurrency=fast", "engine.concurrency=fast: must be auto"),
        ("engine.rate_limit.max_tpm=10", "one request needs up to"),
        ("engine.endpoints={a: http://x}", "'a' is not a budget"),
        ("engine.extra_body=5", "engine.extra_body=5: must be a mapping"),
        ("engine.top_logprobs=50", "must be between 0 and 20"),
    ],
)
def test_a_wrong_request_ends_in_one_line(kvx: Kvx, override: str, words: str) -> None:
    with serving(FaultServer()) as server:
        outcome = kvx("run", *small(server), override)
    assert outcome.code == 2
    assert words in outcome.err
    assert len(outcome.err.strip().splitlines()[-1]) < 300
    assert "Traceback" not in outcome.err


def test_a_refused_key_ends_in_one_line(kvx: Kvx, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-old-key-9876543210")
    with serving(FaultServer(key=KEY)) as server:
        outcome = kvx("run", *small(server))
    assert outcome.code == 2
    assert "refuses the key; set OPENAI_API_KEY" in outcome.err
    assert "sk-old-key-9876543210" not in outcome.err


def test_an_address_without_its_end_is_pointed_out(kvx: Kvx) -> None:
    with serving(FaultServer()) as server:
        where = f"engine.base_url={server.url.removesuffix('/v1')}"
        outcome = kvx("run", *small(server), where)
        whole = kvx("run", *small(server), f"engine.base_url={server.url}/completions")
    assert whole.err.rstrip().endswith(f"end in /v1: {server.url}"), whole.err
    assert outcome.code == 2
    assert "has neither /completions nor /chat/completions (HTTP 404)" in outcome.err
    assert f"most servers' addresses end in /v1: {server.url}" in outcome.err


def test_limits_are_not_multiplied_by_workers(kvx: Kvx) -> None:
    with serving(FaultServer()) as server:
        outcome = kvx(
            "run", *small(server, "engine.rate_limit.max_rpm=60"), "hydra/launcher=kvx_local"
        )
    assert outcome.code == 2
    assert "leave hydra/launcher out" in outcome.err


def test_no_torch_is_needed(tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from kvx.cli.entry import start; start('run')"
    with serving(FaultServer()) as server:
        command = [sys.executable, "-c", code, *small(server)]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=HANGS_S
        )
    assert done.returncode == 0, done.stderr
    assert len(request_rows(tmp_path / "outputs/runs/e")) == 4
