"""What is sent for a request: the prompt, the decoding fields, and the budget."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvx.config import environment, placeholders
from kvx.config.budgets import TOKENS
from kvx.config.engine import Api
from kvx.config.numbers import exact
from kvx.config.schema import BudgetKind, Config, Signals
from kvx.data.example import Example
from kvx.data.prompt import PromptBuilder
from kvx.data.tokenizer import load_tokenizer
from kvx.engines.base import seed_of
from kvx.engines.openai.client import KVX, settings
from kvx.errors import UserError
from kvx.points import Point, Request, budget_label
from kvx.text import reasoning

RATIO = BudgetKind.ratio
MOST_STOPS = 4  # that OpenAI's API takes; answers are cut at all of them here


@dataclass(frozen=True)
class Route:
    """How the budget of a point reaches a server, and which server that is."""

    url: str
    by_endpoint: bool
    by_body: bool

    @property
    def tells_budgets(self) -> bool:
        return self.by_endpoint or self.by_body


def route(point: Point) -> Route:
    """Raises `UserError` if no server is named for the point."""
    engine, budget = settings(point.config), point.config.budget
    by_body = "budget" in placeholders.names(engine.extra_body)
    if not engine.endpoints:
        if not engine.base_url:
            name = environment.BASE_URL
            hint = environment.unread(name)
            raise UserError(f"engine=openai: which server? set engine.base_url, or {name}{hint}")
        return Route(engine.base_url.rstrip("/"), False, by_body)
    if (why := no_endpoint(point)) is not None:
        raise UserError(why)
    return Route(endpoints(engine.endpoints)[budget.key], True, by_body)


def no_endpoint(point: Point) -> str | None:
    """Why no server of `engine.endpoints` is the point's; None if one is, or there are none."""
    engine, budget = settings(point.config), point.config.budget
    urls = endpoints(engine.endpoints) if engine.endpoints else {}
    if not urls or budget.key in urls:
        return None
    there = ", ".join(exact(n) if kind is RATIO else f"{n}t" for kind, n in urls)
    return f"engine.endpoints: none for budget {budget_label(budget)}; there are {there}"


def endpoints(raw: Any) -> dict[tuple[BudgetKind, float | int], str]:
    """The URLs by `BudgetConfig.key`, however a budget was typed (`1`, `1.0`, `256t`).

    Raises `UserError` if `raw` is not such a mapping.
    """
    if not isinstance(raw, Mapping) or not raw:
        raise UserError("engine.endpoints: write {1.0: http://a:8000/v1, 0.2: http://b:8000/v1}")
    found: dict[tuple[BudgetKind, float | int], str] = {}
    for key, url in raw.items():
        try:
            if isinstance(key, bool):
                raise TypeError(key)
            in_tokens = TOKENS.fullmatch(key) if isinstance(key, str) else None
            budget = (BudgetKind.tokens, int(in_tokens[1])) if in_tokens else (RATIO, float(key))
        except (TypeError, ValueError):
            raise UserError(f"engine.endpoints: {key!r} is not a budget") from None
        found[budget] = str(url).rstrip("/")
    return found


class BodyBuilder:
    """Builds request bodies for one tokenizer, dataset template and decoding configuration.

    `date` is the manifest's.
    """

    def __init__(self, config: Config, date: str | None = None) -> None:
        self.config, self.engine = config, settings(config)
        self.prompts = PromptBuilder(load_tokenizer(config.model), config, date)
        self._last: tuple[Example, tuple[str, int]] | None = None

    def body(
        self, request: Request, example: Example, is_kvx: bool, logprobs: bool = True
    ) -> dict[str, Any]:
        """The JSON object to send."""
        config, engine = request.point.config, self.engine
        decoding = config.decoding
        text, compress_chars = self._text(example)
        body: dict[str, Any] = {"model": engine.model}
        if engine.api is Api.chat:
            system = config.prompt.system
            first = [] if system is None else [{"role": "system", "content": system}]
            body["messages"] = [*first, {"role": "user", "content": text}]
            if config.prompt.template_kwargs:
                body["chat_template_kwargs"] = config.prompt.template_kwargs
        else:
            body["prompt"] = text
        body |= {
            "max_tokens": request.max_new_tokens,
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "seed": seed_of(request),
            "n": 1,
        }
        if decoding.until:
            body["stop"] = decoding.until[:MOST_STOPS]
        if decoding.top_k > 0:
            body["top_k"] = decoding.top_k
        if logprobs and config.signals is not Signals.off and engine.top_logprobs > 0:
            chat = {"logprobs": True, "top_logprobs": engine.top_logprobs}
            body |= chat if engine.api is Api.chat else {"logprobs": engine.top_logprobs}
        if engine.stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        body = {name: value for name, value in body.items() if name not in engine.omit}
        press, budget = config.press.name, config.budget.amount
        if is_kvx:
            in_tokens = config.budget.kind is BudgetKind.tokens
            asked = {"budget_tokens" if in_tokens else "budget": budget}
            # no point of this engine has a controller: a guarding server must not use its own
            context = {"compress_chars": compress_chars, "controller": config.controller.name}
            body[KVX] = {"press": press, **asked, **context}
        return body | (placeholders.fill(engine.extra_body, press, budget) or {})

    def opens_reasoning(self, example: Example) -> bool | None:
        """Whether the prompt ends with an open reasoning tag; None where the server renders it."""
        chat = self.engine.api is Api.chat
        return None if chat else reasoning.opens(self._text(example)[0])

    def _text(self, example: Example) -> tuple[str, int]:
        """The prompt or message, and how many characters of the rendered prompt are compressed.

        Kept for the next point that asks for the same example.
        """
        if self._last is None or self._last[0] is not example:
            compressed, rest = self.prompts.texts(example)
            chat = self.engine.api is Api.chat
            text = self.prompts.message(example) if chat else compressed + rest
            self._last = (example, (text, len(compressed)))
        return self._last[1]
