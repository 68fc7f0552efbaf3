"""Queries and keys as they were before the rotary embedding, and the mean rotation of positions.

All in the model's own convention and in the order of channels that its attention sees: what was
permuted stays so.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import cosine_similarity

from kvx.engines.kvpress.rotary_call import RotaryCall
from kvx.engines.kvpress.seen import AttentionCall

Angles = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Rotation:
    """What one layer's rotary embedding does to its queries and keys; nothing without a `call`.

    It turns the channels `first` to `first + size` of a head's `width`. `order` [size, size] is
    what the function does at the angle zero: a permutation of channels.
    """

    width: int
    first: int = 0
    size: int = 0
    call: RotaryCall | None = None
    order: torch.Tensor | None = None
    swap: bool = False

    def undone(self, x: torch.Tensor, rows: slice) -> torch.Tensor:
        """`x` [1, heads, n, width] of the positions `rows`, as before its rotation."""
        if self.call is None:
            return x
        assert self.order is not None
        turned = x[..., self.first : self.first + self.size] @ self.order.T.to(x.dtype)
        angles = tuple(a[..., rows, :] for a in inverse(self.call.angles()))
        back = self.call.apply(turned, angles, self.swap).to(x.dtype)
        return torch.cat([x[..., : self.first], back, x[..., self.first + self.size :]], dim=-1)

    def mean(self, positions: torch.Tensor) -> torch.Tensor:
        """The mean rotation [width, width] at `positions` [n]: a row vector times it is rotated.

        Raises `NotImplementedError` where the model's angles are not known to come from positions.
        """
        whole = torch.eye(self.width, device=positions.device)
        if self.call is None:
            return whole
        assert self.order is not None
        if self.call.source is None:
            raise NotImplementedError("the model's rotary angles do not come from a module's call")
        given, made = self.call.angles(), self.call.source.at(positions)
        dtype = given[0].dtype if given[0].is_complex() else torch.float32
        angles = tuple(m.to(dtype).mean(dim=-2, keepdim=True) for m in made)
        turned = self.call.apply(
            self.order.T.float().contiguous()[None, None], _rows(angles, self.size), self.swap
        )
        span = slice(self.first, self.first + self.size)
        whole[span, span] = turned[0, 0].to(whole)
        return whole


def rotation_of(seen: AttentionCall) -> Rotation:
    """The rotation of a layer's queries.

    Raises `NotImplementedError` for a function that cannot be called with other vectors.
    """
    width = seen.query.shape[-1]
    call = _of_queries(seen)
    if call is None:
        return Rotation(width)
    try:
        return _rotation(seen, call, width)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise NotImplementedError(
            f"the rotary embedding of {type(seen.module).__name__} is not known ({error})"
        ) from error


def _of_queries(seen: AttentionCall) -> RotaryCall | None:
    """The call that rotated a layer's queries; indexers beside attention make others."""
    heads, n = seen.query.shape[1:3]
    fitting = [call for call in seen.rotaries if call.shape[1:3] in ((heads, n), (n, heads))]
    paired = [call for call in fitting if call.paired]
    if paired:
        return paired[-1]
    return fitting[0] if fitting else None  # queries before keys


def _rotation(seen: AttentionCall, call: RotaryCall, width: int) -> Rotation:
    heads, n = seen.query.shape[1:3]
    swap, size = call.swapped(heads, n), call.size
    angles = call.angles()
    zero = tuple(
        torch.ones_like(a) if i == 0 else torch.zeros_like(a) for i, a in enumerate(angles)
    )
    eye = torch.eye(size, device=seen.query.device, dtype=torch.float32)
    order = call.apply(eye[None, None], _rows(zero, size), swap)[0, 0]
    first = 0
    if size < width:
        assert call.vectors is not None
        upright = call.vectors.transpose(1, 2) if swap else call.vectors
        first = _first(seen.query, call.apply(upright, angles, swap))
    return Rotation(width, first, size, call, order, swap)


def inverse(angles: Angles) -> Angles:
    """The angles that turn back, and divide by the scale of cos and sin."""
    if len(angles) == 1:
        return (angles[0].conj() / angles[0].abs().square(),)
    cos, sin = angles
    scale = (cos.float().square() + sin.float().square()).clamp_min(1e-12)
    return cos / scale.to(cos.dtype), -sin / scale.to(sin.dtype)


def _rows(angles: Angles, n: int) -> Angles:
    """The first position's angles, for `n` positions."""
    return tuple(a[..., :1, :].expand(*a.shape[:-2], n, a.shape[-1]) for a in angles)


def _first(query: torch.Tensor, turned: torch.Tensor) -> int:
    """Where in a head the rotated channels are: at its end (latent attention) or its beginning."""
    size, width = turned.shape[-1], query.shape[-1]

    def likeness(part: torch.Tensor) -> float:
        return float(cosine_similarity(part.float(), turned.float(), dim=-1).mean())

    at_end = likeness(query[..., width - size :]) > likeness(query[..., :size])
    return width - size if at_end else 0
