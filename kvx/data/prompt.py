"""From an example to the two token sequences an engine needs.

A prompt has a compressed part (what the press sees) and a rest, forwarded after compression. As in
kvpress's own pipeline, the context goes through the chat template up to a separator; the question,
the template's closing text and the answer prefix follow.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from operator import eq
from typing import Any

from kvx.config.engine import Api, OpenAIConfig
from kvx.config.schema import Config
from kvx.data.chat import ChatTemplate
from kvx.data.example import Example
from kvx.data.token_counts import counter_of
from kvx.errors import UserError
from kvx.identity.hashing import digest
from kvx.text import reasoning


@dataclass(frozen=True)
class PromptParts:
    """Token ids of a prompt.

    `compressed_ids` pass through the press, `rest_ids` (may be empty) come after it. A prompt that
    `opens_reasoning` ends with a tag such as <think>: the answer begins as reasoning.
    """

    compressed_ids: list[int]
    rest_ids: list[int]
    opens_reasoning: bool = False

    @property
    def n_tokens(self) -> int:
        return len(self.compressed_ids) + len(self.rest_ids)


class PromptBuilder:
    """Builds prompts for one tokenizer, dataset template and `prompt` configuration.

    `date` is the manifest's, for a chat template that asks for the day.
    """

    def __init__(self, tokenizer: Any, config: Config, date: str | None = None) -> None:
        self.tokenizer, self.counter = tokenizer, counter_of(tokenizer)
        self.template = config.dataset.template
        self.query_aware = config.prompt.query_aware
        self.chat: ChatTemplate | None = None
        self._last: tuple[str, list[int]] = "", []
        self.system, self.settings = config.prompt.system, config.prompt.template_kwargs or {}
        by_server = isinstance(config.engine, OpenAIConfig) and config.engine.api is Api.chat
        if by_server and not self.template.chat:
            raise UserError(
                f"dataset.template.chat=false: dataset={config.dataset.name} is asked without a "
                "chat template, and engine.api=chat applies the server's; set "
                "engine.api=completions"
            )
        has_template = config.model.chat_template and tokenizer.chat_template is not None
        if has_template and self.template.chat:
            name = config.model.name
            self.chat = ChatTemplate(tokenizer, name, date, self.system, self.settings)
        elif not by_server:
            refuse_template_fields(config)  # no server renders it either

    @property
    def date(self) -> str | None:
        """The day that the chat template is told; None if it asks for none."""
        return self.chat.date if self.chat is not None and self.chat.dated else None

    @property
    def template_hash(self) -> str:
        """Identity of everything but the example that shapes a prompt."""
        chat = None if self.chat is None else self.tokenizer.chat_template
        parts = [self.template.context, self.template.question, self.template.answer_prefix]
        dated = [] if self.date is None else [self.date]
        told = [self.system, self.settings] if self.system is not None or self.settings else []
        separator = self.template.separator  # hashed where it is not what it always was
        others = [separator] if self.chat is None and separator != "\n" else []
        return digest([parts, chat, self.query_aware, *dated, *told, *others], 12)

    def parts(self, example: Example) -> PromptParts:
        """Tokenise `example`; see the module docstring for the parts."""
        compressed, rest = self.texts(example)
        opened = reasoning.opens(compressed + rest)
        last, ids = self._last
        if compressed != last:  # questions on one context come one after the other
            ids = self._encode(compressed)
            self._last = compressed, ids
        return PromptParts(list(ids), self._encode(rest), opened)

    def texts(self, example: Example) -> tuple[str, str]:
        """The compressed part and the rest, with all that a template adds."""
        context, question, answer_prefix = self._filled(example)
        before = (self.tokenizer.bos_token or "") + context
        after = self.template.separator
        if self.chat is not None:
            before, after = self.chat.around(context)
        if self.query_aware:
            return before + question, after + answer_prefix
        return before, question + after + answer_prefix

    def context_chars(self, example: Example) -> list[int] | None:
        """How many characters of `example.context` each compressed token stands for, in order.

        They add up to the whole context; tokens outside of it, of the templates and a question,
        have 0. None where the template changes the context, or the tokenizer does not tell places.
        """
        if not self.tokenizer.is_fast:
            return None
        text, context = self.texts(example)[0], example.context
        found = context.strip()  # some templates do so
        at = text.find(found) - context.find(found)
        if not found or found not in text:
            return None
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        inside = [min(max(start - at, 0), len(context)) for start, _ in encoded["offset_mapping"]]
        return [end - start for start, end in pairwise([0, *inside[1:], len(context)])]

    def question_tokens(self, example: Example) -> int:
        """Tokens of the question at the end of the compressed part; 0 if it comes after it."""
        if not self.query_aware:
            return 0
        context, _, _ = self._filled(example)
        before = (self.tokenizer.bos_token or "") + context
        if self.chat is not None:
            before, _ = self.chat.around(context)
        compressed, alone = self._encode(self.texts(example)[0]), self._encode(before)
        same = sum(1 for _ in takewhile(bool, map(eq, compressed, alone)))
        return len(compressed) - same

    def message(self, example: Example) -> str:
        """The user message, for a server that applies the chat template itself.

        The answer prefix ends it, because a message cannot begin the answer.
        """
        context, question, answer_prefix = self._filled(example)
        return context + (f"{question}\n{answer_prefix}" if answer_prefix else question)

    def _filled(self, example: Example) -> tuple[str, str, str]:
        """Context, question and answer prefix in the dataset's templates; a row's own prefix
        counts.
        """
        template, prefix = self.template, example.answer_prefix
        if prefix is None:
            prefix = "" if example.formatted else template.answer_prefix
            prefix = prefix.replace("{question}", example.question)
        if example.formatted:
            return example.context, example.question, prefix
        return (
            template.context.replace("{context}", example.context),
            template.question.replace("{question}", example.question),
            prefix,
        )

    def wording(self, example: Example) -> tuple[str, str]:
        """What stands before and after the example's context, without a chat template."""
        _, question, prefix = self._filled(example)
        first, _, last = self.template.context.partition("{context}")
        return ("", question + prefix) if example.formatted else (first, last + question + prefix)

    def context_tokens(self, example: Example) -> int:
        """Tokens of the context alone, without template or question, which decide the bin."""
        return len(self._encode(example.context))

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """The tokens of each text, many at a time."""
        return [found.n_tokens for found in self.counter(texts)]

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids


def refuse_template_fields(config: Config) -> None:
    """Raises `UserError` for fields that need a chat template."""
    prompt = config.prompt
    field = "system" if prompt.system is not None else "template_kwargs"
    if prompt.system is not None or prompt.template_kwargs:
        raise UserError(
            f"prompt.{field}: model={config.model.name} is asked without a chat template, which "
            "alone takes it; put the text into dataset.template.context"
        )


def truncate_context(context: str, n_tokens: int, tokenizer: Any, middle: bool) -> str:
    """`context` cut to about `n_tokens`: the middle dropped (as LongBench does) or the head."""
    ids = tokenizer.encode(context, add_special_tokens=False)
    if len(ids) <= n_tokens:
        return context
    half = n_tokens // 2
    kept = [ids[:half], ids[len(ids) - half :]] if middle else [ids[len(ids) - n_tokens :]]
    return "".join(tokenizer.decode(part, skip_special_tokens=True) for part in kept)
