"""python -m kvx.serve: an OpenAI-compatible server whose KV budgets are real."""

from kvx.cli import stage
from kvx.config import BudgetKind, Config
from kvx.errors import UserError
from kvx.live_rules import check_served
from kvx.serve.address import api_key_of, check_limits, listening


def serve(points: list[Config]) -> None:
    if len(points) != 1:
        raise UserError(
            "a server has one press and budget of its own; requests may name others, so leave "
            "the sweep (-m) away"
        )
    (config,), promise = points, None
    if BudgetKind.certified is config.budget.kind or config.certificate is not None:
        from kvx.serve.certified import with_certified_budget

        config, promise = with_certified_budget(config)
    check_served(config)
    check_limits(config.serve)
    key = api_key_of(config.serve)
    with listening(config.serve) as listener:
        from kvx.serve.server import run_server

        run_server(config, key, listener, promise)


main = stage("serve", serve)
