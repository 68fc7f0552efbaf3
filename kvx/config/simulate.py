"""Configuration of kvx.simulate."""

from dataclasses import dataclass

from kvx.config.fields import option


@dataclass
class SimulateConfig:
    """Controllers judged on recorded signals."""

    controllers: list[str] = option(
        [
            "none",
            "conservative",
            "balanced",
            "aggressive",
            "reactive",
            "rule_based",
            "always_safe",
            "random",
        ],
        "options of the group controller; one given as controller=… is added",
    )
    match: str = option("balanced", "whose trigger rate the random controller gets")
    random_repeats: int = option(20, "random controllers that are averaged", at_least=1)
    lateness_tokens: int | None = option(
        None,
        "how long after the onset an alarm may come and still count; null: as long as its rollback "
        "reaches back to the onset",
        at_least=0,
    )
    n_thresholds: int = option(24, "thresholds of each sweep of the Pareto front", at_least=2)
    n_boot: int = option(2_000, "bootstrap samples", at_least=100)
    confidence: float = option(0.95, "level of the confidence intervals", above=0, below=1)
    seed: int = option(0, "seed of the bootstrap and the random controllers", at_least=0)
