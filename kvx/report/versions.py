"""Whether what a report compares was made with the same libraries."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from kvx.identity.provenance import OF_TOKENS
from kvx.store.catalog import PointRecord


def mixed_versions(points: Sequence[PointRecord]) -> Iterator[str]:
    """A warning for each variant whose answers come from several versions of a library.

    Of points that were resumed with another version, both count.
    """
    variants: dict[str, list[PointRecord]] = defaultdict(list)
    for point in points:
        variants[str(point.info["variant_id"])].append(point)
    for same in variants.values():
        for name in OF_TOKENS:
            found: dict[str, list[str]] = defaultdict(list)
            for point in same:
                first = point.info.get("provenance", {}).get("versions", {})
                for versions in (first, *point.info.get("resumed_with", [])):
                    if name in versions and point.id not in found[versions[name]]:
                        found[versions[name]].append(point.id)
            if len(found) > 1:
                told = "; ".join(f"{v}: {', '.join(ids)}" for v, ids in sorted(found.items()))
                yield (
                    f"**Several versions of {name}.** {told}. Another version may give other "
                    "tokens, so a difference between these points need not come from compression."
                )
