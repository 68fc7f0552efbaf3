"""The checks of kvx.verify, printed one line each."""

import logging
from pathlib import Path

from kvx.analyze.frames import load_experiment
from kvx.config.schema import Config
from kvx.errors import RunFailedError
from kvx.points import experiment_dir
from kvx.store.catalog import unfinished_points
from kvx.train.build import check
from kvx.verify import checks
from kvx.verify.checks import Verdict

log = logging.getLogger(__name__)
MARKS = {Verdict.OK: "ok  ", Verdict.WARN: "warn", Verdict.FAIL: "fail"}


def verify_experiment(config: Config) -> None:
    """Print a line per check. Raises `RunFailedError` if a check failed."""
    check(config.train)
    folder = experiment_dir(config)
    experiment = load_experiment(folder, Path(config.paths.output))
    findings = list(checks.findings(experiment, unfinished_points(folder), config))
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        print(f"{MARKS[finding.verdict]}  {finding.check:<{width}}  {finding.reason}")
    failed = [f.check for f in findings if f.verdict is Verdict.FAIL]
    warned = sum(f.verdict is Verdict.WARN for f in findings)
    if failed:
        raise RunFailedError(f"{folder}: not fit to learn from: {', '.join(failed)}")
    log.info("verify: fit to learn from%s → %s", f", {warned} warnings" * bool(warned), folder)
