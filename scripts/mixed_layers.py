"""A model of sliding and full layers for `bench_sweep.py --shape hybrid`, and kvpress on it.

kvpress's pipeline compresses the sliding layers of most classes too, and after compression it asks
transformers for a mask that lets tokens of the question see later ones (`findings/`). So the
reference here is kvpress's own hook on the full layers, in a loop of our own with a causal mask.
"""

import argparse
import contextlib
import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from sweep_runs import run_kvx, timed
from transformers import DynamicCache, Qwen3Config, Qwen3ForCausalLM

from kvx.config.schema import Config
from kvx.data.prompt import PromptBuilder
from kvx.data.tokenizer import load_tokenizer
from kvx.engines.base import PointWork
from kvx.engines.kvpress import admission
from kvx.engines.kvpress.account import RowCost
from kvx.engines.kvpress.layers import layers_of
from kvx.engines.kvpress.linear import fast_linears
from kvx.engines.kvpress.measure import synchronize
from kvx.engines.kvpress.model import LoadedModel, resolve_device
from kvx.engines.kvpress.prefill import prefill
from kvx.engines.kvpress.press import PointPress
from kvx.engines.kvpress.prompt_row import PromptRow
from kvx.engines.kvpress.streams import RandomStream
from kvx.engines.kvpress.transformers_versions import kvpress_hooks
from kvx.points import Point

LAYERS, EVERY, WINDOW = 30, 6, 512  # one layer in six is full


def mixed_model(config: Config) -> LoadedModel:
    """SmolLM2's shape with random weights: its speed is real, its answers are not."""
    device = resolve_device(config.model.device)
    torch.manual_seed(0)
    types = [
        "full_attention" if i % EVERY == EVERY - 1 else "sliding_attention" for i in range(LAYERS)
    ]
    shape = Qwen3Config(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=LAYERS,
        num_attention_heads=9, num_key_value_heads=3, head_dim=64, max_position_embeddings=8192,
        use_sliding_window=True, sliding_window=WINDOW, layer_types=types, tie_word_embeddings=True,
        initializer_range=0.1, dtype=config.model.dtype,
    )  # fmt: skip
    with torch.device(device):
        model = Qwen3ForCausalLM(shape).to(getattr(torch, config.model.dtype))
    for layer in model.model.layers:  # with weights of one all keys would be of one length, and
        norm = layer.self_attn.k_norm.weight  # knorm would rank them by rounding
        norm.data.copy_(torch.rand_like(norm) + 0.5)
    return LoadedModel(model.eval(), load_tokenizer(config.model), device, frozenset())


@torch.inference_mode()
def compare(args: argparse.Namespace, work: list[PointWork]) -> dict[str, Any]:
    """A model of sliding and full layers: shared, one request at a time, and kvpress."""
    config = work[0].point.config
    loaded = mixed_model(config)
    loaded.set_attention("sdpa")
    layers = layers_of(loaded.model)
    cost = RowCost(layers.entry_bytes, 4 * loaded.model.config.vocab_size, layers=layers)
    alone = dataclasses.replace(config, engine=dataclasses.replace(config.engine, share=False))
    short = [PointWork(w.point, w.requests[:1]) for w in work[:2]]
    run_kvx(loaded, short, cost)
    run_kvpress(loaded, short, 2)

    seconds: dict[str, list[float]] = {}
    cpu_seconds: dict[str, list[float]] = {}
    prefills: dict[str, list[float]] = {}
    peaks: dict[str, list[int]] = {}
    equal: dict[str, int] = {}

    def run(name: str, call: Callable[[], Any]) -> Any:
        with timed_prefills(loaded.device) as parts:
            found = timed(loaded, call)
        answers, prefill_s = found.answers, sum(parts)
        if name == "kvpress":
            answers, prefill_s = answers
        seconds.setdefault(name, []).append(found.seconds)
        cpu_seconds.setdefault(name, []).append(found.cpu_seconds)
        prefills.setdefault(name, []).append(prefill_s)
        peaks.setdefault(name, []).append(found.peak_bytes)
        print(
            f"{name} {found.seconds:.2f} s, of which prefills {prefill_s:.2f} s; "
            f"{found.cpu_seconds:.2f} CPU s; load {os.getloadavg()[0]:.1f}",
            flush=True,
        )
        return answers

    def note_equal(name: str, found: dict[str, Any], expected: dict[str, Any]) -> None:
        same = sum(found[key] == expected[key] for key in expected)
        print(f"{name}: {same} of {len(expected)} responses have kvpress's tokens", flush=True)
        if name not in equal:
            for line in differences(loaded, work, found, expected):
                print(f"{name}: {line}", flush=True)
        equal[name] = min(same, equal.get(name, same))

    for _ in range(args.repeats):
        answers = run("kvx_shared", lambda: run_kvx(loaded, work, cost, config))
        expected = run("kvpress", lambda: run_kvpress(loaded, work, args.new_tokens))
        note_equal("kvx_shared", answers, expected)
    answers = run("kvx_alone", lambda: run_kvx(loaded, work, cost, alone))  # once: it takes long
    note_equal("kvx_alone", answers, expected)
    weights = sum(p.numel() * p.element_size() for p in loaded.model.parameters())
    passing, live = memory_bound(loaded.model, work, args.max_rows)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    cpu = {name: statistics.median(values) for name, values in cpu_seconds.items()}
    return {
        "device": str(loaded.device), "threads": torch.get_num_threads(),
        "torch": torch.__version__, "model": args.shape, "dtype": args.dtype,
        "points": len(work), "examples": args.examples,
        "new_tokens": args.new_tokens,
        "prompt_tokens_mean": statistics.fmean(r.entry.prompt_tokens for r, _ in work[0].requests),
        "seconds": seconds, "cpu_seconds": cpu_seconds, "prefill_seconds": prefills,
        "ratio_to_alone": median["kvx_alone"] / median["kvx_shared"],
        "ratio_to_kvpress": median["kvpress"] / median["kvx_shared"],
        "cpu_ratio_to_alone": cpu["kvx_alone"] / cpu["kvx_shared"],
        "cpu_ratio_to_kvpress": cpu["kvpress"] / cpu["kvx_shared"],
        "responses": sum(len(w.requests) for w in work), "equal_to_kvpress": equal,
        "peak_bytes_with_weights": {name: max(values) + weights for name, values in peaks.items()},
        "peak_bound_bytes": round(1.1 * (weights + passing + live)),
        "weights_bytes": weights, "prefill_kv_bytes": passing, "live_kv_bytes": live,
    }  # fmt: skip


@contextlib.contextmanager
def timed_prefills(device: torch.device) -> Iterator[list[float]]:
    """The seconds of each of kvx's prefills in this context, presses included."""
    parts: list[float] = []
    prefill = admission.prefill

    def timed_prefill(*args: Any, **options: Any) -> Any:
        synchronize(device)
        start = time.perf_counter()
        found = prefill(*args, **options)
        synchronize(device)
        parts.append(time.perf_counter() - start)
        return found

    admission.prefill = timed_prefill
    try:
        yield parts
    finally:
        admission.prefill = prefill


def run_kvpress(
    loaded: LoadedModel, work: list[PointWork], new_tokens: int
) -> tuple[dict[str, Any], float]:
    """Token ids by request, point after point, and the seconds that went into prefills."""
    model, prefill_s, answers = loaded.model, 0.0, {}
    builder = PromptBuilder(loaded.tokenizer, work[0].point.config)
    for item in work:
        for request, example in item.requests:
            parts = builder.parts(example)
            n, rest = len(parts.compressed_ids), len(parts.rest_ids)
            synchronize(loaded.device)
            start = time.perf_counter()
            cache = _prefilled(loaded, item.point, parts.compressed_ids)
            synchronize(loaded.device)
            prefill_s += time.perf_counter() - start
            positions = torch.arange(n, n + rest, device=loaded.device)
            out = model(
                _batch(parts.rest_ids, loaded),
                past_key_values=cache,
                position_ids=positions[None],
                attention_mask=_masks(model, cache, rest),
                logits_to_keep=1,
            )
            ids = [int(out.logits[0, -1].argmax())]
            for position in range(n + rest, n + rest + new_tokens - 1):
                at = torch.tensor([[position]], device=loaded.device)
                out = model(_batch(ids[-1:], loaded), past_key_values=cache, position_ids=at)
                ids.append(int(out.logits[0, -1].argmax()))
            answers[request.id] = ids
    return answers, prefill_s


def _prefilled(loaded: LoadedModel, point: Point, ids: list[int]) -> Any:
    """The compressed cache of a prompt."""
    cache, press = DynamicCache(config=loaded.model.config), PointPress(point, len(ids)).build()
    with kvpress_hooks(loaded.model), _pressed(loaded.model, press):
        loaded.model.model(_batch(ids, loaded), past_key_values=cache)
    return cache


def differences(
    loaded: LoadedModel, work: list[PointWork], found: dict[str, Any], expected: dict[str, Any]
) -> Iterator[str]:
    """A line for each response whose tokens are not kvpress's: which entries were kept instead.

    Both prefill the prompt again. An entry counts as kept by both if its keys differ by less than
    a thousandth of their length.
    """
    builder = PromptBuilder(loaded.tokenizer, work[0].point.config)
    for item in work:
        for request, example in item.requests:
            ours, theirs = found[request.id], expected[request.id]
            if ours == theirs:
                continue
            at = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
            ids = builder.parts(example).compressed_ids
            cache, held = _prefilled(loaded, item.point, ids), _held(loaded, item.point, ids)
            kept = other = 0
            spread = 0.0
            for index, keys in held.items():
                reference = cache.layers[index].keys[0]  # [KV heads, kept, head size]
                length = reference.norm(dim=-1)
                nearest = torch.cdist(keys, reference).amin(-1)
                other += int((nearest > 1e-3 * length.mean()).sum())
                kept += nearest.numel()
                spread = max(spread, float(length.std() / length.mean()))
            yield (
                f"{request.id}: token {at} is {ours[at]}, kvpress's {theirs[at]}; {other} of "
                f"{kept} kept entries are others; lengths of the keys vary by {spread:.1e}"
            )


def _held(loaded: LoadedModel, point: Point, ids: list[int]) -> dict[int, torch.Tensor]:
    """The keys [KV heads, kept, head size] that kvx keeps in each full layer."""
    n = len(ids)
    row = PromptRow(PointPress(point, n), point.kept_tokens(n), RandomStream(0, loaded.devices))
    with fast_linears(loaded.model):
        (bucket,) = prefill(loaded, ids, [row], 1, alone=False).buckets
    return {x.index: bucket.entries(x.index, 1)[0][0] for x in layers_of(loaded.model).full}


def _batch(ids: list[int], loaded: LoadedModel) -> torch.Tensor:
    return torch.tensor([ids], device=loaded.device)


@contextlib.contextmanager
def _pressed(model: Any, press: Any) -> Iterator[None]:
    """kvpress's own hook on every full layer."""
    press.post_init_from_model(model)
    with contextlib.ExitStack() as stack:
        for layer in layers_of(model).full:
            layer.attention.rotary_emb = model.model.rotary_emb
            handle = layer.attention.register_forward_hook(press.forward_hook, with_kwargs=True)
            stack.callback(handle.remove)
        yield


def _masks(model: Any, cache: Any, n: int) -> dict[str, torch.Tensor]:
    """What `n` new tokens see of each kind of layer, [1, 1, n, entries]."""
    found = {}
    for kind in ("full_attention", "sliding_attention"):
        held = cache.layers[model.config.layer_types.index(kind)].keys.shape[2]
        sees = torch.ones(n, held + n, dtype=torch.bool, device=model.device).tril(held)
        if kind == "sliding_attention":
            sees = sees.triu(held - WINDOW + 1)
        found[kind] = sees[None, None]
    return found


def memory_bound(model: Any, work: list[PointWork], max_rows: int) -> tuple[int, int]:
    """Bytes of a prefill (a full layer and all windows), and of the rows that may run at once."""
    layers = layers_of(model)
    longest = max(r.entry.prompt_tokens for r, _ in work[0].requests)
    passing = layers.entry_bytes // len(layers.full) * longest + layers.row_bytes(longest)
    per_example = []
    for index, (request, _) in enumerate(work[0].requests):
        prompt, n = request.entry.prompt_tokens, request.entry.compressed_tokens
        new = work[0].point.config.decoding.max_new_tokens
        kept = [w.point.kept_tokens(n) + prompt - n + new for w in work]
        windows = layers.row_bytes(prompt + new)
        per_example.append(sum(kept) * layers.entry_bytes + len(kept) * windows)
        assert work[-1].requests[index][0].entry.example_id == request.entry.example_id
    at_once = max(1, max_rows // len(work))
    return passing, sum(sorted(per_example)[-at_once:])
