"""One attempt of one request at one server, with time-outs; knows nothing of retries or points."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import openai
from openai import AsyncOpenAI, AsyncStream, Timeout

from kvx import environment
from kvx.config import Api, Config, OpenAIConfig
from kvx.engines.openai import fault as faults
from kvx.engines.openai.fault import Fault
from kvx.engines.openai.reply import Parser, Reply
from kvx.failures import FailureType

PATHS = {Api.completions: "/completions", Api.chat: "/chat/completions"}
KVX = "kvx"  # what a kvx server says it is owned by
HIDDEN = "[OPENAI_API_KEY]"
NO_KEY = "none"  # the client insists on one
LISTING_S = 15.0
SLACK = 0.1  # of the time between tokens, by which its time-out may come too early


@dataclass(frozen=True)
class About:
    """What a server lists: model names, and whether it is kvx.serve. None: it has no such list."""

    models: Sequence[str] | None
    is_kvx: bool


def settings(config: Config) -> OpenAIConfig:
    engine = config.engine
    assert isinstance(engine, OpenAIConfig)
    return engine


class Client:
    """A server; use it as an async context manager, in one event loop."""

    def __init__(self, url: str, config: Config) -> None:
        self.url, self.engine = url, settings(config)
        self.limits = self.engine.timeouts
        self.total_s = config.decoding.timeout_s or self.limits.total_s
        self._key = environment.read(environment.API_KEY)
        self._client = AsyncOpenAI(
            api_key=self._key or NO_KEY, base_url=url, max_retries=0,
            timeout=Timeout(None, connect=self.limits.connect_s),
        )  # fmt: skip

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def ask(self, body: Mapping[str, Any]) -> Reply:
        """Send one request and read its whole answer. Raises `Fault`."""
        try:
            return await self._ask(body)
        except Fault as error:
            fault = error
        except openai.APIError as error:
            fault = faults.of_error(error)
        except ValueError as error:  # JSON that is none
            fault = Fault(f"the answer is not JSON ({error})")
        raise self._hidden(fault) from None

    async def about(self) -> About:
        """What the server lists. Raises `Fault` if nobody answers or the key is refused."""
        try:
            async with asyncio.timeout(LISTING_S):
                listed = await self._client.get("/models", cast_to=cast(Any, object))
        except openai.APIStatusError as error:
            if error.status_code in (401, 403):
                raise self._hidden(faults.of_error(error)) from None
            return About(None, False)
        except openai.APIError as error:
            raise self._hidden(faults.of_error(error)) from None
        except TimeoutError:
            raise Fault(f"no list of models within {LISTING_S:g} s") from None
        except ValueError:
            return About(None, False)
        models = listed.get("data") if isinstance(listed, dict) else None
        if not isinstance(models, list):
            return About(None, False)
        entries = [model for model in models if isinstance(model, dict)]
        is_kvx = any(model.get("owned_by") == KVX for model in entries)
        return About([str(model.get("id")) for model in entries], is_kvx)

    async def _ask(self, body: Mapping[str, Any]) -> Reply:
        parser, begun = Parser(self.engine.api), time.perf_counter()
        loop, limits = asyncio.get_running_loop(), self.limits
        total = asyncio.timeout(self.total_s)
        pause = asyncio.timeout(limits.first_token_s if self.engine.stream else None)
        try:
            async with total, pause:
                if not self.engine.stream:
                    parser.feed(await self._post(body), time.perf_counter() - begun)
                else:
                    async with await self._open(body) as stream:
                        moved_s = -limits.between_tokens_s
                        async for part in stream:
                            at_s = time.perf_counter() - begun
                            parser.feed(part, at_s)
                            # not for every token: moving a deadline costs as much as parsing
                            late = at_s - moved_s > SLACK * limits.between_tokens_s
                            if late and parser.first_s is not None:
                                moved_s = at_s
                                pause.reschedule(loop.time() + limits.between_tokens_s)
        except TimeoutError:
            raise self._too_slow(parser, total.expired()) from None
        return parser.finish(time.perf_counter() - begun, self.engine.stream)

    async def _open(self, body: Mapping[str, Any]) -> AsyncStream[object]:
        return await self._client.post(
            PATHS[self.engine.api], body=dict(body), cast_to=cast(Any, object), stream=True,
            stream_cls=AsyncStream[object],
        )  # fmt: skip

    async def _post(self, body: Mapping[str, Any]) -> object:
        answer: object = await self._client.post(
            PATHS[self.engine.api], body=dict(body), cast_to=cast(Any, object)
        )
        if not isinstance(answer, dict):
            raise Fault("the answer is not JSON")
        return answer

    def _too_slow(self, parser: Parser, total: bool) -> Fault:
        if total:  # it would be as slow again
            return Fault(f"stopped after {self.total_s:g} s", FailureType.TIMEOUT, transient=False)
        if parser.first_s is None:
            return Fault(f"no token within {self.limits.first_token_s:g} s", FailureType.TIMEOUT)
        return Fault(f"no token for {self.limits.between_tokens_s:g} s", FailureType.TIMEOUT)

    def _hidden(self, fault: Fault) -> Fault:
        fault.message = self._without_key(fault.message)
        return fault

    def _without_key(self, text: str) -> str:
        """Servers like to repeat the key they refuse."""
        return text.replace(self._key, HIDDEN) if self._key else text
