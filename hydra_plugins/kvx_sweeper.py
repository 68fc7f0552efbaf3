"""Hydra's basic sweeper without its composing of every point, where our launcher does that."""

from collections.abc import Sequence
from dataclasses import dataclass

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore

from kvx.cli.arguments import refuse_sweeps, understood


@dataclass
class KvxSweeperConf:
    _target_: str = "hydra_plugins.kvx_sweeper.KvxSweeper"
    max_batch_size: int | None = None
    params: dict[str, str] | None = None


ConfigStore.instance().store(
    group="hydra/sweeper", name="kvx", node=KvxSweeperConf, provider="kvx_sweeper"
)


class KvxSweeper(BasicSweeper):  # type: ignore[misc, unused-ignore]
    def _parse_config(self) -> list[str]:
        """The sweep of an experiment's file, read as the command line is."""
        params = understood(super()._parse_config())
        assert self.config is not None
        refuse_sweeps(self.config.hydra.job.name, params)
        return params

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Composing all points is slow; a kvx launcher does it once, before anything is started."""
        if not getattr(self.launcher, "composes_all_points", False):
            super().validate_batch_is_legal(batch)
