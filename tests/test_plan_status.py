"""What a run would do, and how far one is: said without starting or disturbing anything."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kvx.config.folders import package_dir
from kvx.config.language_model import ModelConfig
from kvx.config.numbers import duration
from kvx.data.kv_layout import KVLayout, kv_layout
from kvx.store import locks
from tests.conftest import Kvx
from tests.forked import Forked
from tests.waiting import HANGS_S, Gate

RUN = Path("outputs/runs/default")
SMALL = ("dataset.source.n_examples=60", "dataset.sampling.n_per_bin=4")
SWEEP = ("-m", "press=snapkv,streaming", "budget=1.0,0.5", *SMALL)


def said(kvx: Kvx, capfd: pytest.CaptureFixture[str], stage: str, *arguments: str) -> str:
    """What a stage prints on standard output."""
    from kvx.cli.command import run_stage

    capfd.readouterr()
    run_stage(stage, list(arguments))
    return capfd.readouterr().out


def test_a_plan_counts_what_is_there_and_starts_nothing(
    kvx: Kvx, capfd: pytest.CaptureFixture[str]
) -> None:
    fresh = json.loads(said(kvx, capfd, "plan", *SWEEP, "measure=both", "plan.format=json"))
    assert not RUN.exists()
    assert [(g["press"], g["points"], g["requests_left"]) for g in fresh["groups"]] == [
        ("snapkv", 2, 40),
        ("streaming", 2, 40),
    ]
    assert fresh["groups"][0]["latencies_left"] == 2 * 5 * 2 * 3
    assert fresh["estimates"][0]["seconds"] is None
    assert "plan.calibrate=true measures one prompt" in fresh["estimates"][0]["how"]
    full, half = (next(m for m in fresh["memory"] if m["budget"] == b) for b in ("1", "0.5"))
    per_token = 2 * 2 * 2 * 64 * 4  # keys and values, 2 layers, 2 heads of 64, float32
    assert full["bin_bytes"] == [n * per_token for n in full["bin_tokens"]]
    assert half["bin_bytes"] == [n // 2 * per_token for n in full["bin_tokens"]]

    assert kvx("run", "press=snapkv", "budget=0.5", *SMALL).code == 0
    (folder,) = RUN.glob("points/*")
    before = {p: p.stat().st_mtime_ns for p in RUN.rglob("*")}
    later = json.loads(said(kvx, capfd, "plan", *SWEEP, "plan.format=json"))
    assert [(g["points_done"], g["requests_left"]) for g in later["groups"]] == [(1, 20), (0, 40)]
    assert later["estimates"][0]["seconds"] > 0
    assert "as in 20 requests of 1 points" in later["estimates"][0]["how"]
    text = said(kvx, capfd, "plan", *SWEEP)
    assert "time: about" in text
    assert "KV cache of tiny_recall on recall__kv" in text
    assert max(map(len, text.splitlines()[1:9])) <= 100
    assert {p: p.stat().st_mtime_ns for p in RUN.rglob("*")} == before
    assert folder.is_dir()


def test_a_plan_says_what_a_certificate_takes(kvx: Kvx, capfd: pytest.CaptureFixture[str]) -> None:
    asked = ("press=snapkv", "budget=0.5", *SMALL)
    text = said(kvx, capfd, "plan", *asked)
    assert "certify.delta=0.05) on recall__kv needs 59 texts where none loses anything" in text
    assert "in 80% of runs 124 at a true loss of 1%, 434 at 2.5%; it has 20 texts" in text
    text = said(kvx, capfd, "plan", *asked, "certify.per_bin=true", "certify.net=true")
    assert "texts in every bin where none loses anything; the smallest bin has 4 texts" in text


def test_a_plan_of_a_thousand_points_needs_no_torch(kvx: Kvx, tmp_path: Path) -> None:
    ask = ("press=knorm", "budget=0.5", *SMALL)
    assert kvx("plan", *ask).code == 0  # which finds out, once, what the model lacks
    code = (
        "import sys\n"
        "from dataclasses import replace\n"
        "from kvx.cli.command import compose\n"
        "from kvx.plan.build import print_plan\n"
        f"config = compose(*{ask!r})\n"
        "import time; start = time.process_time()\n"
        "print_plan([replace(config, seed=seed) for seed in range(1000)])\n"
        "print('seconds', time.process_time() - start)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, text=True, capture_output=True, timeout=HANGS_S
    )
    assert done.returncode == 0, done.stderr
    assert "20,000" in done.stdout
    assert float(done.stdout.split("seconds ")[1]) < 20


def test_calibration_measures_one_prompt(kvx: Kvx, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ("press=snapkv", "budget=0.5", *SMALL, "plan.format=json", "plan.calibrate=true")
    (estimate,) = json.loads(said(kvx, capfd, "plan", *arguments))["estimates"]
    assert estimate["seconds"] > 0
    assert "measured on one short prompt alone" in estimate["how"]
    assert not RUN.exists()


def test_kv_bytes_follow_the_models_own_configuration(tmp_path: Path) -> None:
    text = {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8}
    config = {"text_config": {**text, "hidden_size": 4096}, "torch_dtype": "bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = ModelConfig(name="m", path=str(tmp_path))
    assert kv_layout(model) == KVLayout(128 * 1024)  # Llama-3-8B: 128 KiB per token
    model.dtype = "float32"
    assert kv_layout(model) == KVLayout(256 * 1024)
    (tmp_path / "config.json").write_text('{"state_size": 16}')
    assert kv_layout(model) is None


def test_status_tells_done_from_failed_and_missing(
    kvx: Kvx, capfd: pytest.CaptureFixture[str]
) -> None:
    assert kvx("status").code == 2
    target = "press.method._target_=tests.test_engine.HalfHeartedPress,kvpress.KnormPress"
    assert kvx("run", "-m", "press=knorm", "budget=0.5", target, *SMALL).code == 1
    outcome = kvx("status")
    assert outcome.code == 1
    assert "1 of 2 points failed" in outcome.err
    text = said(kvx, capfd, "status")
    assert "2 points: 1 done, 1 failed" in text
    assert "first error: knorm-0.5-" in text
    assert "press=knorm was asked to keep" in text

    (finished,) = (p for p in RUN.glob("points/*") if (p / "DONE").exists())
    (finished / "DONE").unlink()
    outcome = kvx("status")
    assert outcome.code == 3
    assert "1 of 2 points are not finished" in outcome.err
    assert "1 unfinished, 1 failed" in said(kvx, capfd, "status")
    with locks.claim([finished]):
        listed = said(kvx, capfd, "status", "status.points=true")
    assert [line for line in listed.splitlines() if "running" in line and "20/20" in line]
    for file in finished.iterdir():
        file.unlink()
    finished.rmdir()
    assert "1 missing, 1 failed" in said(kvx, capfd, "status")


def test_status_of_a_finished_experiment_is_0(kvx: Kvx, capfd: pytest.CaptureFixture[str]) -> None:
    target = "press.method._target_=tests.test_engine.MoodyPress"
    arguments = ("press=knorm", target, "budget=0.5", *SMALL)
    assert kvx("run", *arguments).code == 0
    assert kvx("status").code == 0
    text = said(kvx, capfd, "status")
    assert "1 points: 1 done" in text
    assert "20 of 20 (100%)" in text
    assert "without a response" in text
    assert "CUDA out of memory (pretended)" in text
    assert kvx("run", "press=knorm", "budget=0.2", *SMALL).code == 0
    assert "2 points: 2 done" in said(kvx, capfd, "status")


def test_status_leaves_nothing_behind(kvx: Kvx, tmp_path: Path) -> None:
    """It is watched: `watch -n 2 python -m kvx.status`."""
    assert kvx("run", "press=knorm", "budget=0.5", *SMALL).code == 0
    before = sorted(tmp_path.rglob("*"))
    assert kvx("status").code == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_status_looks_on_while_a_run_writes(
    kvx: Kvx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(package_dir().parent))
    gate = Gate(tmp_path)
    for name, value in gate.environment.items():
        monkeypatch.setenv(name, value)
    many = ("-m", "press=knorm", "press.method._target_=tests.presses.SlowPress",
            "budget=0.8,0.5", "run.shard_requests=5", *SMALL)  # fmt: skip
    process = Forked(tmp_path / "log", "run", *many)
    written = lambda: list(RUN.glob("points/*/requests-*-00001*"))  # noqa: E731
    gate.until(written, "a second shard is there", process)
    seen = said(kvx, capfd, "status")
    assert process.poll() is None  # the gate holds it
    gate.open()
    while process.poll() is None:  # reads race with writes
        said(kvx, capfd, "status")
    process.communicate()
    assert process.poll() == 0
    assert "/s in the last minutes" in seen
    assert "running" in seen
    assert "left" in seen
    assert max(map(len, seen.splitlines())) <= 100
    assert "2 points: 2 done" in said(kvx, capfd, "status")


def test_times_are_written_for_people() -> None:
    assert [duration(s) for s in (12, 600, 11_100, 187_200)] == [
        "12 s", "10 min", "3 h 05 min", "2 d 04 h",
    ]  # fmt: skip
