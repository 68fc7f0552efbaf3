"""kvx.serve budget=certified: it is served where it was certified, and refused elsewhere."""

import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import openai
import pytest

from kvx.cli.command import compose, run_stage
from kvx.config.engine import Api
from kvx.config.folders import package_dir
from kvx.config.schema import BudgetConfig, BudgetKind
from kvx.engines.openai.reply import Parser
from kvx.identity.hashing import digest
from kvx.serve.certified import with_certified_budget
from tests.conftest import Kvx
from tests.serving import Running, post, serving
from tests.test_serve import GREEDY, WORDS
from tests.test_serve_start import kvx_serve
from tests.waiting import HANGS_S

EXPERIMENT = "experiment_name=small"
POINTS = (
    EXPERIMENT, "-m", "press=none,snapkv", "budget=0.9,0.5", "dataset.sampling.n_per_bin=6",
    "run.progress=false",
)  # fmt: skip
SERVED = ("model=tiny_recall", "press=snapkv", "budget=certified")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the embedded model under SnapKV: at a loss of 40% there is a budget, at 11% none."""
    folder = tmp_path_factory.mktemp("certified")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run_stage("run", list(POINTS)) == 0
        assert run_stage("score", [EXPERIMENT]) == 0
        settings = [EXPERIMENT, "certify.alpha=0.4"]
        assert run_stage("certify", settings) == 0
        found = folder / "outputs/runs/small/certificates"
        (found / "snapkv-score-alpha0.4.json").rename(found / "good.json")
        settings = [EXPERIMENT, "certify.alpha=0.1", "certify.press=snapkv"]
        assert run_stage("certify", settings) == 0
    logging.getLogger().handlers.clear()
    return found


def altered(path: Path, to: Path, sealed: bool, **changes: Any) -> Path:
    """A copy that says something else; `sealed`, as if kvx.certify had written that."""
    body = json.loads(path.read_text())
    del body["digest"]
    body |= changes
    to.write_text(json.dumps(body | {"digest": digest(body if sealed else {}, 16)}))
    return to


def test_the_certified_budget_is_served(certificates: Path, tmp_path: Path) -> None:
    process = kvx_serve(
        *SERVED, "serve.port=0", f"certificate={certificates / 'good.json'}", cwd=tmp_path,
        KVX_API_KEY="k",
    )  # fmt: skip
    assert process.stderr is not None
    lines: list[str] = []
    try:
        while "http://" not in (line := process.stderr.readline()):
            assert line, lines
            lines.append(line)
        client = openai.OpenAI(base_url=line[line.index("http://") :].strip(), api_key="k")
        answer = client.completions.create(model="tiny_recall", prompt=WORDS, max_tokens=4)
        proof: Any = answer.model_extra
        assert (proof["kvx"]["press"], proof["kvx"]["budget"]) == ("snapkv", 0.9)
        kept = proof["kvx"]["kv"]
        assert kept["bytes_physical"] < kept["bytes_full"]
        assert kept["entries_physical"] == kept["entries_nominal"]
    finally:
        process.terminate()
        process.communicate(timeout=HANGS_S)
    said = "".join(lines)
    assert "budget 0.9 certified (loss at most 40%, confidence 95%)" in said
    assert "the press sees the context only; at most 8 tokens, greedy" in said


def test_budgets_in_tokens_are_served_too(certificates: Path, tmp_path: Path) -> None:
    body = json.loads((certificates / "good.json").read_text())
    body["groups"][0]["tests"][0] |= {"budget": "256t", "ratio": None, "tokens": 256}
    file = altered(certificates / "good.json", tmp_path / "t.json", True, groups=body["groups"])
    config = with_certified_budget(compose(*SERVED, f"certificate={file}", stage="serve"))[0]
    assert config.budget == BudgetConfig(kind=BudgetKind.tokens, tokens=256)


def refused(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a server that was not started."""
    capfd.readouterr()
    assert run_stage("serve", ["serve.port=0", *arguments]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["press=streaming"], "is for press=snapkv, this is press=streaming; set press=snapkv"),
        (["press=none"], "is for press=snapkv, this is press=none; set press=snapkv"),
        (["press.method.window_size=32"], "press=snapkv with window_size=64, this has 32; set pre"),
        (["press=snapkv_w16"], "is for press=snapkv, this is press=snapkv_w16"),
        (["model.dtype=bfloat16"], "is for model.dtype=float32, this is bfloat16"),
        (
            ["budget=0.5"],
            "budget=certified: the certificate sets the budget; leave out budget.ratio=0.5",
        ),
    ],
)
def test_another_press_is_refused(
    certificates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str], arguments: list[str], says: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    given = f"certificate={certificates / 'good.json'}"
    assert says in refused(capfd, *SERVED, given, *arguments)


def test_another_model_is_refused(
    certificates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    other = shutil.copytree(package_dir() / "assets" / "tiny_recall", tmp_path / "other")
    settings = json.loads((other / "generation_config.json").read_text())
    (other / "generation_config.json").write_text(json.dumps(settings | {"top_k": 7}))
    given = f"certificate={certificates / 'good.json'}"
    line = refused(capfd, *SERVED, given, f"model.path={other}")
    assert "is for model=tiny_recall (hash" in line
    assert "serve that model or certify this one" in line
    same = shutil.copytree(package_dir() / "assets" / "tiny_recall", tmp_path / "same")
    config = compose(*SERVED, given, f"model.path={same}", stage="serve")
    assert with_certified_budget(config)[0].budget.ratio == 0.9


def test_another_controller_is_refused(
    certificates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    guard = {"name": "careful", "kind": "reactive", "label": "careful"}
    file = altered(certificates / "good.json", tmp_path / "c.json", True, controller=guard)
    line = refused(capfd, *SERVED, f"certificate={file}")
    assert "is for controller=careful, this is controller=none" in line


GUARD = {"let_go": True}  # what it is by default
SETTINGS = [
    ({"cooldown": 64}, {}, "with controller.cooldown=64, this has 32; set controller.cooldown=64"),
    ({}, {"max_interventions": 1}, "with guard.max_interventions=1, this has 4; set guard.max_int"),
    ({}, {"let_go": False}, "with guard.let_go=false, this has true; set guard.let_go=false"),
    ({}, {"ladder": [0.5]}, "with guard.ladder=[0.5], this has [0.25,0.5]; set guard.ladder=[0.5]"),
    ({"prefill_gate_nats": 2.0}, {"max_interventions": 1}, "prefill_gate_nats=2.0, this has null"),
]  # fmt: skip


@pytest.mark.parametrize(("controller", "guard", "says"), SETTINGS)
def test_the_first_setting_of_a_controller_that_differs_is_named(
    certificates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str], controller: dict[str, Any], guard: dict[str, Any], says: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    steering = {"name": "reactive", "kind": "reactive", "label": "reactive"} | controller
    steering["guard"] = GUARD | guard
    file = altered(certificates / "good.json", tmp_path / "c.json", True, controller=steering)
    given = ("controller=reactive", f"certificate={file}")
    line = refused(capfd, *SERVED, *given)
    assert "is for controller=reactive with " in line
    assert says in line
    asked = [f"controller.{k}={json.dumps(v)}" for k, v in controller.items()]
    asked += [f"guard.{k}={json.dumps(v)}" for k, v in guard.items()]
    _, promise = with_certified_budget(compose(*SERVED, *given, *asked, stage="serve"))
    assert promise is not None


def test_a_certificate_from_before_let_go_is_for_guards_that_do_not(
    certificates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    old = {"name": "reactive", "kind": "reactive", "label": "reactive"}
    file = altered(certificates / "good.json", tmp_path / "c.json", True, controller=old)
    given = ("controller=reactive", f"certificate={file}")
    assert "with guard.let_go=false, this has true" in refused(capfd, *SERVED, *given)
    asked = compose(*SERVED, *given, "guard.let_go=false", stage="serve")
    assert with_certified_budget(asked)[1] is not None


def test_every_answer_says_whether_it_was_made_under_the_promise(certificates: Path) -> None:
    file = certificates / "good.json"
    made = json.loads(file.read_text())
    low, high = made["setup"]["compressed_tokens"]
    context, question = WORDS * 4 + " ? ", "w3"
    asked = {"press": "snapkv", "budget": 0.9, "compress_chars": len(context)}
    body = {"model": "tiny_recall", "prompt": context + question, "max_tokens": 8, "temperature": 0}
    with serving(*SERVED, f"certificate={file}") as server:

        def certified(kvx: dict[str, Any], **changed: Any) -> bool:
            answer = post(server.url, {**body, **changed, "kvx": kvx})
            assert answer.status_code == 200, answer.text
            said: bool = answer.json()["kvx"]["certified"]
            return said

        split = {"compress_chars": len(context)}
        assert certified(split)
        assert certified(asked)
        assert certified(split, top_p=0.5, seed=4)  # greedy all the same
        assert certified({**split, "controller": "none"})  # as it was certified
        assert not certified({})  # the press sees the question
        assert not certified({"compress_chars": len(context + question)})
        assert not certified({**split, "budget": 0.8})
        assert not certified({**split, "budget": 1.0})
        assert not certified({**split, "budget_tokens": 100})
        assert not certified({**split, "press": "streaming"})
        assert not certified({**split, "press": "none"})
        for other in (4, 9):
            assert not certified(split, max_tokens=other)
        assert not certified(split, stop=["nothing says so"])
        assert not certified(split, max_tokens=None)  # the server's 256
        assert not certified(split, ignore_eos=True)
        assert not certified(split, temperature=0.7)
        first = len(server.service.splitter.completion(context, len(context)).compressed_ids)
        assert low <= first <= high
        for short_or_long in (context[: len(context) // 8], context * 8):
            n = len(short_or_long)
            ids = server.service.splitter.completion(short_or_long, n).compressed_ids
            assert not low <= len(ids) <= high
            assert not certified({"compress_chars": n}, prompt=short_or_long + question)
        chat = {k: v for k, v in body.items() if k != "prompt"}
        chat["messages"] = [{"role": "user", "content": context + question}]
        chat |= {"stream": True, "kvx": split}
        answer = post(server.url, chat, "/chat/completions")
        assert answer.text.count('"certified": true') == 1
        shown = server.get("/v1/models").json()["data"][0]["kvx"]["certificate"]
        assert shown == {
            "file": "good.json", "digest": made["digest"], "loss": "score",
            "metric": "exact_match", "alpha": 0.4, "delta": 0.05, "budget": "0.9",
            "controller": "none", "mean_budget": None, "max_tokens": 8,
            "compressed_tokens": [low, high],
        }  # fmt: skip
        parser = Parser(Api.completions)
        parser.feed(post(server.url, {**body, "kvx": asked}).json(), 0.0)
        told = parser.finish(0.0, streamed=False).accounting
        assert told is not None
        assert (told.press, told.budget) == ("snapkv", 0.9)
    with serving("model=tiny_recall", "press=snapkv", "budget=0.9") as server:
        assert "certified" not in post(server.url, {**body, "kvx": asked}).json()["kvx"]
        shown = server.get("/v1/models").json()["data"][0]["kvx"]
        assert "certificate" not in shown


def test_where_the_press_saw_the_whole_prompt_a_context_of_its_own_is_not_certified(
    certificates: Path, tmp_path: Path
) -> None:
    made = json.loads((certificates / "good.json").read_text())
    setup = {**made["setup"], "query_aware": True}
    file = altered(certificates / "good.json", tmp_path / "q.json", True, setup=setup)
    context = WORDS * 4 + " ? "
    body = {"model": "tiny_recall", "prompt": context + "w3", "max_tokens": 8, "temperature": 0}
    given = (*SERVED, f"certificate={file}", "decoding.max_new_tokens=8")
    with serving(*given) as server:
        for kvx, expected in (({}, True), ({"compress_chars": len(context)}, False)):
            answer = post(server.url, {**body, "kvx": kvx}).json()
            assert answer["kvx"]["certified"] is expected
        del body["max_tokens"]  # the server's own
        assert post(server.url, body).json()["kvx"]["certified"]


def under_reactive(certificates: Path, folder: Path) -> tuple[str, ...]:
    """The arguments of a server whose certificate is of `controller=reactive`."""
    steering = {"name": "reactive", "kind": "reactive", "label": "reactive", "guard": GUARD}
    groups = json.loads((certificates / "good.json").read_text())["groups"]
    groups[0]["tests"][0] |= {"mean_budget": 0.975, "n_responses": 30}
    good, file = certificates / "good.json", folder / "c.json"
    altered(good, file, True, controller=steering, groups=groups)
    return (*SERVED, "controller=reactive", f"certificate={file}")


def test_without_its_controller_or_with_less_of_it_an_answer_is_not_certified(
    certificates: Path, tmp_path: Path
) -> None:
    given = under_reactive(certificates, tmp_path)
    context = WORDS * 4 + " ? "

    def certified(server: Running, stream: bool = False, **kvx: Any) -> bool:
        asked = {**GREEDY, "prompt": context + "w3", "max_tokens": 8, "stream": stream,
                 "kvx": {"compress_chars": len(context), **kvx}}  # fmt: skip
        answer = post(server.url, asked)
        assert answer.status_code == 200, answer.text
        (said,) = re.findall(r'"certified": ?(true|false)', answer.text)
        return bool(said == "true")

    with serving(*given) as server:
        assert certified(server)
        assert certified(server, controller="reactive")
        assert not certified(server, controller="none")
        assert not certified(server, stream=True)  # it holds: what was shown cannot come back
        shown = server.get("/v1/models").json()["data"][0]["kvx"]["certificate"]
        assert shown["mean_budget"] == {"lowest": 0.975, "highest": 0.975, "n_responses": 30}
    with serving(*given, "guard.stream=restart") as server:
        assert certified(server, stream=True)
    steering = {"name": "always_safe", "kind": "always_safe", "label": "always_safe"}
    file = altered(certificates / "good.json", tmp_path / "s.json", True, controller=steering)
    with serving(*SERVED, "controller=always_safe", f"certificate={file}") as server:
        assert certified(server, stream=True)  # nothing is held


def test_the_start_names_what_a_guarded_certificate_kept(
    certificates: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = under_reactive(certificates, tmp_path)
    with caplog.at_level(logging.INFO):
        with_certified_budget(compose(*given, stage="serve"))
    assert (
        "budget 0.9 certified (loss at most 40%, confidence 95%); with controller reactive 0.975 "
        "was on the device on average (30 responses)"
    ) in caplog.text


def test_files_that_are_no_certificate_are_named(
    certificates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    good = certificates / "good.json"
    (tmp_path / "text.json").write_text("no json")
    (tmp_path / "list.json").write_text("[]")
    altered(good, tmp_path / "alpha.json", False, alpha=0.01)
    altered(good, tmp_path / "format.json", True, kvx_certificate=9)
    assert "certificate=gone.json: cannot be read (No such file" in refused(
        capfd, *SERVED, "certificate=gone.json"
    )
    for name, says in (
        ("text", "cannot be read (not JSON)"), ("list", "not a certificate"),
        ("alpha", "was changed after kvx.certify wrote it"), ("format", "its format is 9"),
    ):  # fmt: skip
        assert says in refused(capfd, *SERVED, f"certificate={name}.json")
    assert "budget=certified: needs certificate=FILE" in refused(capfd, *SERVED)
    none = certificates / "snapkv-score-alpha0.1.json"
    assert json.loads(none.read_text())["budget"] is None
    assert "certifies no budget below 1.0; serve budget=1.0" in refused(
        capfd, *SERVED, f"certificate={none}"
    )


def test_a_certificate_alone_does_nothing(
    certificates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    given = f"certificate={certificates / 'good.json'}"
    line = refused(capfd, "model=tiny_recall", "press=snapkv", "budget=0.9", given)
    assert "does not apply to budget=0.9; add budget=certified" in line


@pytest.mark.parametrize("stage", ["run", "plan", "all"])
@pytest.mark.parametrize(
    "arguments", [["budget=certified"], ["budget=certified", "certificate=x.json"],
                  ["budget=0.5", "certificate=x.json"]],
)  # fmt: skip
def test_runs_refuse_certificates(kvx: Kvx, stage: str, arguments: list[str]) -> None:
    outcome = kvx(stage, "press=snapkv", *arguments)
    assert outcome.code == 2
    (line,) = [line for line in outcome.err.splitlines() if line]
    assert "only kvx.serve takes a certificate; write e.g. budget" in line
    assert not Path("outputs").exists()
