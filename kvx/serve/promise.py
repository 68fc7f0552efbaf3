"""Which answers of a server are made under the promise of its certificate."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from kvx.config.guard import StreamPolicy
from kvx.config.identity import is_guarded
from kvx.config.schema import Config, DecodingConfig
from kvx.data.prompt import PromptParts
from kvx.serve.requests import Generation

if TYPE_CHECKING:
    from kvx.certify.certificate import Certificate

Json = dict[str, Any]


@dataclass(frozen=True)
class Promise:
    """A certificate that the server was checked against, and the name of its `file`."""

    certificate: "Certificate"
    file: str

    def body(self) -> Json:
        """What `/v1/models` says about it."""
        made = self.certificate
        used = made.device_use
        assert made.budget is not None
        return {
            "file": self.file, "digest": made.digest, "loss": made.loss, "metric": made.metric,
            "alpha": made.alpha, "delta": made.delta, "budget": made.budget.budget,
            "controller": made.controller["label"],
            "mean_budget": None if used is None else asdict(used),
            "max_tokens": made.setup["decoding"]["max_new_tokens"],
            "compressed_tokens": made.setup["compressed_tokens"],
        }  # fmt: skip

    def covers(self, own: Config, asked: Generation, config: Config, parts: PromptParts) -> bool:
        """Whether `asked` is of the kind that was certified, as far as a server can tell.

        `own` is the server's configuration, which is the certificate's; `config` what the request
        comes to, its controller aside.
        """
        setup = self.certificate.setup
        low, high = setup["compressed_tokens"]
        return (
            config.press == own.press
            and config.budget == own.budget
            and asked.kvx.controller in (None, own.controller.name)
            and not _takes_less_back(own, asked)
            and _splits_alike(asked, parts, setup["query_aware"])
            and low <= len(parts.compressed_ids) <= high
            and _decodes_alike(config.decoding, setup["decoding"])
            and not asked.ignore_eos
            and set(asked.stops or own.decoding.until) == set(setup["decoding"].get("until") or [])
        )


def _takes_less_back(own: Config, asked: Generation) -> bool:
    """Whether streaming keeps its controller from taking back what the certified one could."""
    holds = is_guarded(own) and own.guard.stream is StreamPolicy.hold
    return holds and bool(asked.stream) and own.controller.reach > 0


def _splits_alike(asked: Generation, parts: PromptParts, query_aware: bool) -> bool:
    """Whether the press sees the same part of a prompt: all of it, or a context before the rest."""
    if query_aware:
        return asked.kvx.compress_chars is None
    return asked.kvx.compress_chars is not None and bool(parts.rest_ids)


def _decodes_alike(here: DecodingConfig, certified: Json) -> bool:
    if here.max_new_tokens != certified["max_new_tokens"]:
        return False
    if here.temperature != certified["temperature"]:
        return False
    return here.temperature == 0 or all(
        getattr(here, name) == certified[name] for name in ("top_p", "top_k")
    )
