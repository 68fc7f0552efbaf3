"""Places of results that one name would mix up: a press with two settings in one experiment."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from kvx.analyze.naming import differences, flat
from kvx.compare.results import Result

ALONG = ("budget", "seed")  # along these, results of one curve differ


def told_apart(
    left: Sequence[Result], right: Sequence[Result]
) -> tuple[list[Result], list[Result]]:
    """Both sides; where one of them has a name for several things, with the settings that differ.

    `streaming` becomes `streaming(n_sink=2)` on both sides, also where one alone has several.
    What differs between the sides alone changes no name, so that they pair.
    """
    keys: dict[tuple[str, str], set[str]] = defaultdict(set)
    for side in (left, right):
        alike = defaultdict(list)
        for result in side:
            of = {name: at for name, at in result.place.items() if name not in ALONG}
            alike[tuple(sorted(of.items()))].append(result)
        for group in alike.values():
            for name in group[0].behind:
                settings = [flat(result.behind[name]) for result in group]
                known = {key for one in settings for key in one}
                keys[name, group[0].place[name]] |= {
                    key for key in known if len({one.get(key) for one in settings}) > 1
                }
    results = [*left, *right]
    places = [dict(result.place) for result in results]
    for (name, at), told in keys.items():
        here = {i: r for i, r in enumerate(results) if r.place.get(name) == at and name in r.behind}
        shown = {
            str(i): {k: v for k, v in flat(r.behind[name]).items() if k in told}
            for i, r in here.items()
        }
        for i, suffix in differences(shown).items():
            if suffix:
                places[int(i)][name] = f"{at}({suffix})"
    made = [replace(r, place=place) for r, place in zip(results, places, strict=True)]
    return made[: len(left)], made[len(left) :]
