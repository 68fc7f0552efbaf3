"""From a request's text to the two token sequences of a prompt, split as the harness splits it.

The compressed part and the rest are tokenised separately, as in `kvx.data.prompt`, so that the
same split gives the same tokens as engine=kvpress in process.
"""

import copy
import logging
import secrets
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from kvx.config.schema import Config
from kvx.data.chat import ChatTemplate, Form, today
from kvx.data.prompt import PromptParts, refuse_template_fields
from kvx.errors import UserError, first_line
from kvx.serve.api_errors import invalid

log = logging.getLogger(__name__)

Messages = Sequence[Mapping[str, Any]]


class PromptSplitter:
    """Tokenises prompts; for any thread, one at a time. `n_ids` is the size of the embedding.

    A chat template that asks for the date gets `prompt.date`, or else the real time. Raises
    `UserError` for a chat template without a default.
    """

    def __init__(self, tokenizer: Any, config: Config, n_ids: int) -> None:
        self.tokenizer = copy.deepcopy(tokenizer)  # the decoding thread uses the other
        self.n_ids = n_ids
        self.date = config.prompt.date
        self.template, self.form = None, Form.text
        if config.model.chat_template and tokenizer.chat_template is not None:
            self.template = ChatTemplate(
                self.tokenizer,
                config.model.name,
                self.date or today(),
                config.prompt.system,
                config.prompt.template_kwargs or {},
            )
            self.template.with_system([])
            try:
                self.form = self.template.form
            except UserError as error:  # for one user message; other chats may work
                log.warning("serve: %s", error)
        else:
            refuse_template_fields(config)
        self._lock = threading.Lock()

    def completion(self, prompt: str | list[int], compress_chars: int | None) -> PromptParts:
        """A prompt without a chat template.

        Without `compress_chars` everything but the last token is compressed, and the tokenizer's
        first token is added where it is missing. Raises `ApiError`.
        """
        if not isinstance(prompt, str):
            if compress_chars is not None:
                raise invalid("compress_chars needs a prompt of text", "kvx.compress_chars")
            return self._but_last(self._known(prompt))
        with self._lock:
            if compress_chars is not None:
                return self._at(prompt, compress_chars)
            first = self.tokenizer.bos_token or ""
            return self._but_last(
                self._encode(prompt if prompt.startswith(first) else first + prompt)
            )

    def chat(
        self,
        messages: Messages,
        compress_chars: int | None,
        settings: Mapping[str, Any] | None = None,
    ) -> PromptParts:
        """A chat through the tokenizer's template; models without one get the plain contents.

        Without `compress_chars` everything up to the end of the last message is compressed, and
        what the template writes after it, or else the last token, follows. `settings` are arguments
        of the template beside the server's own. Raises `ApiError`.
        """
        if self.template is not None:
            messages = self.template.with_system(messages)
        elif settings:
            raise invalid("the model has no chat template to pass this to", "chat_template_kwargs")
        now = None if self.date else datetime.now()
        with self._lock:
            text = self._render(messages, now, settings)
            at = compress_chars
            if at is None:
                at = self._end_of_last(messages, text, now, settings)
            if at is not None:
                parts = self._at(text, at)
                if parts.rest_ids or compress_chars is not None:
                    return parts
            return self._but_last(self._encode(text))

    def _render(
        self, messages: Messages, now: datetime | None, settings: Mapping[str, Any] | None
    ) -> str:
        if self.template is None:
            contents = "\n".join(m["content"] for m in messages)
            return (self.tokenizer.bos_token or "") + contents + "\n"
        try:
            return self.template.render(messages, self.form, now, settings)
        except Exception as error:  # noqa: BLE001  a template raises what it likes
            raise invalid(
                f"the model's chat template refuses these messages: {first_line(error)}", "messages"
            ) from None

    def _end_of_last(
        self,
        messages: Messages,
        text: str,
        now: datetime | None,
        settings: Mapping[str, Any] | None,
    ) -> int | None:
        """Where the last message's content ends in the rendered `text`; None if it is not found."""
        mark = secrets.token_hex(16)
        last = {**messages[-1], "content": messages[-1]["content"] + mark}
        before, found, after = self._render([*messages[:-1], last], now, settings).partition(mark)
        return len(before) if found and before and before + after == text else None

    def _at(self, text: str, compress_chars: int) -> PromptParts:
        if compress_chars > len(text):
            raise invalid(
                f"compress_chars is {compress_chars}, the prompt has {len(text)} characters",
                "kvx.compress_chars",
            )
        parts = PromptParts(
            self._encode(text[:compress_chars]), self._encode(text[compress_chars:])
        )
        if not parts.compressed_ids:
            raise invalid("compress_chars leaves no token to compress", "kvx.compress_chars")
        return parts

    def _but_last(self, ids: list[int]) -> PromptParts:
        if not ids:
            raise invalid("the prompt is empty")
        return PromptParts(ids, []) if len(ids) == 1 else PromptParts(ids[:-1], ids[-1:])

    def _encode(self, text: str) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise invalid("the prompt has half of a surrogate pair, which is not text") from None
        return self._known(self.tokenizer.encode(text, add_special_tokens=False))

    def _known(self, ids: list[int]) -> list[int]:
        if ids and max(ids) >= self.n_ids:
            raise invalid(f"token {max(ids)} is not in the model's vocabulary of {self.n_ids}")
        return ids
