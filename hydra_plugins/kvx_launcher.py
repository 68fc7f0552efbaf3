"""Hydra launcher that hands all points of a sweep to the stage as one bundle, in this process.

Hydra's own launcher calls the stage once per point, which would load the model for each of them.
Stages started through `kvx.cli` carry a `bundle` function that takes them all.
"""

import copy
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


@dataclass
class KvxLauncherConf:
    _target_: str = "hydra_plugins.kvx_launcher.KvxLauncher"


ConfigStore.instance().store(
    group="hydra/launcher", name="kvx", node=KvxLauncherConf, provider="kvx_launcher"
)


class KvxLauncher(Launcher):
    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Compose every point, then run them all at once."""
        setup_globals()
        sweep_dir = Path(str(self.config.hydra.sweep.dir)).absolute()
        with read_write(self.config.hydra.runtime), open_dict(self.config.hydra.runtime):
            self.config.hydra.runtime.output_dir = str(sweep_dir)
        HydraConfig.instance().set_config(self.config)
        configure_log(self.config.hydra.job_logging, self.config.hydra.verbose)
        jobs = [self._compose(list(o), initial_job_idx + i) for i, o in enumerate(job_overrides)]
        bundle: Any = getattr(self.task_function, "bundle", None)
        if bundle is None:
            raise TypeError(
                "hydra/launcher=kvx runs kvx's own stages only; use hydra/launcher=basic"
            )
        bundle([job.cfg for job in jobs])
        return jobs

    def _compose(self, overrides: list[str], number: int) -> JobReturn:
        config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        task = copy.deepcopy(config)
        with read_write(task), open_dict(task):
            del task["hydra"]
        done = JobReturn(
            overrides=overrides, cfg=task, hydra_cfg=config, status=JobStatus.COMPLETED
        )
        done.working_dir = str(Path.cwd())
        done.task_name = str(OmegaConf.select(config, "hydra.job.name"))
        return done
