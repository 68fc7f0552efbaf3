"""Which requests a controller follows."""

from dataclasses import replace

from kvx.config.identity import is_guarded
from kvx.errors import UserError
from kvx.guard.live_checks import check_possible, unguarded
from kvx.points import Point
from kvx.serve.api_errors import invalid

NONE = "none"


def with_controller(point: Point, asked: str | None, n_tokens: int) -> Point:
    """The point of a request for `asked` (None: the server's own) with `n_tokens` to compress.

    A request that keeps its full cache, even by rounding, has no controller. Raises `ApiError`
    for a controller other than the server's, and for one that cannot steer the request's press.
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
