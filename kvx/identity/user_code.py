"""The source of classes that a configuration names: found and hashed without importing them.

Importing a user's module may import torch, which a command that has nothing to do does not need. So
modules are looked up as Python would, and their imports are read from their text.

A class of the standard library, of kvx or of an installed distribution is known by a version.
Everything else is the user's own (a module on PYTHONPATH, an editable install, a notebook), known
by its text and that of every user module it imports, directly or not.
"""

import ast
import importlib.machinery
import importlib.metadata
import importlib.util
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from kvx import __version__
from kvx.errors import UserError
from kvx.identity import file_hashes
from kvx.identity.hashing import digest, sha256_text
from kvx.identity.reload import Module, digest_of_main, forget, refresh

MAIN = "__main__"
# with these as `_target_`, the class is named in `path`
GETTERS = ("hydra.utils.get_class", "hydra.utils.get_method", "hydra.utils.get_object")
# versions that points ran with before identities held versions
BEFORE = {"kvpress": "kvpress 0.5.5"}
NOT_NOTED = "not noted"
LIBRARIES = ("kvpress", "transformers", "torch")


def sources_of(node: Any) -> dict[str, str]:
    """The source of every class named in `node`, a part of a configuration.

    `<distribution> <version>` for installed classes, 64 hex digits for the user's own. Classes that
    do not exist are left out: making the object reports them. A module that changed since it was
    imported is forgotten, so that the next import reads it. Raises `UserError` if a file cannot be
    read.
    """
    found = {target: source_of(target) for target in sorted(set(targets(node)))}
    return {target: source for target, source in found.items() if source is not None}


def look_again() -> None:
    """See to it that classes of the user's which this process has looked at are what their files
    say now: a command of the same process may have been given before they were edited.
    """
    for target in list(_known):
        with suppress(UserError):  # whoever needs that file says so
            source_of(target)


def identity_of(sources: Mapping[str, str]) -> dict[str, str]:
    """The part of `sources` that tells points apart.

    kvx's own classes are left out, and so are the versions that all older points ran with: their
    ids stay valid.
    """
    return {
        target: source
        for target, source in sources.items()
        if (top := target.partition(".")[0]) != "kvx" and source != BEFORE.get(top)
    }


def press_code(info: Mapping[str, Any]) -> dict[str, str]:
    """`identity_of` the press of a finished point, from its `point.json`.

    An older kvx recorded versions there, and nothing of a user's own code.
    """
    method = info["config"]["press"]["method"]
    found = info.get("sources")
    if found is None:
        versions = info.get("provenance", {}).get("versions", {})
        tops = {target: target.partition(".")[0] for target in targets(method)}
        found = {
            target: f"{top} {versions[top]}" if top in versions else BEFORE.get(top, NOT_NOTED)
            for target, top in tops.items()
        }
    return identity_of({target: found[target] for target in targets(method) if target in found})


def press_parameters(info: Mapping[str, Any]) -> dict[str, Any]:
    """What tells presses of one name apart: their parameters, and their code where it counts."""
    method = dict(info["config"]["press"]["method"] or {})
    code = press_code(info)
    return method | ({"code": told(code)} if code else {})


def told(code: Mapping[str, str]) -> str:
    """Code for people: a version, or the first digits of a digest."""
    return " ".join(dict.fromkeys(s[:8] if is_users(s) else s for s in code.values()))


def is_users(source: str) -> bool:
    """Whether it is a user's own code."""
    return len(source) == 64 and " " not in source


def targets(node: Any) -> Iterator[str]:
    """Every `_target_` in a nested configuration."""
    if isinstance(node, Mapping):
        target = node.get("_target_")
        if isinstance(target, str):
            named = node.get("path") if target in GETTERS else target
            if isinstance(named, str):
                yield named
        for inner in node.values():
            yield from targets(inner)
    elif isinstance(node, list | tuple):
        for inner in node:
            yield from targets(inner)


def source_of(target: str) -> str | None:
    """The source of `target`; None if there is no such module."""
    top = target.partition(".")[0]
    if top == "kvx":
        return f"kvx {__version__}"
    if top in sys.stdlib_module_names:
        return f"python {sys.version_info.major}.{sys.version_info.minor}"
    if top in LIBRARIES and not _is_checkout(top):
        return _version(top)
    if top == MAIN and getattr(sys.modules[MAIN], "__file__", None) is None:
        return _typed(target.removeprefix(f"{MAIN}."))
    if (known := _known.get(target)) is not None and known.is_current():
        refresh(known.modules)
        return known.source
    if known is not None and any(_real_file(m.file).is_dir() for m in known.modules):
        forget(module.name for module in known.modules)  # a file is gone: the import must fail
    first = _module_of(target)
    if first is None:
        return None
    if not _is_users(top) and top not in LIBRARIES and (version := _version(top)) is not None:
        return version
    modules = _closure([first], top)
    refresh(modules)
    source = sha256_text(digest([[m.name, m.sha256] for m in modules], 64))
    if top in LIBRARIES:
        source = f"{_version(top) or top} edited {source[:16]}"
    _known[target] = Known(source, modules, tuple(map(_signature, modules)), tuple(sys.path))
    return source


def _typed(name: str) -> str | None:
    """The source of a class that was typed into a notebook, with the modules that it uses."""
    typed = digest_of_main(name)
    if typed is None:
        return None
    modules = _closure(typed.modules)
    refresh(modules)
    return sha256_text(digest([typed.sha256, [[m.name, m.sha256] for m in modules]], 64))


@dataclass(frozen=True)
class Known:
    """A source, and the state of the files that it was read from."""

    source: str
    modules: tuple[Module, ...]
    signatures: tuple[file_hashes.Signature, ...]
    path: tuple[str, ...]  # where modules were looked for

    def is_current(self) -> bool:
        return (
            self.path == tuple(sys.path)
            and all(s.is_settled for s in self.signatures)
            and self.signatures == tuple(map(_signature, self.modules))
        )


_known: dict[str, Known] = {}


def _signature(module: Module) -> file_hashes.Signature:
    return file_hashes.signature(_real_file(module.file))


def _real_file(name: str) -> Path:
    """The file of a module, or the archive that it lies in."""
    path = Path(name)
    while not path.exists() and path.parent != path:
        path = path.parent
    return path


def _closure(first: Iterable[str], own: str | None = None) -> tuple[Module, ...]:
    """User modules with all that they import, by name; `own` counts wherever it lies."""
    found: dict[str, Module] = {}
    waiting = list(first)
    while waiting:
        name = waiting.pop()
        for part in _with_parents(name):  # importing a.b runs a too
            top = part.partition(".")[0]
            if part in found or not (top == own or _is_users(top)):
                continue
            if (module := _read(part)) is not None:
                found[part] = module
                waiting += module.imports
    return tuple(found[name] for name in sorted(found))


def _with_parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def _module_of(target: str) -> str | None:
    """The longest part of a dotted name that is a module."""
    found = None
    for name in _with_parents(target):
        if name == MAIN or _spec(name) is not None:
            found = name
        else:
            break
    return found


def _read(name: str) -> Module | None:
    """A module's content; None if it has no file (a namespace) or does not exist."""
    if name == MAIN:
        file = str(sys.modules[MAIN].__file__)
        return _parsed(name, file, file_hashes.sha256(Path(file)), False)
    spec = _spec(name)
    if spec is None or spec.origin is None or spec.loader is None:
        return None
    package = spec.submodule_search_locations is not None
    if Path(spec.origin).is_file():
        return _parsed(name, spec.origin, file_hashes.sha256(Path(spec.origin)), package)
    get_source = getattr(spec.loader, "get_source", None)  # in a zip, say
    try:
        text = get_source(name) if get_source is not None else None
    except (ImportError, OSError):  # its file is gone, and only this process knows it
        return None
    if text is None:
        return None
    return Module(name, spec.origin, sha256_text(text), _imports(text, name, package))


@lru_cache(maxsize=4096)
def _parsed(name: str, file: str, sha256: str, package: bool) -> Module:
    """Compiled code has no text to read imports from: it stands for itself alone."""
    if not file.endswith(".py"):
        return Module(name, file, sha256, ())
    return Module(name, file, sha256, _imports(Path(file).read_bytes(), name, package))


def _imports(text: str | bytes, name: str, package: bool) -> tuple[str, ...]:
    """Every module that a text may import, also in functions; of `from a import b` a and a.b."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return ()  # importing it will say so
    found: set[str] = set()
    inside = name if package else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            try:
                base = importlib.util.resolve_name("." * node.level + (node.module or ""), inside)
            except ImportError:  # beyond the top: importing it will say so
                continue
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and (called := _imported_by_call(node)) is not None:
            found.add(called)
    return tuple(sorted(found))


def _imported_by_call(node: ast.Call) -> str | None:
    """The name in `importlib.import_module("a.b")` or `__import__("a.b")`."""
    called = node.func.attr if isinstance(node.func, ast.Attribute) else None
    called = node.func.id if isinstance(node.func, ast.Name) else called
    if called not in ("import_module", "__import__") or not node.args:
        return None
    value = getattr(node.args[0], "value", None)
    return value if isinstance(value, str) and not value.startswith(".") else None


def _spec(name: str) -> importlib.machinery.ModuleSpec | None:
    """Like `importlib.util.find_spec`, which would import the parents of a module."""
    path: list[str] | None = None
    spec = None
    for part in _with_parents(name):
        spec = _find(part, path)
        if spec is None:
            return None
        if spec.submodule_search_locations is None and part != name:
            return None
        path = list(spec.submodule_search_locations or ())
    return spec


def _find(name: str, path: list[str] | None) -> importlib.machinery.ModuleSpec | None:
    for finder in sys.meta_path:
        try:
            spec = finder.find_spec(name, path)
        except (ImportError, AttributeError, ValueError, KeyError):
            continue
        if spec is not None:
            return spec
    # a namespace inside a package that is not imported yet, as Python would do first
    inside = [Path(place) / name.rpartition(".")[2] for place in path or ()]
    if folders := [str(folder) for folder in inside if folder.is_dir()]:
        spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = folders
        return spec
    loaded = sys.modules.get(name)  # made by hand, or by a finder that is gone
    return getattr(loaded, "__spec__", None)


def _is_users(top: str) -> bool:
    """Whether a top-level module is the user's own: not installed, not Python's."""
    if top in ("kvx", *LIBRARIES) or top in sys.stdlib_module_names:
        return False
    if top == MAIN:
        return True
    spec = _find(top, None)
    if spec is None:
        return False
    places = [spec.origin] if spec.origin is not None else spec.submodule_search_locations or ()
    return any(place not in ("built-in", "frozen") and not _is_installed(place) for place in places)


def _is_installed(place: str) -> bool:
    path = Path(place)
    resolved = path.resolve()
    if {"site-packages", "dist-packages"} & {*path.parts, *resolved.parts}:
        return True
    return any(path.is_relative_to(f) or resolved.is_relative_to(f) for f in _standard_folders())


@lru_cache(maxsize=8)
def _is_checkout(top: str) -> bool:
    """Whether a library can be edited where it lies, so that its version does not identify it."""
    spec = _find(top, None)
    return spec is not None and spec.origin is not None and not _is_installed(spec.origin)


@lru_cache(maxsize=1)
def _standard_folders() -> tuple[Path, ...]:
    names = {sysconfig.get_path(n) for n in ("purelib", "platlib", "stdlib", "platstdlib")}
    return tuple(folder for name in names for folder in {Path(name), Path(name).resolve()})


@lru_cache(maxsize=64)
def _version(top: str) -> str | None:
    """`<distribution> <version>`; None if no distribution has it.

    Libraries that every run has are known by version. For others a digest of the installed files is
    added, because a version is easily installed twice.
    """
    if top in LIBRARIES:
        try:
            return f"{top} {importlib.metadata.version(top)}"
        except importlib.metadata.PackageNotFoundError:
            return None
    for name in importlib.metadata.packages_distributions().get(top, []):
        distribution = importlib.metadata.distribution(name)
        lines = (distribution.read_text("RECORD") or "").splitlines()
        installed = sorted(line for line in lines if line.partition(",")[0].endswith(".py"))
        return f"{name} {distribution.version} {digest(installed)}"
    return None
