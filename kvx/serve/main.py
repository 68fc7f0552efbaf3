"""python -m kvx.serve: an OpenAI-compatible server whose KV budgets are real."""

from kvx.cli import stage
from kvx.config import Config
from kvx.errors import UserError


def serve(points: list[Config]) -> None:
    if len(points) != 1:
        raise UserError(
            "a server has one press and budget of its own; requests may name others, so leave "
            "the sweep (-m) away"
        )
    from kvx.serve.server import run_server

    run_server(points[0])


main = stage("serve", serve)
