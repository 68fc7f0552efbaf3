"""oneDNN for the linear layers of a batch on CPU.

torch multiplies float32 matrices with MKL there, which is slow on some processors and for few rows.
oneDNN takes the same weights as they are: 1.2 to 1.4 times faster for 24 to 1,000 rows on an AMD
EPYC (docs/performance.md), and it applies a gated MLP's activation and product as it writes. Sums
are rounded in another order, as with any other BLAS.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any

import torch


@contextlib.contextmanager
def fast_linears(model: Any) -> Iterator[None]:
    """The model's linear layers use oneDNN inside this context, where that is possible."""
    layers = [m for m in model.modules() if type(m) is torch.nn.Linear and _fits(m)]
    replaced: list[tuple[torch.nn.Module, Callable[..., torch.Tensor]]] = []
    replaced += [(layer, _onednn_linear) for layer in layers]
    replaced += [(mlp, _onednn_mlp) for mlp in _gated_mlps(model, layers)]
    for module, forward in replaced:
        module.__dict__["forward"] = partial(forward, module)  # before the class's own
    try:
        yield
    finally:
        for module, _ in replaced:
            module.__dict__.pop("forward", None)  # a run beside this one may have ended before


@contextlib.contextmanager
def own_linears(model: Any) -> Iterator[None]:
    """The model's linear layers are torch's own inside this context: oneDNN's have no autograd."""
    fast = [m for m in model.modules() if getattr(vars(m).get("forward"), "func", None) in _OURS]
    forwards = [module.__dict__.pop("forward") for module in fast]
    try:
        yield
    finally:
        for module, forward in zip(fast, forwards, strict=True):
            module.__dict__["forward"] = forward


def _fits(layer: torch.nn.Linear) -> bool:
    weight = layer.weight
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and _works()


def _onednn_linear(layer: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    product: torch.Tensor = _operator()(x, layer.weight, layer.bias, "none", [], "")
    return product


def _gated_mlps(model: Any, layers: Sequence[torch.nn.Linear]) -> list[Any]:
    """Modules that compute down(silu(gate(x)) * up(x)) with three of `layers`."""
    ours = {id(layer) for layer in layers}
    known: dict[type, bool] = {}
    found = []
    for module in model.modules():
        parts = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
        if not all(id(part) in ours for part in parts):
            continue
        if type(module) not in known:
            known[type(module)] = _is_silu_gated(module)
        if known[type(module)]:
            found.append(module)
    return found


@torch.inference_mode()
def _is_silu_gated(mlp: Any) -> bool:
    """Whether the module's own answer to a few random rows is the fused one's."""
    x = torch.linspace(-3, 3, 4 * mlp.gate_proj.in_features).view(4, -1)
    expected = mlp(x)
    return float((_onednn_mlp(mlp, x) - expected).norm() / expected.norm()) < 1e-4


def _onednn_mlp(mlp: Any, x: torch.Tensor) -> torch.Tensor:
    gate = _operator()(x, mlp.gate_proj.weight, mlp.gate_proj.bias, "swish", [], "")
    up = _operator().binary(x, gate, mlp.up_proj.weight, mlp.up_proj.bias, "mul")
    return _onednn_linear(mlp.down_proj, up)


_OURS = (_onednn_linear, _onednn_mlp)


def _operator() -> Any:
    # what torch's own compiler calls for a linear layer on CPU; not part of its public interface
    return torch.ops.mkldnn._linear_pointwise


@cache
def _works() -> bool:
    """Whether this build of torch has the operator and it multiplies as it should."""
    try:
        x, weight, bias = torch.rand(3, 8), torch.rand(5, 8), torch.rand(5)
        got = _operator()(x, weight, bias, "none", [], "")
        return torch.allclose(got, torch.nn.functional.linear(x, weight, bias), atol=1e-5)
    except (AttributeError, RuntimeError, TypeError):
        return False
