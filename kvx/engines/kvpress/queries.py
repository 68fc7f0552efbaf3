"""Presses that rank by attention get the model's own queries (`press.queries=model`).

kvpress recomputes queries from hidden states, as Llama does. On families with other norms, rotary
embeddings, scales or projections that is another attention than the model's. Here kvpress's own
presses run unchanged, and only the functions with which they make queries answer with what the
attention function was given. Where both are the same, kvpress's are used.
"""

import contextlib
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, wraps
from typing import Any, Self

import kvpress
import torch
from kvpress.presses import (
    cap_press,
    expected_attention_press,
    leverage_press,
    non_causal_attention_press,
    think_press,
)
from torch.nn.functional import pad

from kvx.engines.kvpress.parts import parts_of
from kvx.engines.kvpress.prerope import Rotation, rotation_of
from kvx.engines.kvpress.replacing import replaced
from kvx.engines.kvpress.seen import AttentionCall, Sight

_serving = threading.local()


@dataclass(frozen=True)
class ServedLayer:
    """A layer whose press runs now: what its attention was given, and its hidden states."""

    seen: AttentionCall
    hidden: torch.Tensor

    def span(self, part: torch.Tensor) -> slice:
        """The positions of `part`, a slice of the layer's hidden states [1, n, size].

        Raises `NotImplementedError` for something else.
        """
        whole, step = self.hidden, self.hidden.stride(1) * self.hidden.element_size()
        at, rest = divmod(part.data_ptr() - whole.data_ptr(), step)
        n = part.shape[1]
        inside = rest == 0 and at >= 0 and at + n <= whole.shape[1]
        if not inside or part.stride()[1:] != whole.stride()[1:]:
            raise NotImplementedError(
                "the press scores hidden states that are no slice of the prompt's, so the model's "
                "own queries for them are not known"
            )
        return slice(at, at + n)

    @cached_property
    def rotation(self) -> Rotation:
        return rotation_of(self.seen)

    def queries(self, part: torch.Tensor) -> torch.Tensor:
        """Queries [1, heads, n, size] as attention gets them, of a slice of hidden states."""
        return self.seen.normalised[:, :, self.span(part)]

    def prerope_queries(self, part: torch.Tensor) -> torch.Tensor:
        rows = self.span(part)
        return self.rotation.undone(self.seen.normalised[:, :, rows], rows)

    def prerope_keys(self, part: torch.Tensor) -> torch.Tensor:
        rows = self.span(part)
        return self.rotation.undone(self.seen.key[:, :, rows], rows)

    def window_attention(self, part: torch.Tensor, keys: torch.Tensor, window: int) -> torch.Tensor:
        """Weights [1, heads, window, n - window] of the last queries of a slice of the prompt."""
        span = self.span(part)
        columns = slice(max(span.start, span.stop - keys.shape[2]), span.stop)
        weights = self.seen.weights(slice(span.stop - window, span.stop), columns)
        return weights[..., :-window].to(self.seen.query.dtype)

    def projected_norm(self, values: torch.Tensor) -> torch.Tensor:
        """L1 norms [1, KV heads, n] of values behind the output projection, mean over query heads.

        Raises `NotImplementedError` where the cache holds something else than values.
        """
        weight = output_projection(self.seen.module).weight  # [hidden size, heads * value size]
        heads = self.seen.query.shape[1]
        size, kv_heads = weight.shape[1] // heads, values.shape[1]
        if values.shape[-1] != size:
            raise NotImplementedError(
                f"the cache holds values of {values.shape[-1]} channels, and the output projection "
                f"takes {size}"
            )
        by_head = weight.T.reshape(heads, size, -1)
        norms = [
            (values[:, head * kv_heads // heads] @ by_head[head]).norm(p=1, dim=-1)
            for head in range(heads)
        ]
        return torch.stack(norms, dim=1).view(1, kv_heads, heads // kv_heads, -1).mean(dim=2)

    def mean_rotation(self, n: int, following: int) -> torch.Tensor:
        """The mean rotation [size, size] of the `following` positions after the first `n`."""
        device = self.seen.query.device
        return self.rotation.mean(torch.arange(n, n + following, device=device))


class ModelQueries:
    """Serves the presses of one prefill of `model` while it is open."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._sight = Sight(model)
        self._stack = contextlib.ExitStack()
        self._open = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._open = False
        self._stack.close()

    def forget(self) -> None:
        """The layer is compressed: release its queries."""
        self._sight.forget()

    def serve(self, press: Any) -> None:
        """Let `press` and those it wraps use the model's own queries."""
        if not self._open:
            self._stack.enter_context(self._sight.open())
            self._stack.enter_context(own_queries())
            self._open = True
        for part in parts_of(press):
            _adapt(part)
        if hasattr(press, "compress"):
            press.compress = self._served(press.compress)
        if isinstance(press, kvpress.KVzipPress):
            press.score_kvzip = self._served(press.score_kvzip)
        if isinstance(press, kvpress.KVgradPress):  # asks in hooks of its own
            press._compute_cross_attention = self._served(press._compute_cross_attention)

    def _served(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def served(module: Any, hidden: Any, *rest: Any, **kw: Any) -> Any:
            if not self._open:
                raise RuntimeError("the model's queries are known during the prefill only")
            with serving(ServedLayer(self._sight.of(module), hidden)):
                return method(module, hidden, *rest, **kw)

        return served


@contextlib.contextmanager
def serving(layer: ServedLayer) -> Iterator[None]:
    """kvpress's functions answer for `layer` on this thread."""
    before = getattr(_serving, "layer", None)
    _serving.layer = layer
    try:
        yield
    finally:
        _serving.layer = before


@contextlib.contextmanager
def own_queries() -> Iterator[None]:
    """The functions with which kvpress makes queries and attention answer for a served layer."""

    def instead(answer: Callable[..., Any]) -> Callable[[Any], Any]:
        def make(original: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                layer = getattr(_serving, "layer", None)
                if layer is None:
                    return original(*args, **kwargs)
                return answer(layer, *args, **kwargs)

            return call

        return make

    prerope, plain = "get_prerope_query_states", instead(_queries)
    with contextlib.ExitStack() as stack:
        for owner, name, make in (
            (kvpress.SnapKVPress, "compute_window_attention", instead(_window_attention)),
            (expected_attention_press, prerope, instead(_prerope_queries)),
            (cap_press, prerope, instead(_prerope_queries)),
            (non_causal_attention_press, prerope, plain),
            (think_press, prerope, plain),
            (leverage_press, "get_prerope_key_states", instead(_prerope_keys)),
            (kvpress.CriticalKVPress, "vwl1norm", instead(_projected_norm)),
        ):
            stack.enter_context(replaced(owner, name, make))
        yield


def _window_attention(
    layer: ServedLayer,
    module: Any,
    hidden: Any,
    keys: Any,
    window_size: int,
    position_embeddings: Any,
) -> torch.Tensor:
    return layer.window_attention(hidden, keys, window_size)


def _queries(layer: ServedLayer, module: Any, hidden: torch.Tensor) -> torch.Tensor:
    return layer.queries(hidden)


def _prerope_queries(layer: ServedLayer, module: Any, hidden: torch.Tensor) -> torch.Tensor:
    return layer.prerope_queries(hidden)


def _prerope_keys(layer: ServedLayer, module: Any, hidden: torch.Tensor) -> torch.Tensor:
    return layer.prerope_keys(hidden)


def _projected_norm(layer: ServedLayer, values: torch.Tensor, module: Any) -> torch.Tensor:
    return layer.projected_norm(values)


def output_projection(module: Any) -> Any:
    """The linear layer behind the attention. Raises `NotImplementedError`."""
    for name in ("o_proj", "out_proj", "dense"):
        if hasattr(getattr(module, name, None), "weight"):
            return getattr(module, name)
    raise NotImplementedError(f"{type(module).__name__} has no output projection that kvx knows")


def _adapt(part: Any) -> None:
    """What one press object does itself with rotary embeddings."""
    if isinstance(part, kvpress.CapPress):
        part.score = _padding(part.score)
    if isinstance(part, kvpress.ScorerPress | kvpress.FinchPress):
        rotates = isinstance(part, kvpress.NonCausalAttnPress | kvpress.CompactorPress)
        part.score = _unrotating(part.score, always=rotates)
    if hasattr(part, "score"):
        part.score = _expanding(part.score)
    if isinstance(part, kvpress.ExpectedAttentionPress):
        part.apply_avg_rope = _mean_rope(part)
    if isinstance(part, kvpress.CapPress):
        part._avg_rope_matrix = _cap_matrix(part)
    if isinstance(part, kvpress.ThinKPress):
        part.compute_window_queries = _think(part, part.compute_window_queries)
    if isinstance(part, kvpress.KVzipPress):
        part._compute_cross_attention = _reconstruction(part)
        part._compute_value_output_norm = _value_output_norm


def _layer() -> ServedLayer:
    layer: ServedLayer | None = getattr(_serving, "layer", None)
    assert layer is not None
    return layer


def unrotated(n: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(cos, sin) that rotate nothing, for vectors of any width at `n` positions."""
    return like.new_ones(1, n, 1), like.new_zeros(1, n, 1)


def _unrotating(score: Callable[..., Any], always: bool) -> Callable[..., Any]:
    """Angles of zero: for presses that rotate queries which are rotated, `always`.

    For the others where the model has none: they look for angles that they do not need.
    """

    # kvpress calls it with and without names
    @wraps(score)
    def scored(
        module: Any, hidden_states: Any, keys: Any, values: Any, attentions: Any, kwargs: Any
    ) -> Any:
        if always or kwargs.get("position_embeddings") is None:
            angles = unrotated(hidden_states.shape[1], hidden_states)
            kwargs = {**kwargs, "position_embeddings": angles}
        return score(
            module=module,
            hidden_states=hidden_states,
            keys=keys,
            values=values,
            attentions=attentions,
            kwargs=kwargs,
        )

    return scored


def _padding(score: Callable[..., Any]) -> Callable[..., Any]:
    """Values as wide as keys, where they are narrower: zeros change no leverage."""

    @wraps(score)
    def scored(
        module: Any, hidden_states: Any, keys: Any, values: Any, attentions: Any, kwargs: Any
    ) -> Any:
        wide = pad(values, (0, max(0, keys.shape[-1] - values.shape[-1])))
        return score(module, hidden_states, keys, wide, attentions, kwargs)

    return scored


def _expanding(score: Callable[..., Any]) -> Callable[..., Any]:
    """Where the cache holds latents, the keys and values that attention makes of them are scored.

    A latent that several heads share has the mean of their scores.
    """

    @wraps(score)
    def scored(
        module: Any, hidden_states: Any, keys: Any, values: Any, attentions: Any, kwargs: Any
    ) -> Any:
        layer = _layer()
        seen, held = layer.seen, keys.shape[1]
        if (held, keys.shape[-1]) == (seen.key.shape[1], seen.key.shape[-1]):
            return score(module, hidden_states, keys, values, attentions, kwargs)
        span = layer.span(hidden_states)
        made = seen.key[:, :, span], seen.value[:, :, span]
        scores = score(module, hidden_states, *made, attentions, kwargs)
        return scores.view(scores.shape[0], held, -1, scores.shape[-1]).mean(dim=2)

    return scored


def _mean_rope(part: Any) -> Callable[..., Any]:
    def apply(
        module: Any, mu: torch.Tensor, cov: torch.Tensor | None, q_len: int
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        turn = _layer().mean_rotation(q_len, part.n_future_positions).to(mu)
        mu = mu @ turn
        return mu, None if cov is None else turn.T @ (cov @ turn)

    return apply


def _cap_matrix(part: Any) -> Callable[..., torch.Tensor]:
    def matrix(module: Any, q_len: int, device: Any, dtype: torch.dtype) -> torch.Tensor:
        turn = _layer().mean_rotation(q_len, part.n_future_positions)
        return turn.T.to(device=device, dtype=dtype)

    return matrix


def _think(part: Any, compute: Callable[..., Any]) -> Callable[..., Any]:
    def queries(module: Any, hidden: torch.Tensor, position_embeddings: Any) -> Any:
        return compute(module, hidden, unrotated(hidden.shape[1], hidden))

    return queries


def _value_output_norm(module: Any, values: torch.Tensor) -> torch.Tensor:
    """KVzip+ and KVgrad: L2 norms [1, KV heads, query heads of each, n] of values behind the output
    projection.
    """
    weight = output_projection(module).weight  # [hidden size, heads * value size]
    by_head = weight.view(weight.shape[0], values.shape[1], -1, values.shape[-1])
    behind = torch.einsum("jhgi,bhti->bhgtj", by_head, values)
    norms: torch.Tensor = torch.linalg.vector_norm(behind, dim=-1)
    return norms


def _reconstruction(part: Any) -> Callable[..., torch.Tensor]:
    """KVzip: weights of the repeated prompt over sinks, the chunk it repeats, and itself."""

    def weights(module: Any, hidden: torch.Tensor, keys: torch.Tensor, kwargs: Any) -> Any:
        seen, n = _layer().seen, hidden.shape[1]
        query = seen.normalised[:, :, -n:]
        sink = min(part.n_sink, part.start_idx)
        chosen = [keys[:, :, :sink], keys[:, :, part.start_idx : part.end_idx], keys[:, :, -n:]]
        chosen_keys = torch.cat(chosen, dim=2).unsqueeze(2).transpose(-2, -1)
        grouped = query.view(*query.shape[:1], keys.shape[1], -1, *query.shape[2:])
        logits = torch.matmul(grouped, chosen_keys) / math.sqrt(query.shape[-1])
        if seen.softcap is not None:
            logits = torch.tanh(logits / seen.softcap) * seen.softcap
        part._mask_causal(logits, n)
        return torch.softmax(logits, dim=-1)

    return weights
