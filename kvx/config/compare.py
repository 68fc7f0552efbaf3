"""Structured configuration of kvx.compare."""

from dataclasses import dataclass

from kvx.config.fields import option


@dataclass
class CompareConfig:
    """Two results, example by example."""

    a: str | None = option(
        None,
        "the first result, which the second is compared with: an experiment's name or folder, "
        "`<experiment>/<start of a point's id>`, or a file or folder of lm-eval, inspect_ai or "
        "kvpress (docs/compare.md)",
    )
    b: str | None = option(None, "the second result, of the same kinds")
    metric: str | None = option(None, "what is compared; null: the primary metric of `a`")
    metric_b: str | None = option(None, "what `b` calls it, where that is another name")
    cluster: str | None = option(
        None,
        "a field of the examples (lm-eval: of doc, inspect: of metadata, kvpress: a column) whose "
        "equal values belong together; kvx experiments know theirs",
    )
    output: str | None = option(None, "folder of the tables; null: <paths.output>/compare/<a>--<b>")
