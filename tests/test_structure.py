"""The shape of the package: imports point down, in no circle, and every name says one thing."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter

import grimp
import pytest

from kvx.cli.stages import STAGES, TOOLS
from kvx.config.folders import package_dir

# from the bottom up; rooms of one line do not import those beside them, stages aside
LAYERS = (
    ("errors",),
    ("config",),
    ("identity",),
    ("text", "scoring", "stats"),
    ("guard",),
    ("learning",),
    ("data",),
    ("points",),
    ("engines",),
    ("store",),
    ("cli",),
    (*STAGES, *TOOLS),
    ("experiment", "__main__"),
)
LONGEST = 400  # lines of a file
ROOT = {"__init__", "__main__", "errors", "experiment", "points"}
# names that stand for the same job in several rooms, or for the option that they implement
SYMMETRIC = {
    "__main__", "arguments", "base", "build", "checks", "engine", "guarded", "hazard",
    "instructions", "local", "page", "proof",
}  # fmt: skip


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    """Every import in the source, also those inside functions; not those for types alone."""
    return grimp.build_graph("kvx", cache_dir=None, exclude_type_checking_imports=True)


def room(module: str) -> str:
    """`config` of `kvx.config.schema`; the package itself has none."""
    return module.partition(".")[2].partition(".")[0]


def cycle(edges: Mapping[str, Iterable[str]]) -> list[str]:
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_file_imports_itself_in_the_end(graph: grimp.ImportGraph) -> None:
    assert graph.find_modules_directly_imported_by("kvx.run.worker") > {"kvx.run.planning"}
    assert cycle({m: graph.find_modules_directly_imported_by(m) for m in graph.modules}) == []


def test_imports_point_down(graph: grimp.ImportGraph) -> None:
    rank = {name: at for at, names in enumerate(LAYERS) for name in names}
    assert {room(module) for module in graph.modules} - {""} == rank.keys()
    edges: dict[str, set[str]] = defaultdict(set)
    up = []
    for module in graph.modules - {"kvx"}:
        for imported in graph.find_modules_directly_imported_by(module) - {"kvx"}:
            one, other = room(module), room(imported)
            if one != other:
                edges[one].add(other)
                beside = rank[other] == rank[one] and one not in STAGES
                if rank[other] > rank[one] or beside:
                    up.append(f"{module} → {imported}")
    assert up == []
    assert cycle(edges) == []


def test_the_table_of_stages_imports_none_of_them(graph: grimp.ImportGraph) -> None:
    assert graph.find_modules_directly_imported_by("kvx.cli.stages") == set()


def test_few_modules_stand_beside_the_rooms() -> None:
    assert {file.stem for file in package_dir().glob("*.py")} == ROOT


def test_no_file_is_longer_than_can_be_read() -> None:
    folders = (package_dir(), package_dir().parent / "hydra_plugins")
    lengths = {
        file: len(file.read_text(encoding="utf-8").splitlines())
        for folder in folders
        for file in folder.rglob("*.py")
    }
    assert len(lengths) > 200
    assert {file: n for file, n in lengths.items() if n > LONGEST} == {}


def test_a_name_says_one_thing(graph: grimp.ImportGraph) -> None:
    named: dict[str, set[str]] = defaultdict(set)
    rooms = {room(module) for module in graph.modules}
    for module in graph.modules - {"kvx"}:
        name = module.rpartition(".")[2]
        if name not in SYMMETRIC and (room(module) != "config" or name not in rooms):
            named[name].add(module)  # kvx.config.<room> is the configuration of a room
    assert {name: modules for name, modules in named.items() if len(modules) > 1} == {}
