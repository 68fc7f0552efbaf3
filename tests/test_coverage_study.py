"""scripts/coverage_study.py in small: it measures, goes on where it stopped, and finds faults."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvx.stats import clustered
from kvx.stats.intervals import Interval
from scripts import coverage_worlds as worlds
from scripts.coverage_base import Part, Result, Setting
from scripts.coverage_study import PARTS, code_behind, page, run, section

MEANS = next(part for part in PARTS if part.name == "means")
DIFFERENCES = next(part for part in PARTS if part.name == "differences")


def only(part: Part, repeats: int, **wanted: Any) -> Part:
    """`part` in the settings that have the `wanted` values."""
    settings = [s for s in part.settings if all(s[k] == v for k, v in wanted.items())]
    assert settings
    return Part(**{**vars(part), "settings": settings, "repeats": repeats})


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_every_part_measures_what_it_asks_for(part: Part) -> None:
    size = next(name for name in ("n", "texts", "n per length") if name in part.settings[0])
    large = max(s[size] for s in part.settings)
    settings = [s for s in part.settings if s[size] == large]
    for setting in (settings[0], settings[len(settings) // 2], settings[-1]):
        result = part.measure(setting, 4, np.random.default_rng(1))
        shown = [ask for ask in part.asks if ask.known(setting, result)]
        assert shown, (setting, result)
        assert all(0 <= result[ask.k] <= result[ask.n] <= 4 for ask in shown)
        assert section(part, [(setting, {**result, "times": 4})]).startswith(f"## {part.title}\n")


def test_sound_intervals_and_tests_pass(tmp_path: Path) -> None:
    parts = [
        only(MEANS, 150, world="5 a text, ICC 0.4", n=200, rate=0.5),
        only(MEANS, 150, world="independent", n=50),
        only(DIFFERENCES, 150, world="5 a text, ICC 0.4", n=200, lost=0.5, discordance=0.2),
    ]
    for part in parts:
        found = run([part], 1.0, 0, tmp_path / "store.jsonl")[part.name]
        assert not any(ask.short(*row) for row in found for ask in part.asks)
    said = f"None of {len(found)} settings falls short, as far as 150 repeats can tell."
    assert said in section(parts[-1], found)


def test_intervals_that_ignore_clusters_are_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if every question were a text of its own: 38% of the intervals miss."""
    of_clusters = clustered.means

    def naive(cells: Any, confidence: float) -> Any:
        return of_clusters([(v, list(range(len(c)))) for v, c in cells], confidence)

    part = only(MEANS, 150, world="5 a text, ICC 0.7", n=200, rate=0.5)
    monkeypatch.setattr(clustered, "means", naive)
    text = section(part, run([part], 1.0, 0, tmp_path / "store.jsonl")["means"])
    assert "1 of 1 settings fall short; the worst:" in text


def test_unknown_intervals_are_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(cells: Any, confidence: float) -> Any:
        none = Interval(float("nan"), float("nan"))
        return [clustered.Mean(0, 0, 0.0, 0.0, none, clustered.TOO_FEW) for _ in cells]

    monkeypatch.setattr(clustered, "means", unknown)
    part = only(MEANS, 5, world="independent", n=50, rate=0.5)
    ((_, result),) = run([part], 1.0, 0, tmp_path / "store.jsonl")["means"]
    assert (result["repeats"], result["known"]) == (5, 0)


def test_it_goes_on_where_it_stopped(tmp_path: Path) -> None:
    asked: list[Setting] = []

    def measure(setting: Setting, repeats: int, rng: np.random.Generator) -> Result:
        asked.append(setting)
        return MEANS.measure(setting, repeats, rng)

    part = Part(**{**vars(only(MEANS, 3, world="independent", n=10)), "measure": measure})
    store = tmp_path / "store.jsonl"
    first = run([part], 1.0, 0, store)
    lines = store.read_text().splitlines(keepends=True)
    store.write_text("".join(lines[:2]) + lines[2][:20])  # killed while it wrote the third
    assert run([part], 1.0, 0, store) == first
    assert len(asked) == 2 * len(part.settings) - 2
    assert run([part], 1.0, 0, store) == first
    assert len(asked) == 2 * len(part.settings) - 2
    assert run([part], 0.5, 0, store) == first  # more repeats than were asked for
    assert len(asked) == 2 * len(part.settings) - 2
    assert run([part], 1.0, 1, store) != first  # another seed
    assert run([part], 2.0, 0, store)["means"][0][1]["times"] == 6
    behind = {file.name for file in code_behind(Path(inspect.getfile(MEANS.measure)))}
    assert behind > {"clustered.py", "intervals.py", "coverage_worlds.py"}
    assert "betting.py" not in behind
    assert page({"means": first["means"]}, 0).startswith("# Are the statistics right?")


@pytest.mark.parametrize("world", worlds.WORLDS.values(), ids=lambda world: world.name)
def test_the_truth_is_true(world: worlds.World) -> None:
    """Means and differences of large samples are what the study takes for the truth."""
    rng = np.random.default_rng(3)
    n = 60_000
    values, clusters = worlds.scores(world, n, 0.1, rng)
    assert len(values) == len(clusters) == n
    assert values.mean() == pytest.approx(0.1, abs=0.01)
    for lost in (0.5, 0.75, 1.0):
        here, full, _ = worlds.pairs(world, n, 0.2, lost, rng)
        truth = worlds.true_difference(world, 0.2, lost)
        assert (here - full).mean() == pytest.approx(truth, abs=0.01)
        assert ((here != full).mean()) == pytest.approx(0.2, abs=0.02)
    if not world.graded:
        rates = [0.9, 0.5, 0.2]
        scores, _ = worlds.curve(world, n, rates, rng)
        assert scores.mean(axis=1) == pytest.approx(rates, abs=0.02)
        assert (np.diff(scores, axis=0) <= 0).all()
