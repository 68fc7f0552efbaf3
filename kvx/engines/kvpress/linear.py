"""oneDNN for the linear layers of a batch on CPU.

torch multiplies float32 matrices with MKL there, which is slow on some processors and for few rows.
oneDNN takes the same weights as they are: 1.2 to 1.4 times faster for 24 to 1,000 rows on an AMD
EPYC (docs/performance.md). Sums are rounded in another order, as with any other BLAS.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch


@contextlib.contextmanager
def fast_linears(model: Any) -> Iterator[None]:
    """The model's linear layers use oneDNN inside this context, where that is possible."""
    layers = [m for m in model.modules() if type(m) is torch.nn.Linear and _fits(m)]
    for layer in layers:
        layer.__dict__["forward"] = partial(_onednn_linear, layer)  # before the class's own
    try:
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)  # a run beside this one may have ended before


def _fits(layer: torch.nn.Linear) -> bool:
    weight = layer.weight
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and _works()


def _onednn_linear(layer: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return _operator()(x, layer.weight, layer.bias, "none", [], "")


def _operator() -> Callable[..., torch.Tensor]:
    # what torch's own compiler calls for a linear layer on CPU; not part of its public interface
    operator: Callable[..., torch.Tensor] = torch.ops.mkldnn._linear_pointwise
    return operator


@cache
def _works() -> bool:
    """Whether this build of torch has the operator and it multiplies as it should."""
    try:
        x, weight, bias = torch.rand(3, 8), torch.rand(5, 8), torch.rand(5)
        got = _operator()(x, weight, bias, "none", [], "")
        return torch.allclose(got, torch.nn.functional.linear(x, weight, bias), atol=1e-5)
    except (AttributeError, RuntimeError, TypeError):
        return False
