"""What is checked before the server starts: one point, its engine, its budget, its key."""

from kvx.config.schema import BudgetKind, Config
from kvx.errors import UserError
from kvx.guard.live_checks import check_served
from kvx.serve.address import api_key_of, listening

ENGINE = "kvx.engines.kvpress.engine.KVPressEngine"


def serve(points: list[Config]) -> None:
    if len(points) != 1:
        raise UserError(
            "a server has one press and budget of its own; requests may name others, so leave "
            "out the sweep (-m)"
        )
    (config,), promise = points, None
    _check_engine(config)
    if BudgetKind.certified is config.budget.kind or config.certificate is not None:
        from kvx.serve.certified import with_certified_budget

        config, promise = with_certified_budget(config)
    check_served(config)
    key = api_key_of(config.serve)
    with listening(config.serve) as listener:
        from kvx.serve.server import run_server

        run_server(config, key, listener, promise)


def _check_engine(config: Config) -> None:
    """Raises `UserError` for an engine that would be ignored."""
    if config.engine._target_ != ENGINE:
        raise UserError(
            f"engine={config.engine.name}: kvx.serve generates itself, with engine=kvpress; leave "
            "engine out, or use kvx.run to measure another server"
        )
