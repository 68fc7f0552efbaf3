"""Which requests a controller follows, and what their caches may come to."""

from dataclasses import dataclass, replace

import torch

from kvx.config.guard import Shadow
from kvx.config.identity import is_guarded
from kvx.config.schema import Config
from kvx.engines.kvpress.schedule import RowCost
from kvx.errors import UserError
from kvx.guard.live_checks import check_possible, unguarded
from kvx.points import Point, Request
from kvx.serve.api_errors import invalid

NONE = "none"


@dataclass(frozen=True)
class Cost:
    """Bytes: `total` must be free for a request to begin; `prompt` is its prompt's full cache."""

    total: int
    prompt: int = 0


def with_controller(point: Point, asked: str | None, n_tokens: int) -> Point:
    """The point of a request for `asked` (None: the server's own) with `n_tokens` to compress.

    What keeps its full cache, be it by rounding, has no controller. Raises `ApiError` for another
    controller than the server's, and where it cannot steer the press that was asked for.
    """
    config = point.config
    own = config.controller.name
    if asked not in (None, NONE, own):
        known = own if own == NONE else f"{own} or {NONE}"
        raise invalid(
            f"controller={asked}: this server has {known}; leave the field out for its own",
            "kvx.controller",
            "controller_not_served",
        )
    if asked == NONE or not is_guarded(config) or point.kept_tokens(n_tokens) == n_tokens:
        return replace(point, config=unguarded(config))
    try:
        check_possible(config)
    except UserError as error:
        raise invalid(
            f'{error}; or ask for "controller": "{NONE}"', "kvx.controller", "controller_not_served"
        ) from None
    return point


def cost_of(cost: RowCost, request: Request, device: torch.device) -> Cost:
    """What a request's caches take at most.

    A guarded row may be given its whole prompt beside the compressed one that it then leaves, as it
    is compared with a full cache at its start; on a CPU the shadow is memory of the same kind.
    """
    point = request.point
    if not point.guarded:
        return Cost(cost.of(point, request))
    config: Config = point.config
    plain = replace(point, config=unguarded(config))
    prompt = request.entry.compressed_tokens * cost.entry_bytes
    shadow = config.guard.shadow is Shadow.host and device.type != "cuda"
    both = cost.of(point, request) + cost.of(plain, Request(plain, request.entry))
    return Cost(both + (prompt if shadow else 0), prompt)
