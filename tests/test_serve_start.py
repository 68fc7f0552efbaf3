"""kvx.serve: keys, ports and signals."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import openai
import pytest

from kvx.cli.command import compose
from kvx.serve.server import point_of
from tests.conftest import Kvx
from tests.serving import error_of, serving
from tests.test_serve import GREEDY, WORDS
from tests.waiting import HANGS_S

LONG = {**GREEDY, "prompt": WORDS, "max_tokens": 4000, "ignore_eos": True}


def test_a_key_is_asked_for_everything_but_health() -> None:
    with serving("model=tiny_recall", api_key="sésame") as server:
        bearer = {"authorization": "Bearer sésame".encode()}
        assert server.get("/v1/models", headers=bearer).status_code == 200  # type: ignore[arg-type]
        for headers in ({}, {"authorization": "Bearer other"}, {"authorization": ""}):
            for path in ("/v1/models", "/metrics", "/openapi.json", "/v1/nowhere"):
                answer = server.get(path, headers=headers)
                assert answer.status_code == 401
                assert error_of(answer)["code"] == "invalid_api_key"
                assert "sésame" not in answer.text
        assert server.get("/health").status_code == 200
        with pytest.raises(openai.AuthenticationError):
            server.client("wrong").models.list()


def kvx_serve(*arguments: str, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "kvx.serve", *arguments], cwd=cwd, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | environment,
    )  # fmt: skip


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        process = kvx_serve("model=tiny_recall", f"serve.port={port}", cwd=tmp_path)
        _, err = process.communicate(timeout=HANGS_S)
    assert process.returncode == 2
    (line,) = err.splitlines()
    assert line.startswith(f"kvx serve: serve.host=127.0.0.1 serve.port={port}: the port is in use")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serve.host=0.0.0.0"], "it needs an API key"),
        (["press=adakv", "budget=0.5"], "hides entries"),
        (["budget=0.5"], "press=none: keeps the full cache"),
        (["serve.queue=0"], "serve.queue=0: must be at least 1"),
        (
            ["-m", "press=snapkv,streaming", "budget=0.5"],
            "press=snapkv,streaming: a server has one press of its own; give one value",
        ),
        (["press=snapkv", "budget=0.3,0.5"], "budget=0.3,0.5: a server has one budget of its own"),
        (["serve.max_rows=1,2"], "serve.max_rows=1,2: several values; a server takes one"),
    ],
)
def test_a_server_that_cannot_be_is_one_line(
    kvx: Kvx, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.setenv("KVX_API_KEY", "")
    outcome = kvx("serve", "model=tiny_recall", "serve.port=0", *arguments)
    assert outcome.code == 2
    assert said in outcome.err.splitlines()[-1]
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "press=none budget=1 controller=none"),
        (["press=knorm", "budget=0.5"], "press=knorm budget=0.5 controller=none"),
        (
            ["press=knorm", "budget=0.5", "controller=balanced"],
            "press=knorm budget=0.5 controller=balanced",
        ),
        (
            ["press=knorm", "controller=balanced"],
            "press=knorm budget=1 controller=balanced (which follows only requests that name a "
            "budget below 1.0)",
        ),
        (
            ["controller=reactive"],
            "press=none budget=1 controller=reactive (which follows only requests that name a "
            "press and a budget below 1.0)",
        ),
    ],
)
def test_the_first_line_says_what_is_served(arguments: list[str], said: str) -> None:
    assert point_of(compose("model=tiny_recall", *arguments, stage="serve")) == said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_short_answers_end_and_tells_long_ones(
    tmp_path: Path, number: signal.Signals
) -> None:
    process = kvx_serve(
        "model=tiny_recall", "serve.port=0", "serve.drain_s=3", "serve.max_rows=2", cwd=tmp_path,
        KVX_API_KEY="k",
    )  # fmt: skip
    assert process.stderr is not None
    try:
        while "http://" not in (line := process.stderr.readline()):
            assert line, "ended early"
        assert line.startswith(
            "serve: tiny_recall, press=none budget=1 controller=none, at http://"
        )
        url = line[line.index("http://") :].strip()
        client = openai.OpenAI(base_url=url, api_key="k", max_retries=0)
        more = {"extra_body": {"ignore_eos": True}, "stream": True}
        short = client.completions.create(**GREEDY, prompt=WORDS, max_tokens=150, **more)
        long = client.completions.create(**GREEDY, prompt=WORDS, max_tokens=7000, **more)
        next(iter(long))
        # so little of the short one is left that it ends while the server drains, however slowly
        text = [next(iter(short)).choices[0] for _ in range(120)]
        process.send_signal(number)
        text += [c.choices[0] for c in short]
        assert text[-1].finish_reason == "length"
        with pytest.raises(openai.APIError, match="shutting down"):
            list(long)
        _, err = process.communicate(timeout=HANGS_S)
    finally:
        process.kill()
    assert process.returncode == 0
    assert err.splitlines()[-1] == "serve: stopped"
    assert "Traceback" not in err
