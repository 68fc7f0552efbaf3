"""Hydra launchers that hand all points of a sweep to the stage as one bundle, and say who works.

Hydra's own launcher calls the stage once per point, which would load the model for each of them.
Stages started through `kvx.cli.command` carry a `bundle` function that takes them all, with a pool
of workers: this process (`kvx`), processes of this machine (`kvx_local`) or SLURM jobs
(`kvx_slurm`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from kvx.errors import UserError

try:
    from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf
except ModuleNotFoundError:  # without kvx[slurm]; the launcher says so when it is chosen

    @dataclass
    class SlurmQueueConf:  # type: ignore[no-redef]
        """Stands in for submitit's fields, so that the other launchers can be listed and chosen."""

        submitit_folder: str = ""


@dataclass
class KvxLauncherConf:
    _target_: str = "hydra_plugins.kvx_launcher.KvxLauncher"


@dataclass
class KvxLocalConf:
    """`workers`: null is one per GPU, else one per four cores; `slices`: null is two per worker."""

    _target_: str = "hydra_plugins.kvx_launcher.KvxLocalLauncher"
    workers: int | None = None
    slices: int | None = None


@dataclass
class KvxSlurmConf(SlurmQueueConf):  # type: ignore[misc, unused-ignore]
    """Submitit's fields, one GPU and one requeue by default; `slices`: null is what fits at once.

    With `wait=false` the jobs are submitted and left alone.
    """

    _target_: str = "hydra_plugins.kvx_launcher.KvxSlurmLauncher"
    slices: int | None = None
    wait: bool = True
    gpus_per_node: int | None = 1
    timeout_min: int = 240
    max_num_timeout: int = 10
    name: str = "kvx"


for _name, _node in (
    ("kvx", KvxLauncherConf),
    ("kvx_local", KvxLocalConf),
    ("kvx_slurm", KvxSlurmConf),
):
    ConfigStore.instance().store(
        group="hydra/launcher", name=_name, node=_node, provider="kvx_launcher"
    )


class KvxLauncher(Launcher):
    """Works in this process."""

    composes_all_points = True

    def __init__(self, **settings: Any) -> None:
        self.settings: dict[str, Any] = {
            k: OmegaConf.to_container(v, resolve=True) if OmegaConf.is_config(v) else v
            for k, v in settings.items()
        }

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config

    def pool(self) -> Any:
        """Who works, a `kvx.run.pools.Pool`; None is this process."""
        return None

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Compose every point, then run them all at once."""
        from kvx.config.field_names import refuse_unknown
        from kvx.config.sweep import compose_sweep

        refuse_unknown(self.config.hydra, "hydra")
        bundle: Any = getattr(self.task_function, "bundle", None)
        if bundle is None:
            raise TypeError("kvx's launchers run kvx's own stages only; use hydra/launcher=basic")
        setup_globals()
        sweep_dir = Path(str(self.config.hydra.sweep.dir)).absolute()
        with read_write(self.config.hydra.runtime), open_dict(self.config.hydra.runtime):
            self.config.hydra.runtime.output_dir = str(sweep_dir)
        HydraConfig.instance().set_config(self.config)
        configure_log(self.config.hydra.job_logging, self.config.hydra.verbose)
        configs = compose_sweep(job_overrides, self.composer())
        bundle(configs, self.pool())
        return [
            JobReturn(overrides=list(o), status=JobStatus.COMPLETED, _return_value=None)
            for o in job_overrides
        ]

    def composer(self) -> Any:
        from kvx.config.composer import Composer

        hydra = self.config.hydra
        loader = self.hydra_context.config_loader
        return Composer(loader, hydra.job.config_name, list(hydra.overrides.hydra), self._compose)

    def _compose(self, overrides: Sequence[str]) -> DictConfig:
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        ours, asked = (c.hydra.runtime.choices["hydra/launcher"] for c in (self.config, config))
        if asked != ours:
            raise UserError(
                f"hydra/launcher={asked}: chosen by one of several experiments; a sweep over "
                f"experiments has one launcher: give hydra/launcher={asked} on the command line"
            )
        for group, option in config.hydra.runtime.choices.items():
            if OmegaConf.is_list(option) and not group.startswith("hydra/"):
                raise UserError(
                    f"{group}=[{','.join(option)}]: a list is no {group}; to sweep, type "
                    f"{group}={','.join(option)}"
                )
        with read_write(config), open_dict(config):
            del config["hydra"]
        return config


class KvxLocalLauncher(KvxLauncher):
    """Works in processes of this machine."""

    def pool(self) -> Any:
        from kvx.run.pools.local import Local

        return Local(**self.settings)


class KvxSlurmLauncher(KvxLauncher):
    """Works in the jobs of SLURM arrays."""

    def pool(self) -> Any:
        import submitit  # noqa: F401  # before anything is prepared for jobs

        from kvx.run.pools.slurm import Slurm

        return Slurm(**self.settings)
