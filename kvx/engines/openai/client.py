"""One attempt of one request at one server, with time-outs; knows nothing of retries or points."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import openai
from openai import AsyncOpenAI, AsyncStream, Timeout

from kvx.config import environment
from kvx.config.engine import Api, OpenAIConfig
from kvx.config.schema import Config
from kvx.engines.openai import checks
from kvx.engines.openai import fault as faults
from kvx.engines.openai.fault import Fault
from kvx.engines.openai.reply import Parser, Reply
from kvx.engines.openai.sse import Events
from kvx.scoring.failures import FailureType

ANYTHING = cast(Any, object)  # the client's word for "parse nothing"
PATHS = {Api.completions: "/completions", Api.chat: "/chat/completions"}
KVX = "kvx"  # what a kvx server says it is owned by
HIDDEN = "[OPENAI_API_KEY]"
NO_KEY = "none"  # the client insists on one
LISTING_S = 15.0
SLACK = 0.1  # of the time between tokens, by which its time-out may come too early
DRAIN_S = 0.1  # for the last bytes of a stream: only then is the connection used again


@dataclass(frozen=True)
class About:
    """What a server lists: model names (None: it has no list), whether it is kvx.serve, and the
    presses that it then serves (None: not known).
    """

    models: Sequence[str] | None
    is_kvx: bool
    presses: Sequence[str] | None = None


def settings(config: Config) -> OpenAIConfig:
    engine = config.engine
    assert isinstance(engine, OpenAIConfig)
    return engine


class Client:
    """A server, for one event loop; close it when done."""

    def __init__(self, url: str, config: Config) -> None:
        self.url, self.engine = url, settings(config)
        self.limits = self.engine.timeouts
        self._key = environment.read(environment.API_KEY)
        checks.check_key(self._key, self.engine)
        self._client = AsyncOpenAI(
            api_key=self._key or NO_KEY,
            base_url=url,
            max_retries=0,
            timeout=Timeout(None, connect=self.limits.connect_s),
        )
        self.close = self._client.close

    async def ask(
        self, body: Mapping[str, Any], total_s: float, until: Sequence[str] = ()
    ) -> Reply:
        """Send one request and read its whole answer within `total_s`, cut at a stop string.

        Raises `Fault`.
        """
        try:
            return await self._ask(body, total_s, Parser(self.engine.api, until))
        except Fault as error:
            fault = error
        except openai.APIError as error:
            fault = faults.of_error(error)
            if fault.status in faults.NO_PATH and "model" not in fault.message.lower():
                fault.message += f" ({faults.OTHER_API[self.engine.api.name]})"
        except (ValueError, RecursionError) as error:  # broken JSON
            fault = Fault(f"the answer is not JSON ({error})")
        raise self._shown(fault) from None

    async def about(self) -> About:
        """What the server lists. Raises `Fault` if nobody answers or the key is refused."""
        try:
            async with asyncio.timeout(LISTING_S):
                listed = await self._client.get("/models", cast_to=ANYTHING)
        except openai.APIStatusError as error:
            if error.status_code in (401, 403):
                raise self._shown(faults.of_error(error)) from None
            return About(None, False)
        except openai.APIError as error:
            raise self._shown(faults.of_error(error)) from None
        except TimeoutError:
            raise Fault(f"no list of models within {LISTING_S:g} s") from None
        except ValueError:
            return About(None, False)
        models = listed.get("data") if isinstance(listed, dict) else None
        if not isinstance(models, list):
            return About(None, False)
        entries = [model for model in models if isinstance(model, dict)]
        is_kvx = any(model.get("owned_by") == KVX for model in entries)
        served = [m[KVX].get("presses") for m in entries if isinstance(m.get(KVX), dict)]
        presses = served[0] if is_kvx and served and isinstance(served[0], list) else None
        return About([str(model.get("id")) for model in entries], is_kvx, presses)

    async def has(self, api: Api) -> bool:
        """Whether the server has the path of `api`; False only if the server says so.

        A path that exists answers GET with 405 on most servers. Servers that answer 404 to a wrong
        method, too (llama.cpp, Ollama), are sent a request without a prompt.
        """
        name = str(self.engine.model)
        answer: object
        for body in (None, {"model": name, "max_tokens": 1}):
            try:
                async with asyncio.timeout(LISTING_S):
                    if body is None:
                        answer = await self._client.get(PATHS[api], cast_to=ANYTHING)
                    else:
                        answer = await self._client.post(PATHS[api], body=body, cast_to=ANYTHING)
            except openai.APIStatusError as error:
                missing = (404,) if body is None else faults.NO_PATH
                if error.status_code not in missing or faults.is_about_model(error):
                    return True
                continue
            except (openai.APIError, TimeoutError, ValueError):
                return True  # the first request will say what is wrong
            if not faults.is_wrong_path(answer):
                return True
        return False

    async def _ask(self, body: Mapping[str, Any], total_s: float, parser: Parser) -> Reply:
        begun, whole = time.perf_counter(), True
        total = asyncio.timeout(total_s)
        pause = asyncio.timeout(self.limits.first_token_s if self.engine.stream else None)
        try:
            async with total, pause:
                if self.engine.stream:
                    whole = await self._read(body, parser, begun, pause)
                else:
                    parser.feed(await self._post(body), time.perf_counter() - begun)
        except TimeoutError:
            if total.expired():  # it would be as slow again
                what, again = f"stopped after {total_s:g} s", False
            elif parser.first_s is None:
                what, again = f"no token within {self.limits.first_token_s:g} s", True
            else:
                what, again = f"no token for {self.limits.between_tokens_s:g} s", True
            raise Fault(what, FailureType.TIMEOUT, transient=again) from None
        return parser.finish(time.perf_counter() - begun, self.engine.stream, whole)

    async def _read(
        self, body: Mapping[str, Any], parser: Parser, begun: float, pause: asyncio.Timeout
    ) -> bool:
        """Feed the parser with a stream, moving `pause` on while tokens come.

        Returns whether the server marked the end of the stream.
        """
        loop, between_s, events = asyncio.get_running_loop(), self.limits.between_tokens_s, Events()
        moved_s = -between_s
        path, kind = PATHS[self.engine.api], AsyncStream[object]
        opened = await self._client.post(
            path, body=dict(body), cast_to=ANYTHING, stream=True, stream_cls=kind
        )
        async with (
            opened as stream,
            contextlib.aclosing(_pieces(stream.response)) as pieces,
        ):
            async for piece in pieces:
                at_s = time.perf_counter() - begun
                for part in events.feed(piece):
                    parser.feed(part, at_s)
                if events.done:
                    await _drain(pieces)
                    return True
                # not for every token: moving a deadline costs as much as parsing
                if parser.first_s is not None and at_s - moved_s > SLACK * between_s:
                    moved_s = at_s
                    pause.reschedule(loop.time() + between_s)
        return False

    async def _post(self, body: Mapping[str, Any]) -> object:
        path = PATHS[self.engine.api]
        answer: object = await self._client.post(path, body=dict(body), cast_to=ANYTHING)
        if not isinstance(answer, dict):
            raise Fault("the answer is not JSON")
        if faults.is_wrong_path(answer):
            raise faults.of_object(answer.get("error"))
        return answer

    def _shown(self, fault: Fault) -> Fault:
        """The fault without the key, which servers may repeat, and may cut in half."""
        text = fault.message.replace(self._key, HIDDEN) if self._key else fault.message
        fault.message = faults.line(text)
        return fault


async def _pieces(response: Any) -> AsyncGenerator[bytes, None]:
    """The bytes of a response. Raises `Fault` if the connection breaks."""
    try:
        async for piece in response.aiter_bytes():
            yield piece
    except Exception as error:  # noqa: BLE001  of whichever HTTP library the client uses
        raise faults.lost(error) from None


async def _drain(pieces: AsyncIterator[bytes]) -> None:
    with contextlib.suppress(TimeoutError, Fault):
        async with asyncio.timeout(DRAIN_S):
            async for _ in pieces:
                pass
