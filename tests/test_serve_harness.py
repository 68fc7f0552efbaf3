"""engine=openai against kvx.serve gives what engine=kvpress gives in process, through the store."""

from pathlib import Path

import pandas as pd
import pytest
from conftest import Kvx, request_rows
from serving import serving

SWEEP = (
    "-m", "press=snapkv,streaming", "budget=1.0,0.5,0.2", "dataset.sampling.n_per_bin=4",
    "decoding.max_new_tokens=12",
)  # fmt: skip
KEYS = ["point", "example_id"]
SAME = [
    "text", "output_tokens", "finish_reason", "error_type", "prompt_tokens", "budget_verified",
    "degenerate", "kv_entries_nominal", "kv_entries_effective", "kv_entries_physical",
    "kv_bytes_nominal", "kv_bytes_effective", "kv_bytes_physical", "kv_bytes_full",
    "kv_bytes_peak",
]  # fmt: skip


def rows(name: str) -> pd.DataFrame:
    found = request_rows(Path("outputs/runs") / name)
    # an id is press-budget-hash, and the hash holds the engine
    point = found["point_id"].str.rpartition("-")[0]
    return found.assign(point=point).set_index(KEYS).sort_index()


@pytest.mark.parametrize("stream", ["true", "false"])
def test_the_harness_gets_from_the_server_what_the_engine_gives_in_process(
    kvx: Kvx, monkeypatch: pytest.MonkeyPatch, stream: str
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    outcome = kvx("run", *SWEEP, "experiment_name=here")
    assert outcome.code == 0, outcome.err
    # the server's own press and budget are others: what a request says counts
    with serving("model=tiny_recall", "press=knorm", "budget=0.9") as server:
        outcome = kvx(
            "run", *SWEEP, "experiment_name=there", "engine=openai",
            f"engine.base_url={server.url}", f"engine.stream={stream}",
        )  # fmt: skip
        assert outcome.code == 0, outcome.err
        # what the server does not serve is left out of a sweep
        outcome = kvx(
            "run", "-m", "press=snapkv,adakv", "budget=0.5", *SWEEP[3:], "experiment_name=there",
            "engine=openai", f"engine.base_url={server.url}", f"engine.stream={stream}",
        )  # fmt: skip
        assert outcome.code == 0, outcome.err
        (apart,) = Path("outputs/runs/there/points").glob("*/NOT_APPLICABLE")
        assert apart.parent.name.startswith("adakv-0.5-")
        assert f"{server.url} does not serve it; it serves block, cap" in apart.read_text()
    here, there = rows("here"), rows("there")
    assert len(here) == 2 * 3 * 5 * 4
    assert here["budget_verified"].all()
    pd.testing.assert_frame_equal(here[SAME], there[SAME])
