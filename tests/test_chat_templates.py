"""Prompts through chat templates: no character of the context is lost, and no day changes them."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import transformers.utils.chat_template_utils as in_transformers

import kvx.data.chat as chat
from kvx.cli.command import compose
from kvx.config.schema import Config
from kvx.data.example import Example
from kvx.data.manifest import manifest_key
from kvx.data.prompt import PromptBuilder
from kvx.data.tokenizer import load_tokenizer
from kvx.engines.openai.body import BodyBuilder
from kvx.engines.openai.engine import _warn_of_the_day
from kvx.errors import UserError
from kvx.points import Point
from kvx.run.planning import plan
from kvx.serve.prompts import PromptSplitter
from tests.conftest import Kvx
from tests.models import DATED_CHAT, PLAIN_CHAT, model_config, tiny_model

FEW = ("dataset.source.n_examples=20", "dataset.sampling.n_per_bin=1")
LOOP = (
    "<u>{% for part in messages[0]['content'] %}{% if part['type'] == 'text' %}"
    "{{ part['text'] }}{% endif %}{% endfor %}</u><a>"
)
FIRST_PART = "<u>{{ messages[0]['content'][0]['text'] }}</u><a>"
EITHER = "{% if messages[0]['content'] is string %}" + PLAIN_CHAT + "{% endif %}"


def config_of(folder: Path, *overrides: str) -> Config:
    return compose("model=hf", f"model.path={folder}", "model.name=m", *FEW, *overrides)


def builder(tmp_path: Path, template: Any, *overrides: str, date: str = "") -> PromptBuilder:
    config = config_of(tiny_model(tmp_path / "m", template), *overrides)
    return PromptBuilder(load_tokenizer(config.model), config, date or None)


def example(context: str, question: str = "the q?") -> Example:
    return Example("1", context, question, ("a",), "1")


CONTEXTS = (
    "a b #", "a ## b ##", "#", "#" * 40, "", "  before", "after  ", "after\n\n", "\t", "two\nlines",
    "@0000#;", "an @", "@0000", "@0000#;@0001#;@", "<u>", "</u><a>", "{{ messages }}", "A & B < C",
    "x" * 3000 + "#",
)  # fmt: skip


@pytest.mark.parametrize("template", [PLAIN_CHAT, LOOP, FIRST_PART, EITHER])
@pytest.mark.parametrize("query_aware", ["true", "false"])
def test_every_character_of_a_context_stays_where_it_is(
    tmp_path: Path, template: str, query_aware: str
) -> None:
    prompts = builder(tmp_path, template, f"prompt.query_aware={query_aware}")
    prefix = prompts.template.answer_prefix
    for context in CONTEXTS:
        asked = example(context)
        before = prompts.template.context.replace("{context}", context)
        question = prompts.template.question.replace("{question}", asked.question)
        compressed, rest = prompts.texts(asked)
        if query_aware == "true":
            assert compressed == f"<u>{before}{question}", context
            assert rest == f"</u><a>{prefix}"
        else:
            assert compressed == f"<u>{before}", context
            assert rest == f"{question}</u><a>{prefix}"


def test_white_space_at_the_beginning_is_the_templates_to_trim_and_nothing_else(
    tmp_path: Path,
) -> None:
    """As in kvpress's pipeline: Llama 3's template trims messages, and a question follows."""
    prompts = builder(tmp_path, "<u>{{ messages[0]['content'] | trim }}</u><a>")
    assert prompts.texts(example("  \n a b \n"))[0] == "<u>a b \n"


@pytest.mark.parametrize(
    ("template", "context", "said"),
    [
        ("<u>{{ messages[0]['content'] | lower }}</u>", "In Paris", "changes what a user message"),
        ("<u>{{ messages[0]['content'] | e }}</u>", "A & B", "changes what a user message says"),
        ("<u>{{ messages[0]['content'][:40] }}</u>", "a" * 60, "changes what a user message says"),
        ("<u>{{ messages[0]['content'].split() | join(' ') }}</u>", "a  b", "changes what a user"),
        ("<u>{{ messages[0]['content'].strip('x') }}</u>", "xa", "changes what a user message"),
        ("{{ messages[0]['content'] * 2 }}", "a", "repeats what a user message says"),
        ("{% for m in messages + messages %}{{ m.content }}{% endfor %}", "a", "repeats what a"),
        ("<u></u>", "a", "leaves out what a user message says"),
        ("{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% endif %}{% endfor %}",
         "a", "leaves out what a user message says"),
        ("{{ raise_exception('roles must alternate,\nsystem first') }}", "a",
         r"refuses a user message \(roles must alternate,\)"),
        ("{{ messages[1]['content'] }}{{ messages[1].x.y }}", "a", "refuses a user message"),
        ("{{ 1 / 0 }}", "a", "refuses a user message"),
        ("{% if %}", "a", "refuses a user message"),
        ([{"name": "rag", "template": PLAIN_CHAT}, {"name": "tool_use", "template": PLAIN_CHAT}],
         "a", r"has no default \(named: rag, tool_use\)"),
    ],
)  # fmt: skip
def test_a_template_that_does_not_give_the_message_is_one_line(
    tmp_path: Path, template: Any, context: str, said: str
) -> None:
    with pytest.raises(UserError, match=said) as caught:
        builder(tmp_path, template).texts(example(context))
    message = str(caught.value)
    assert message.startswith("model=m: its chat template ")
    assert "\n" not in message
    assert "model.chat_template=false" in message


def test_the_line_ends_a_run_before_anything_is_loaded(kvx: Kvx, tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "m", "{{ raise_exception('system first') }}")
    arguments = ("model=hf", f"model.path={folder}", "model.name=m", *FEW)
    outcome = kvx("run", *arguments)
    assert outcome.code == 2
    (line,) = outcome.err.splitlines()
    assert line.startswith("kvx run: model=m: its chat template refuses a user message (system")
    assert kvx("prepare", *arguments, "model.chat_template=false").code == 0


def test_one_of_several_templates_is_the_default(tmp_path: Path) -> None:
    named = [{"name": "rag", "template": "R"}, {"name": "default", "template": PLAIN_CHAT}]
    assert builder(tmp_path, named).texts(example("a"))[0].startswith("<u>")


# --- the day ------------------------------------------------------------------------------------


def on(monkeypatch: pytest.MonkeyPatch, day: str) -> None:
    """Let the clocks of kvx and of transformers stand at noon of `day`."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.fromisoformat(f"{day}T12:00:00")

    for module in (chat, in_transformers):
        monkeypatch.setattr(module, "datetime", Clock)
    monkeypatch.setattr("kvx.serve.prompts.datetime", Clock)


def planned(folder: Path, *overrides: str) -> Point:
    (point,) = plan([config_of(folder, *overrides)])
    return point


def text_of(point: Point) -> str:
    tokenizer = load_tokenizer(point.config.model)
    return PromptBuilder(tokenizer, point.config, point.manifest.date).texts(example("c"))[0]


def test_a_manifest_gives_the_same_prompts_on_every_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tiny_model(tmp_path / "m", DATED_CHAT)
    on(monkeypatch, "2026-03-01")
    first = planned(folder)
    assert first.manifest.date == "2026-03-01"
    assert text_of(first).startswith("01 Mar 2026 <u>")
    on(monkeypatch, "2026-03-02")
    again = planned(folder)
    assert (again.id, again.dir) == (first.id, first.dir)
    assert again.manifest == first.manifest
    assert text_of(again) == text_of(first)


def test_other_days_are_other_points_unless_the_day_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tiny_model(tmp_path / "m", DATED_CHAT)
    found, said = [], []
    for n, day in enumerate(("2026-03-01", "2026-03-02")):
        on(monkeypatch, day)
        found.append(planned(folder, f"paths.output=a{n}"))
        said.append(planned(folder, f"paths.output=b{n}", "prompt.date=2026-03-01"))
    assert found[0].id != found[1].id
    assert found[0].manifest.template_hash != found[1].manifest.template_hash
    assert said[0].id == said[1].id
    assert text_of(said[1]).startswith("01 Mar 2026 ")


def test_two_days_of_one_sweep_have_a_manifest_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tiny_model(tmp_path / "m", DATED_CHAT)
    days = ("2026-03-01", "2026-03-02")
    points = plan([config_of(folder, f"prompt.date={day}") for day in days])
    assert [p.manifest.date for p in points] == list(days)


@pytest.mark.parametrize("template", [None, PLAIN_CHAT, DATED_CHAT])
def test_what_asks_for_no_day_is_what_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tiny_model(tmp_path / "m", template)
    off = ("model.chat_template=false",) if template == DATED_CHAT else ()
    on(monkeypatch, "2026-03-01")
    first = planned(folder, *off)
    assert first.manifest.date is None
    assert "date" not in json.loads((first.manifest_dir / "manifest.json").read_text())
    on(monkeypatch, "2026-03-02")
    other = planned(folder, *off, "paths.output=other", "prompt.date=2020-02-02")
    assert other.id == first.id
    if template == PLAIN_CHAT:  # as it was before there were dates
        assert first.manifest.template_hash == "feec53ae036d"


def test_a_dated_manifest_of_before_is_not_taken_for_one_of_now(tmp_path: Path) -> None:
    config = config_of(tiny_model(tmp_path / "m", DATED_CHAT))
    plain = config_of(tiny_model(tmp_path / "n", DATED_CHAT), "model.chat_template=false")
    said = config_of(tmp_path / "m", "prompt.date=2026-03-01")
    assert len({manifest_key(c, "r") for c in (config, plain, said)}) == 3


def test_a_template_file_goes_before_the_tokenizers_own(tmp_path: Path) -> None:
    """transformers' order; a named template that is not used does not count."""
    folder = tiny_model(tmp_path / "m", DATED_CHAT)
    (folder / "chat_template.jinja").write_text(PLAIN_CHAT)
    same = tiny_model(tmp_path / "n", [{"name": "x", "template": DATED_CHAT},
                                       {"name": "default", "template": PLAIN_CHAT}])  # fmt: skip
    for path in (folder, same):
        config = config_of(path)
        prompts = PromptBuilder(load_tokenizer(config.model), config)
        assert prompts.date is None
        assert prompts.texts(example("c"))[0].startswith("<u>")
        dated = config_of(path, "prompt.date=2026-03-01")
        assert manifest_key(dated, "r") == manifest_key(config, "r")


@pytest.mark.parametrize("date", ["yesterday", "2026-13-01", "20260301", "01.03.2026"])
def test_a_day_that_is_none_is_one_line(date: str) -> None:
    with pytest.raises(UserError, match=rf"prompt\.date={date}: write a day as"):
        compose(f"prompt.date={date}")


def test_a_run_and_its_report_tell_the_day(
    kvx: Kvx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(monkeypatch, "2026-03-01")
    folder = tiny_model(tmp_path / "m", DATED_CHAT)
    arguments = ("model=hf", f"model.path={folder}", *FEW)
    outcome = kvx("all", *arguments)
    assert outcome.code == 0, outcome.err
    assert "the chat template is told 2026-03-01" in outcome.err
    (report,) = Path("outputs").glob("runs/*/details.md")
    assert "2026-03-01" in report.read_text()
    on(monkeypatch, "2026-03-02")
    assert "nothing to do" in kvx("run", *arguments).err


def test_a_server_is_sent_the_manifests_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    on(monkeypatch, "2026-03-02")
    folder = tiny_model(tmp_path / "m", DATED_CHAT)
    point = planned(folder, "engine=openai", "engine.base_url=http://127.0.0.1:1/v1")
    prompts = BodyBuilder(point.config, "2026-03-01").prompts
    assert prompts.texts(example("c"))[0].startswith("01 Mar 2026 ")


def test_a_server_that_renders_chats_itself_has_a_day_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    server = ("engine=openai", "engine.base_url=http://127.0.0.1:1/v1")
    for name, template, api, warned in (
        ("a", DATED_CHAT, "chat", True),
        ("b", DATED_CHAT, "completions", False),
        ("c", PLAIN_CHAT, "chat", False),
    ):
        caplog.clear()
        folder = tiny_model(tmp_path / name, template)
        _warn_of_the_day([planned(folder, *server, f"engine.api={api}")])
        assert ("writes the day into prompts" in caplog.text) is warned


def test_a_live_server_takes_the_real_day_unless_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_model(tmp_path / "m", "{{ strftime_now('%d %H') }}" + PLAIN_CHAT)
    rendered: list[str] = []
    told = config_of(folder, "prompt.date=2026-03-01")
    for config in (config_of(folder), told):
        splitter = PromptSplitter(load_tokenizer(config.model), config, 1000)
        encode = splitter.tokenizer.encode
        splitter.tokenizer.encode = lambda text, f=encode, **k: (
            rendered.append(text) or f(text, **k)
        )
        for day in ("2026-03-04", "2026-03-05"):
            on(monkeypatch, day)
            splitter.chat([{"role": "user", "content": "a"}], 5)
    assert rendered[::2] == ["04 12", "05 12", "01 00", "01 00"]


def test_a_live_server_gives_parts_to_a_template_that_wants_them(tmp_path: Path) -> None:
    config = config_of(tiny_model(tmp_path / "m", LOOP))
    plain = config_of(tiny_model(tmp_path / "n", PLAIN_CHAT))
    messages = [{"role": "user", "content": "a b c"}]
    parts = [
        PromptSplitter(load_tokenizer(c.model), c, 1000).chat(messages, None)
        for c in (config, plain)
    ]
    assert parts[0] == parts[1]
    assert len(parts[0].compressed_ids) > 2


def test_a_live_server_without_a_default_template_does_not_start(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "m", [{"name": "rag", "template": PLAIN_CHAT}])
    tokenizer = load_tokenizer(model_config(folder))
    with pytest.raises(UserError, match="has no default"):
        PromptSplitter(tokenizer, config_of(folder), 1000)
