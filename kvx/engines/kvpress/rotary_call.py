"""The rotary embedding that a layer applied, in the model's own convention, and its inverse.

Families rotate halves or pairs, all or part of a head, scaled or not, with real or complex angles.
Every one is a linear map of a vector and of its angles, and the model's own function computes it:
it is recorded with its arguments and called again with other vectors or angles.
"""

import contextlib
import copy
import inspect
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from kvx.engines.kvpress.replacing import replaced

_APPLIES = re.compile(r"^apply_\w*rotary\w*$")
_VECTORS = ("q", "k", "x", "tensor", "xq", "xk")
_COS, _SIN, _COMPLEX = ("cos",), ("sin",), ("freqs_cis", "freqs_ci")
_pending = threading.local()


@dataclass(frozen=True)
class RotarySource:
    """The call of a rotary embedding module, whose `output` are angles."""

    module: Any
    arguments: inspect.BoundArguments
    output: Any

    def at(self, positions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The angles at `positions` [n], and what the module remembers stays what it is."""
        module = same_tensors(self.module)
        asked = self.arguments.arguments.get("position_ids")
        if not isinstance(asked, torch.Tensor):
            raise NotImplementedError(f"{type(self.module).__name__} takes no position_ids")
        ids = positions.to(asked.device).expand(*asked.shape[:-1], positions.shape[0])
        bound = inspect.BoundArguments(
            self.arguments.signature, self.arguments.arguments | {"position_ids": ids}
        )
        found = _tensors(type(module).forward(module, *bound.args, **bound.kwargs))
        return tuple(tensor.to(positions.device) for tensor in found)


@dataclass(frozen=True)
class RotaryCall:
    """One call of a model's function that rotates queries (and keys).

    Its first input had `shape` [1, heads, n, size], or heads and n `swapped`; `vectors` is that
    input as long as it is needed. `paired`: keys were rotated in the same call. The `arguments`
    keep no vectors.
    """

    function: Callable[..., Any]
    arguments: inspect.BoundArguments
    shape: tuple[int, ...]
    contiguous: bool
    paired: bool
    vectors: torch.Tensor | None
    source: RotarySource | None

    @property
    def size(self) -> int:
        """Channels that go through the function."""
        return self.shape[-1]

    def slim(self, width: int) -> "RotaryCall":
        """Without its vectors, unless heads of `width` are rotated in part."""
        return replace(self, vectors=None) if self.size == width else self

    def angles(self) -> tuple[torch.Tensor, ...]:
        """(cos, sin), or the complex angles."""
        named = self.arguments.arguments
        names = [n for n in named if n in _COS + _SIN + _COMPLEX]
        return tuple(named[n] for n in sorted(names))  # cos before sin

    def swapped(self, heads: int, n: int) -> bool:
        """Whether its vectors have positions before heads."""
        shape = self.shape[1:3]
        if shape[0] != shape[1]:
            return shape == (n, heads)
        at = self.arguments.arguments.get("unsqueeze_dim")
        return at == 2 if at is not None else self.contiguous

    def apply(self, x: torch.Tensor, angles: tuple[torch.Tensor, ...], swap: bool) -> torch.Tensor:
        """`x` [1, heads, n, size] through the model's function, with these angles."""
        given = x.transpose(1, 2) if swap else x
        named = dict(self.arguments.arguments)
        names = sorted(n for n in named if n in _COS + _SIN + _COMPLEX)
        named |= dict(zip(names, angles, strict=True))
        named |= {name: given for name in named if name in _VECTORS}
        bound = inspect.BoundArguments(self.arguments.signature, named)
        found = self.function(*bound.args, **bound.kwargs)
        rotated: torch.Tensor = found[0] if isinstance(found, tuple | list) else found
        return rotated.transpose(1, 2) if swap else rotated


def same_tensors(rotary: Any) -> Any:
    """A copy with the same tensors. Dynamic embeddings replace theirs for farther positions."""
    found = copy.copy(rotary)
    found._buffers = dict(rotary._buffers)
    return found


def taken_calls() -> tuple[RotaryCall, ...]:
    """The calls on this thread since the last time somebody asked: one layer's."""
    calls = tuple(getattr(_pending, "calls", ()))
    _pending.calls = []
    return calls


@contextlib.contextmanager
def recorded_rotary(model: Any) -> Iterator[None]:
    """Record the rotary calls of this thread while inside."""
    handles = []
    with contextlib.ExitStack() as stack:
        try:
            for module in model.modules():
                if "RotaryEmbedding" in type(module).__name__:
                    handles.append(module.register_forward_hook(_angles_made, with_kwargs=True))
            for owner, name in _functions(model):
                stack.enter_context(replaced(owner, name, _recording))
            yield
        finally:
            for handle in handles:
                handle.remove()
            _pending.calls, _pending.sources = [], []


def _functions(model: Any) -> list[tuple[Any, str]]:
    """The rotary functions that the model's attention classes call, as (module, name)."""
    found: dict[tuple[str, str], tuple[Any, str]] = {}
    for kind in {type(module) for module in model.modules() if hasattr(module, "layer_idx")}:
        space = inspect.getmodule(kind.forward)
        for name in vars(space) if space is not None else ():
            if _APPLIES.match(name) and callable(getattr(space, name)):
                assert space is not None
                found[space.__name__, name] = (space, name)
    return list(found.values())


def _angles_made(module: Any, args: Any, kwargs: Any, output: Any) -> None:
    bound = inspect.signature(type(module).forward).bind(module, *args, **kwargs)
    del bound.arguments["self"]
    arguments = {
        name: value[:, :1].clone() if isinstance(value, torch.Tensor) and value.is_floating_point()
        else value
        for name, value in bound.arguments.items()
    }  # fmt: skip
    signature = bound.signature.replace(parameters=list(bound.signature.parameters.values())[1:])
    kept = inspect.BoundArguments(signature, arguments)
    sources = getattr(_pending, "sources", [])
    _pending.sources = [*sources, RotarySource(module, kept, output)][-64:]


def _recording(function: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(function)

    def recorded(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        vectors = next((v for n, v in bound.arguments.items() if n in _VECTORS), None)
        if isinstance(vectors, torch.Tensor) and vectors.ndim == 4:
            _pending.calls = [*getattr(_pending, "calls", []), _call(function, bound, vectors)]
        return function(*args, **kwargs)

    return recorded


def _call(
    function: Callable[..., Any], bound: inspect.BoundArguments, vectors: torch.Tensor
) -> RotaryCall:
    arguments = {n: None if n in _VECTORS else v for n, v in bound.arguments.items()}
    kept = inspect.BoundArguments(bound.signature, arguments)
    shape = tuple(vectors.shape)
    paired = sum(torch.is_tensor(bound.arguments.get(name)) for name in _VECTORS) > 1
    call = RotaryCall(function, kept, shape, vectors.is_contiguous(), paired, vectors, None)
    return replace(call, source=_source_of(call.angles()))


def _source_of(angles: tuple[torch.Tensor, ...]) -> RotarySource | None:
    """What made these angles, the latest first; None if that was not seen."""
    sources: list[RotarySource] = list(reversed(getattr(_pending, "sources", [])))
    for source in sources:
        made = _tensors(source.output)
        if any(a is m for a in angles for m in made):
            return source
    for source in sources:  # copies, as on another device
        made = _tensors(source.output)
        if len(made) == len(angles) and all(
            a.shape == m.shape and torch.equal(a, m.to(a.device))
            for a, m in zip(angles, made, strict=True)
        ):
            return source
    return None


def _tensors(output: Any) -> tuple[torch.Tensor, ...]:
    return tuple(output) if isinstance(output, tuple | list) else (output,)
