"""What a comparison says: sentences and a table, for a terminal, Markdown and LaTeX."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from kvx.compare.pairing import WORDS
from kvx.compare.table import Comparison
from kvx.config.numbers import plural
from kvx.report.booktabs import booktabs
from kvx.report.tables import markdown
from kvx.report.wording import percent

MANY_SETTINGS = 25
METHODS = {
    "newcombe": "Newcombe's interval and McNemar's exact test (independent right/wrong pairs)",
    "cluster_t": "Student's interval over clusters and a sign-flip test of their sums",
    "all_alike": "all pairs differ by the same: exact interval over clusters, sign-flip test",
    "no_data": "none, for want of a pair",
    "too_few_clusters": "too few clusters for an interval or a test",
}
TOKENIZER = "manifest.tokenizer_hash"


@dataclass(frozen=True)
class Page:
    """The comparisons of `a` and `b`, with their rows of `table.frame`.

    `apart` is the number of matches without a common example.
    """

    a: str
    b: str
    comparisons: Sequence[Comparison]
    rows: pd.DataFrame
    apart: int
    confidence: float

    def text(self) -> str:
        """For a terminal."""
        header, cells = self._table()
        grid = [[str(c) for c in line] for line in (header, *cells)]
        widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
        lines = [
            "  ".join(
                c.ljust(w) if at == 0 else c.rjust(w)
                for at, (c, w) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in grid
        ]
        return "\n".join([*self._head(), "", *lines, "", *self._notes(), *self._settings()])

    def markdown(self) -> str:
        header, cells = self._table()
        notes = [f"- {line}" for line in self._notes()]
        settings = list(self._settings())
        parts = [f"# {self.b} against {self.a}", "\n".join(self._head()), markdown(header, cells)]
        parts += ["\n".join(notes)]
        if settings:
            parts += [settings[0], "\n".join(f"- {line.strip()}" for line in settings[1:])]
        return "\n\n".join(parts) + "\n"

    def latex(self) -> str:
        header, cells = self._table()
        level = percent(self.confidence)
        return booktabs(header, cells, f"{self.b} against {self.a}; {level} intervals.")

    def _head(self) -> list[str]:
        if len(self.comparisons) > 1:
            return [f"a = {self.a}", f"b = {self.b}"]
        return [f"a = {self.comparisons[0].a.label}", f"b = {self.comparisons[0].b.label}"]

    def _table(self) -> tuple[list[str], list[list[str]]]:
        names = self._told_apart()
        header = [*names, "mean a", "mean b", "b − a", "p", "lost", "won", "pairs", "clusters"]
        if len(self.comparisons) > 1:
            header[header.index("p")] = "p (Holm)"
        missing = bool(self.rows[["missing_a", "missing_b"]].to_numpy().any())
        if missing:
            after_p = header.index("lost")
            header[after_p:after_p] = ["missing a", "missing b"]
            header += ["b − a, complete", f"{header[after_p - 1]}, complete"]
        cells = []
        for c, (_, row) in zip(self.comparisons, self.rows.iterrows(), strict=True):
            line = [_place(c, name) for name in names]
            line += [_number(row["mean_a"]), _number(row["mean_b"]), _difference(row, "")]
            line += [_p(row["p_holm"])]
            line += [str(row["missing_a"]), str(row["missing_b"])] if missing else []
            line += [str(row[n]) for n in ("n_lost", "n_won", "n_pairs", "n_clusters")]
            if missing:
                line += [_difference(row, "complete_"), _p(row["complete_p_holm"])]
            cells.append(line)
        return header, cells

    def _told_apart(self) -> list[str]:
        """The properties that tell the rows apart; the metric where they need none."""
        places = [{n: _place(c, n) for n in _names(c)} for c in self.comparisons]
        names = list(dict.fromkeys(n for place in places for n in place))
        differ = [n for n in names if len({p.get(n, "–") for p in places}) > 1]
        return differ or ["metric"]

    def _notes(self) -> Iterator[str]:
        rows = self.rows
        metrics = {(c.metric_a, c.metric_b) for c in self.comparisons}
        for ours, theirs in sorted(metrics):
            yield f"metric: {ours}" if ours == theirs else f"a is scored by {ours}, b by {theirs}"
        level = percent(self.confidence)
        for method in dict.fromkeys(rows["method"]):
            yield f"{level} intervals: {METHODS.get(method, method)}"
        if len(rows) > 1:
            yield f"p is corrected by Holm for {plural(len(rows), 'comparison')}"
        by = dict.fromkeys(c.pairs.by for c in self.comparisons)
        yield "paired by " + ", or ".join(WORDS[key] for key in by)
        yield from self._of_missing()
        for side, name in (("a", self.a), ("b", self.b)):
            if (most := int(rows[f"only_{side}"].max())) > 0:
                least = int(rows[f"only_{side}"].min())
                many = f"{most:,}" if least == most else f"{least:,}–{most:,}"
                yield f"only in {side} ({name}), and not compared: {many} examples"
        if self.apart:
            yield f"left out without a common example: {plural(self.apart, 'comparison')}"
        yield from dict.fromkeys(n for c in self.comparisons for n in c.pairs.notes)
        for side in ("a", "b"):
            told = [n for c in self.comparisons for n in getattr(c, side).notes]
            yield from dict.fromkeys(f"{side}: {note}" for note in told)
        hashes = {(c.a.settings.get(TOKENIZER), c.b.settings.get(TOKENIZER))
                  for c in self.comparisons}  # fmt: skip
        if any(x and y and x != y for x, y in hashes):
            yield (
                "the tokenizers differ: the same text has other lengths, so budgets in tokens and "
                "length bins do not mean the same"
            )

    def _of_missing(self) -> Iterator[str]:
        """How missing answers count in the rows that have some."""
        some = [c for c in self.comparisons if c.missing_a or c.missing_b]
        bounded = [c for c in some if c.bounded]
        for side in ("a", "b"):
            if any(c.reference == side and getattr(c, f"missing_{side}") for c in bounded):
                yield (
                    f"{side} is a full cache: pairs without its answer are left out, there is "
                    "nothing to lose"
                )
        if bounded:
            other = "other " if any(c.reference for c in bounded) else ""
            yield (f"{other}missing answers count as wrong; complete: the pairs with both answers")
        if len(bounded) < len(some):
            yield ("missing answers are left out: scores are not within 0 and 1, so none is worst")

    def _settings(self) -> Iterator[str]:
        """The settings that differ between a and b, a line each."""
        told: dict[str, set[tuple[str, str]]] = {}
        for c in self.comparisons:
            if c.a.kind != c.b.kind:
                told.setdefault("measured by", set()).add((c.a.kind, c.b.kind))
                continue
            for name in sorted(c.a.settings.keys() | c.b.settings.keys()):
                pair = (_shown(c.a.settings.get(name)), _shown(c.b.settings.get(name)))
                if pair[0] != pair[1]:
                    told.setdefault(name, set()).add(pair)
        if not told:
            return
        yield "Settings that differ:"
        for name, pairs in list(told.items())[:MANY_SETTINGS]:
            ours, theirs = min(pairs)
            same = len(pairs) == 1
            yield f"  {name}: {ours} → {theirs}" if same else f"  {name}: differs from row to row"
        if len(told) > MANY_SETTINGS:
            yield f"  and {len(told) - MANY_SETTINGS} more"


def _names(c: Comparison) -> list[str]:
    return [*dict.fromkeys([*c.a.place, *c.b.place])]


def _place(c: Comparison, name: str) -> str:
    """A property of both sides: `snapkv`, or `none → snapkv` where they differ."""
    if name == "metric":
        return c.metric_a if c.metric_a == c.metric_b else f"{c.metric_a} → {c.metric_b}"
    ours, theirs = c.a.place.get(name), c.b.place.get(name)
    if ours is None or theirs is None:
        return ours or theirs or "–"
    return ours if ours == theirs else f"{ours} → {theirs}"


def _number(value: float) -> str:
    return "–" if pd.isna(value) else f"{value:.3f}"


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _difference(row: "pd.Series[Any]", of: str) -> str:
    value, low, high = (row[f"{of}{name}"] for name in ("difference", "ci_low", "ci_high"))
    if pd.isna(value):
        return "–"
    between = "no interval" if pd.isna(low) else f"{_signed(low)}, {_signed(high)}"
    return f"{_signed(value)} [{between}]"


def _p(value: float) -> str:
    if pd.isna(value):
        return "–"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _shown(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
