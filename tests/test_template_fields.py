"""`prompt.system` and `prompt.template_kwargs`: what a chat template is told beside a context."""

from pathlib import Path

import pytest

import kvx as package
from kvx.cli.command import compose
from kvx.data.manifest import manifest_key
from kvx.data.prompt import PromptBuilder
from kvx.data.tokenizer import load_tokenizer
from kvx.engines.openai.body import BodyBuilder
from kvx.errors import UserError
from kvx.points import Request
from kvx.run.planning import plan
from kvx.serve.api_errors import ApiError
from kvx.serve.prompts import PromptSplitter
from kvx.serve.requests import ChatRequest
from tests.conftest import Kvx, request_rows
from tests.models import PLAIN_CHAT, tiny_model
from tests.test_chat_templates import builder, config_of, example

# as they are published, without tools
QWEN3 = (
    "{%- if messages[0].role == 'system' %}{{- '<|im_start|>system\\n' + messages[0].content + "
    "'<|im_end|>\\n' }}{%- endif %}{%- for message in messages %}{%- if message.role == 'user' %}"
    "{{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"
)
GEMMA2 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}"
    "{{ '<start_of_turn>' + message['role'] + '\\n' + message['content'] | trim + "
    "'<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"
)
GEMMA3 = (  # the system message begins the first user message
    "{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}"
    "{%- set first_user_prefix = messages[0]['content'] + '\\n\\n' -%}"
    "{%- set loop_messages = messages[1:] -%}{%- else -%}{%- set first_user_prefix = '' -%}"
    "{%- set loop_messages = messages -%}{%- endif -%}{%- for message in loop_messages -%}"
    "{{ '<start_of_turn>user\\n' + (first_user_prefix if loop.first else '') }}"
    "{{ message['content'] | trim }}{{ '<end_of_turn>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{'<start_of_turn>model\\n'}}{%- endif -%}"
)
ONLY_USERS = (
    "{% for m in messages %}{% if m.role == 'user' %}<u>{{ m.content }}</u>{% endif %}{% endfor %}"
)
SYSTEM = "prompt.system='Be brief.'"


def test_a_system_message_comes_before_the_context(tmp_path: Path) -> None:
    compressed, rest = builder(tmp_path, QWEN3, SYSTEM).texts(example("c"))
    assert compressed.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nc")
    assert rest.count("<|im_start|>assistant\n<think>\n\n</think>\n\n") == 1


def test_a_template_may_put_it_into_the_users_message(tmp_path: Path) -> None:
    compressed, _ = builder(tmp_path, GEMMA3, SYSTEM).texts(example("c"))
    assert "<start_of_turn>user\nBe brief.\n\nc" in compressed


@pytest.mark.parametrize("system", ["@0000#;", "c", "{{ messages }}", "a\\nb"])
def test_any_system_message_stays_as_it_is(tmp_path: Path, system: str) -> None:
    prompts = builder(tmp_path, QWEN3, f"prompt.system='{system}'")
    said = system.replace("\\n", "\n")
    assert f"<|im_start|>system\n{said}<|im_end|>" in prompts.texts(example("c"))[0]


@pytest.mark.parametrize(
    ("template", "said"),
    [(GEMMA2, "takes no system message (System role not supported)"),
     (ONLY_USERS,
      "leaves out a system message")],
)  # fmt: skip
def test_a_template_without_a_system_role_is_one_line(
    tmp_path: Path, kvx: Kvx, template: str, said: str
) -> None:
    folder = tiny_model(tmp_path / "m", template)
    outcome = kvx("run", "model=hf", f"model.path={folder}", "model.name=m", SYSTEM)
    assert outcome.code == 2
    line = outcome.err.splitlines()[-1]
    assert line == f"kvx run: model=m: its chat template {said}; leave out prompt.system"


@pytest.mark.parametrize("field", ["system='a'", "template_kwargs={a: 1}"])
def test_a_model_without_a_chat_template_is_one_line(kvx: Kvx, field: str) -> None:
    outcome = kvx("run", "model.chat_template=false", f"prompt.{field}")
    assert outcome.code == 2
    name = field.partition("=")[0]
    assert f"kvx run: prompt.{name}: model=" in outcome.err.splitlines()[-1]
    assert "asked without a chat template" in outcome.err


def test_template_kwargs_reach_the_template(tmp_path: Path) -> None:
    prompts = builder(tmp_path, QWEN3, "prompt.template_kwargs={enable_thinking: true}")
    assert "<think>" not in prompts.texts(example("c"))[1]


def test_what_kvx_sets_itself_is_refused() -> None:
    with pytest.raises(UserError, match=r"prompt\.template_kwargs\.tokenize: "):
        compose("prompt.template_kwargs={tokenize: true}")
    with pytest.raises(UserError, match=r"prompt\.template_kwargs=5: use a mapping"):
        compose("prompt.template_kwargs=5")


def test_both_are_in_the_ids_and_defaults_change_none(tmp_path: Path, kvx: Kvx) -> None:
    folder = tiny_model(tmp_path / "m", QWEN3)
    variants = [
        (), (SYSTEM,), ("prompt.system='Be long.'",),
        ("prompt.template_kwargs={enable_thinking: true}",),
    ]  # fmt: skip
    configs = [config_of(folder, *fields) for fields in variants]
    assert len({manifest_key(c, "r") for c in configs}) == 4
    points = plan(configs)
    assert len({p.id for p in points}) == 4
    assert len({PromptBuilder(load_tokenizer(c.model), c).template_hash for c in configs}) == 4
    explicit = config_of(folder, "prompt.system=null", "prompt.template_kwargs=null")
    assert plan([explicit])[0].id == points[0].id
    by_name = package.sweep(
        model="hf", **{"model.path": str(folder), "model.name": "m", "prompt.system": "Be brief."},
        **{"dataset.source.n_examples": 20, "dataset.sampling.n_per_bin": 1},
    )  # fmt: skip
    assert by_name.point_ids() == [points[1].id]


def test_a_run_with_a_system_message_asks_other_prompts(tmp_path: Path, kvx: Kvx) -> None:
    folder = tiny_model(tmp_path / "m", QWEN3)
    run = (
        "model=hf", f"model.path={folder}", "model.name=m", "dataset.source.n_examples=12",
        "dataset.sampling.n_per_bin=1", "dataset.binning.n_bins=1",
    )  # fmt: skip
    for name, fields in (("plain", ()), ("told", (SYSTEM,))):
        outcome = kvx("run", *run, f"experiment_name={name}", *fields)
        assert outcome.code == 0, outcome.err
    plain, told = (request_rows(Path("outputs/runs") / n) for n in ("plain", "told"))
    more = told["prompt_tokens"] - plain["prompt_tokens"]
    tokenizer = load_tokenizer(config_of(folder).model)
    system = "<|im_start|>system\nBe brief.<|im_end|>\n"
    assert list(more) == [len(tokenizer.encode(system, add_special_tokens=False))] * len(more)


def test_a_chat_server_is_sent_the_system_message(kvx: Kvx) -> None:
    engine = ("engine=openai", "engine.base_url=http://x/v1", "engine.model=m", "engine.api=chat")
    kwargs = "prompt.template_kwargs={enable_thinking: true}"
    config = compose(*engine, SYSTEM, kwargs, "model.chat_template=false")
    (point,) = plan([config])
    request = Request(point, point.manifest.entries[0])
    body = BodyBuilder(config).body(request, example("c"), is_kvx=False)
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert [m["role"] for m in body["messages"]] == ["system", "user"]
    assert body["chat_template_kwargs"] == {"enable_thinking": True}
    plain = compose(*engine)
    (point,) = plan([plain])
    request = Request(point, point.manifest.entries[0])
    body = BodyBuilder(plain).body(request, example("c"), is_kvx=False)
    assert [m["role"] for m in body["messages"]] == ["user"]
    assert "chat_template_kwargs" not in body


def test_the_server_tells_templates_the_same(tmp_path: Path) -> None:
    config = config_of(tiny_model(tmp_path / "m", QWEN3), SYSTEM)
    tokenizer = load_tokenizer(config.model)
    splitter = PromptSplitter(tokenizer, config, 0x110000)
    splitter.tokenizer.encode = lambda text, **_: [ord(c) for c in text]

    def text(messages: list[dict[str, str]], settings: dict[str, object] | None = None) -> str:
        parts = splitter.chat(messages, None, settings)
        return "".join(map(chr, [*parts.compressed_ids, *parts.rest_ids]))

    asked = [{"role": "user", "content": "hi"}]
    user = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    system = "<|im_start|>system\nBe brief.<|im_end|>\n"
    assert text(asked) == f"{system}{user}<think>\n\n</think>\n\n"
    assert text(asked, {"enable_thinking": True}) == system + user
    own = [{"role": "system", "content": "Mine."}, *asked]
    assert "Be brief." not in text(own)


def test_a_request_with_settings_needs_a_template_and_sets_nothing_of_kvx(tmp_path: Path) -> None:
    message = {"role": "user", "content": "hi"}
    with pytest.raises(ValueError, match="tokenize cannot be set for a chat template"):
        ChatRequest(model="m", messages=[message], chat_template_kwargs={"tokenize": True})
    config = config_of(tiny_model(tmp_path / "m", PLAIN_CHAT), "model.chat_template=false")
    splitter = PromptSplitter(load_tokenizer(config.model), config, 1000)
    with pytest.raises(ApiError, match="no chat template"):
        splitter.chat([message], None, {"enable_thinking": True})
