"""The stages of kvx. A new stage is a row here, a file with its work and `conf/<stage>.yaml`."""

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

GROUPS = ("dataset", "engine", "model", "press", "budget", "controller", "experiment")
# sections that stages read
POINTS = ("experiment_name", "seed", "prompt", "decoding")
RUN = (*POINTS, "signals", "measure", "latency", "fidelity", "guard", "run")


@dataclass(frozen=True)
class Stage:
    """`work` is `module:function`, imported when it is called.

    The function takes the list of configurations, and `pool=` if it `takes_pool`. A stage that
    `aggregates` works on what an experiment has on disk: it accepts the arguments of `run`, ignores
    their sweep, and its function takes one configuration.
    """

    name: str
    work: str
    help: str
    reads: tuple[str, ...]  # sections of the configuration, beside the groups and `paths`
    aggregates: bool = False
    takes_pool: bool = False
    positional: tuple[str, ...] = ()  # fields that are given without their names

    def function(self) -> Callable[..., Any]:
        function: Callable[..., Any] = pkgutil.resolve_name(self.work)
        return function


STAGES = {
    stage.name: stage
    for stage in (
        Stage("all", "kvx.all.pipeline:run_pipeline",
              "prepare, run, score, analyze and report; what is there already is skipped",
              (*RUN, "score", "analyze", "report"), takes_pool=True),
        Stage("prepare", "kvx.prepare.build:ensure_manifests",
              "freeze the binned selection of examples (the manifest)", POINTS),
        Stage("run", "kvx.run.bundle:run_points",
              "generate answers for every point; only what is missing is done",
              RUN, takes_pool=True),
        Stage("score", "kvx.score.build:score_experiment",
              "score the answers of an experiment and name its failures",
              ("experiment_name", "score"), aggregates=True),
        Stage("analyze", "kvx.analyze.build:analyze_experiment",
              "bin statistics, paired comparisons, transitions, plots and the SQLite export",
              ("experiment_name", "analyze"), aggregates=True),
        Stage("report", "kvx.report.build:report_experiment",
              "write report.html and report.md from the analysed tables",
              ("experiment_name", "analyze", "report"), aggregates=True),
        Stage("certify", "kvx.certify.build:certify_experiment",
              "the smallest budget that loses at most alpha, with confidence 1 - delta",
              ("experiment_name", "certify"), aggregates=True),
        Stage("compare", "kvx.compare.build:compare_results",
              "two results example by example: kvx's, lm-eval's, inspect's or kvpress's",
              ("compare", "analyze"), aggregates=True, positional=("compare.a", "compare.b")),
        Stage("export", "kvx.export.build:export_experiment",
              "tables as CSV and LaTeX, plots as SVG and PDF, folders for kvpress's board",
              ("experiment_name", "export", "analyze"), aggregates=True),
        Stage("train", "kvx.train.build:train_experiment",
              "the hazard model of an experiment with signals=full, its card, how good it is",
              ("experiment_name", "train"), aggregates=True),
        Stage("simulate", "kvx.simulate.build:simulate_experiment",
              "replay recorded traces through controllers, on prompts that no model has seen",
              ("experiment_name", "simulate", "train"), aggregates=True),
        Stage("verify", "kvx.verify.build:verify_experiment",
              "check that an experiment with signals=full is fit to learn from",
              ("experiment_name", "verify", "train"), aggregates=True),
        Stage("plan", "kvx.plan.build:print_plan",
              "show what a run with the same arguments would do; starts nothing",
              (*RUN, "plan"), takes_pool=True),
        Stage("presses", "kvx.presses.build:print_presses",
              "what every press does and needs, and whether it can be used on a model", ()),
        Stage("status", "kvx.status.build:print_status",
              "show how far an experiment is, from what is on disk; works while it runs",
              ("experiment_name", "status"), aggregates=True),
        Stage("serve", "kvx.serve.start:serve",
              "an OpenAI-compatible server whose KV budgets are real",
              ("prompt", "decoding", "guard", "certificate", "serve")),
    )
}  # fmt: skip

# commands beside the stages: no configuration, arguments of their own
TOOLS = {
    "assets": ("kvx.assets.main:run", "fetch the models and data of the shipped configurations")
}
