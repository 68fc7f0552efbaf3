"""Objects of one kind by name: kvx's own, those of entry points, and a user's by dotted path."""

import difflib
import importlib
import importlib.metadata
import pkgutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, TypeVar

from kvx.errors import UserError, first_line, show_traceback
from kvx.identity import user_code

T = TypeVar("T")


@dataclass(frozen=True)
class Registry(Generic[T]):
    """Objects of the class `of`.

    kvx's own are the module-level objects of the modules in `package`, imported on the first
    lookup. Entry points in `group` and dotted paths name all others.
    """

    kind: str
    of: type[T]
    package: str
    group: str

    @cached_property
    def built_in(self) -> dict[str, T]:
        """kvx's own by the name they have in their module."""
        package = importlib.import_module(self.package)
        found: dict[str, T] = {}
        for module in pkgutil.iter_modules(package.__path__, f"{self.package}."):
            names = vars(importlib.import_module(module.name)).items()
            found |= {name: value for name, value in names if isinstance(value, self.of)}
        return found

    def names(self) -> list[str]:
        return [*self.built_in, *sorted(p.name for p in self._entry_points())]

    def sources(self, names: Iterable[str]) -> dict[str, str]:
        """The source of each of `names` that is not kvx's own."""
        paths = {name: self._path(name) for name in names if name not in self.built_in}
        found = {name: user_code.source_of(path) for name, path in paths.items() if path}
        return {name: source for name, source in found.items() if source is not None}

    def get(self, name: str, field: str) -> T:
        """Raises `UserError`, which begins with the configuration's `field`, if there is none."""
        if name in self.built_in:
            return self.built_in[name]
        path = self._path(name)
        if path is None:
            known = self.names()
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}? There is" if near else "choose from"
            raise UserError(f"{field}: unknown {self.kind} {name!r}; {hint} {', '.join(known)}")
        user_code.source_of(path)  # drops the module if it changed since it was imported
        try:
            value = pkgutil.resolve_name(":".join(path.rsplit(".", 1)))
        except Exception as error:
            show_traceback(error, path)
            said = f"{type(error).__name__}: {first_line(error)}"
            raise UserError(f"{field}: {self.kind} {name!r} cannot be imported ({said})") from error
        if not isinstance(value, self.of):
            said = f"{name!r} is not a {self.kind}; decorate it with @{self.kind}"
            raise UserError(f"{field}: {said}")
        return value

    def _path(self, name: str) -> str | None:
        """The dotted path that a name stands for; None for an unknown name."""
        for point in self._entry_points() if "." not in name else ():
            if point.name == name:
                return point.value.replace(":", ".")
        return name if "." in name.strip(".") else None

    def _entry_points(self) -> Iterable[importlib.metadata.EntryPoint]:
        return importlib.metadata.entry_points(group=self.group)
