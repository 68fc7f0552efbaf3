"""A press around others: what it wraps is named, and taken over from the file of that name.

`press=adakv press.inner=snapkv press.inner.window_size=16` is AdaKV on scores of SnapKV. `inner`
holds

- `name`: a file of the group `press`; a list of them where the press chains several,
- `default`: the same in the press's own YAML, for what `method` wraps as it stands there,
- `sees`: how much of a prompt the inner press is given, where that is not all, as an expression,
- `asked`: how many entries it is asked to keep of that, where the share is not the budget's,
- `same`: inner presses that keep what they would keep without the outer one,
- arguments of the inner press by name. In a chain they stand below the inner press's name.

The inner press may be a wrapper with an `inner` of its own.
"""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kvx.config.folders import conf_dir
from kvx.config.press_choices import Keeps
from kvx.config.press_config import Degenerate, HubFile, PressConfig
from kvx.errors import UserError, first_line

# arguments of a wrapper that hold what it wraps: one press, or several in a row
ONE, SEVERAL = "press", "presses"
SETTINGS = ("name", "default", "sees", "asked", "same")
# numbers that a wrapper has from what it wraps, and what they are where neither says one
NUMBERS: dict[str, int] = {
    name: getattr(PressConfig, name)
    for name in ("degenerate_at_tokens", "min_prompt_tokens", "tolerance_tokens")
}


def with_inner(press: PressConfig) -> PressConfig:
    """`press` with its inner press in `method`, and with what that one needs, requires and keeps.

    Raises `UserError` for an inner press that there is not, or a press that wraps none.
    """
    asked = dict(press.inner)
    if not asked or press.method is None:  # the full cache has nothing inside, in a sweep too
        return replace(press, inner={}) if asked else press
    slot = next((name for name in (ONE, SEVERAL) if name in press.method), None)
    if slot is None:
        listed = ", ".join(wrappers())
        raise UserError(f"press={press.name}: press.inner: it works on no other press, as {listed}")
    named, default = asked.get("name"), asked.get("default")
    names = _names(press, slot, default if named is None else named)
    arguments = {key: value for key, value in asked.items() if key not in SETTINGS}
    own = press.method[slot] if named is None else None
    parts = [
        _inner(press.name, name, _of_part(press, arguments, names, slot, i), _part(own, i))
        for i, name in enumerate(names)
    ]
    methods = [part.method for part in parts]
    found = replace(
        press,
        name=press.name if named is None else "_".join([press.name, *(p.name for p in parts)]),
        method={**press.method, slot: methods[0] if slot == ONE else methods},
        inner={},
    )
    for part in parts:
        found = _taken_over(found, part, asked.get("sees"), asked.get("asked"))
    told = {name: value for name in NUMBERS if (value := getattr(press, name)) != NUMBERS[name]}
    found = replace(found, **told)  # what the wrapper's file or the command line says stands
    for part in parts:
        if part.name in asked.get("same", ()):
            alike = Degenerate(when="prompt_tokens > 0", reason=f"it keeps what {part.name} keeps")
            found.degenerate_when.append(alike)
    return found


def named_press(name: str) -> PressConfig | None:
    """The press in the file of this name, without its inner press; None if there is no such file.

    Raises `UserError` for a file that cannot be read as a press.
    """
    found = _loaded(name)
    if found is None:
        return None
    try:
        if "defaults" in found:
            raise UserError("its file has a defaults list, which only press= can follow")
        press = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(PressConfig), found))
    except (OmegaConfBaseException, UserError) as error:
        raise UserError(f"press.inner={name}: {first_line(error)}") from None
    assert isinstance(press, PressConfig)
    return press


def methods() -> dict[str, dict[str, Any]]:
    """By name, the methods of the presses in the group that kvx runs, as their files have them."""
    found: dict[str, Any] = {}
    for name in names():
        file = _loaded(name)
        if file is None or not file.get("method") or file.get("refused"):
            continue
        found[name] = OmegaConf.to_container(file.method, resolve=False)
    return found


def names() -> list[str]:
    """The names of the files of the group `press`."""
    hydra = GlobalHydra.instance()
    if hydra.is_initialized():
        found: list[str] = hydra.config_loader().get_group_options("press")
        return sorted(found)
    return sorted(path.stem for path in (conf_dir() / "press").glob("*.yaml"))


def wrappers() -> list[str]:
    """Those that wrap others."""
    return [name for name, method in methods().items() if {ONE, SEVERAL} & set(method)]


def _loaded(name: str) -> Any | None:
    hydra = GlobalHydra.instance()
    if hydra.is_initialized():
        loader: Any = hydra.config_loader()
        found = loader.repository.load_config(f"press/{name}")
        if found is None or not found.defaults_list:
            return None if found is None else found.config
        return OmegaConf.create({"defaults": []})
    path = Path(conf_dir()) / "press" / f"{name}.yaml"
    return OmegaConf.load(path) if path.is_file() else None


def _names(press: PressConfig, slot: str, asked: Any) -> list[str]:
    """The inner presses asked for. Raises `UserError` for a list where one is meant."""
    several = isinstance(asked, Sequence) and not isinstance(asked, str)
    found = [str(name) for name in asked] if several else [str(asked)]
    if asked is None or not found:
        raise UserError(f"press={press.name}: press.inner needs a name; write press.inner=snapkv")
    if slot == ONE and several:
        listed = ",".join(found)
        raise UserError(
            f"press={press.name}: works on one press; to sweep, type -m press.inner={listed}"
        )
    return found


def _of_part(
    press: PressConfig, arguments: Mapping[str, Any], names: Sequence[str], slot: str, index: int
) -> Mapping[str, Any]:
    """The arguments of one inner press of several."""
    if slot == ONE:
        return arguments
    unknown = [key for key in arguments if key not in names]
    if unknown:
        listed = ", ".join(names)
        raise UserError(
            f"press.inner.{unknown[0]}: {press.name} works on {listed}; write the argument of one "
            f"of them, as press.inner.{names[0]}.{unknown[0]}"
        )
    found = arguments.get(names[index], {})
    if not isinstance(found, Mapping):
        raise UserError(f"press.inner.{names[index]}={found}: needs the name of an argument")
    return found


def _part(own: Any, index: int) -> Mapping[str, Any] | None:
    """One of the methods that a press wraps as it stands in its YAML."""
    if own is None:
        return None
    found: Mapping[str, Any] = own[index] if isinstance(own, Sequence) else own
    return found


def _inner(
    outer: str, name: str, arguments: Mapping[str, Any], method: Mapping[str, Any] | None
) -> PressConfig:
    """The inner press with its arguments, those of `method` first."""
    found = named_press(name)
    if found is None or found.method is None:
        said = "no such press" if found is None else "keeps the full cache"
        listed = ", ".join(n for n in names() if n != "none")
        raise UserError(f"press={outer}: press.inner={name}: {said}; there are {listed}")
    inner = arguments.get("inner", {})
    own = {key: value for key, value in arguments.items() if key != "inner"}
    base = _loaded(name)
    assert base is not None
    changed = OmegaConf.merge(
        OmegaConf.structured(PressConfig), base, {"method": {**(method or {}), **own}}
    )
    try:
        press = OmegaConf.to_object(changed)
    except OmegaConfBaseException as error:
        raise UserError(f"press.inner={name}: {first_line(error)}") from None
    assert isinstance(press, PressConfig)
    return with_inner(replace(press, inner={**press.inner, **inner}))


def _taken_over(
    press: PressConfig, inner: PressConfig, sees: str | None, asked: str | None
) -> PressConfig:
    """`press` with what holds of `inner`, too."""
    # what drops no entries has no part in the budget of a chain
    by_method = inner.keeps is Keeps.by_method and inner.budget_sets is None
    rules, least = list(inner.degenerate_when), inner.degenerate_at_tokens
    if (sees or asked) is not None and least:
        when = f"kept <= {least}"
        rules = [Degenerate(when=when, reason=f"{inner.name} needs more than {least}"), *rules]
        least = 0
    return replace(
        press,
        hub=[*press.hub, *(_filled(file, inner.method or {}) for file in inner.hub)],
        refused=press.refused if inner.refused is None else inner.refused,
        needs=[*press.needs, *(need for need in inner.needs if need not in press.needs)],
        requires=[*press.requires, *(r for r in inner.requires if r not in press.requires)],
        keeps=Keeps.by_method if by_method else press.keeps,
        degenerate_at_tokens=max(press.degenerate_at_tokens, least),
        min_prompt_tokens=max(press.min_prompt_tokens, inner.min_prompt_tokens),
        tolerance_tokens=max(press.tolerance_tokens, inner.tolerance_tokens),
        degenerate_when=[
            *press.degenerate_when,
            *(
                Degenerate(
                    when=_inside(rule.when, inner.method or {}, sees, asked), reason=rule.reason
                )
                for rule in rules
            ),
        ],
    )


def _filled(needed: HubFile, method: Mapping[str, Any]) -> HubFile:
    """An inner press's file, with its arguments put in."""
    file = needed.file
    for name, value in method.items():
        file = file.replace(f"{{{name}}}", str(value))
    return replace(needed, file=file)


def _inside(condition: str, method: Mapping[str, Any], sees: str | None, asked: str | None) -> str:
    """An inner press's condition, with its arguments and what it sees of a prompt put in."""
    seen = "prompt_tokens" if sees is None else f"({sees})"
    share = f"asked * {seen} / prompt_tokens" if asked is None else asked
    known = {name: repr(value) for name, value in method.items() if isinstance(value, int | float)}
    if (sees or asked) is not None:
        known |= {
            "prompt_tokens": seen, "asked": f"({share})", "kept": f"max(1, int({share}))"
        }  # fmt: skip

    class Put(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.AST:
            text = known.get(node.id)
            return node if text is None else ast.parse(text, mode="eval").body

    try:
        tree = ast.parse(condition.strip(), mode="eval")
    except SyntaxError:
        return condition  # kvx.config.conditions says what is wrong with it
    return ast.unparse(Put().visit(tree))
