"""Features: what each is, and that a row's are its own to the last bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import PRESSES, prefill_of, random_traces, steps

from kvx.engines.openai.reply import entropy_nats
from kvx.guard import features
from kvx.guard.blocks import top20_entropy
from kvx.guard.features import SETS, FeatureState, build, names_of
from kvx.train.early import PREFILL_FEATURES

ALL = tuple(dict.fromkeys(n for s in SETS for n in names_of(s, PRESSES)))
lengths_of_traces = st.lists(st.integers(0, 90), min_size=1, max_size=7)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.tobytes() == b.tobytes()


def streamed(traces, row, names=ALL):
    """The features of one trace, generated alone."""
    state = FeatureState(names)
    state.add(prefill_of(traces, [row]))
    return np.concatenate(
        [np.empty((0, len(names)), np.float32), *(state.step(s) for s in steps(traces, row))]
    )


@settings(max_examples=40, deadline=None)
@given(lengths_of_traces, st.integers(0, 2**32 - 1))
def test_token_by_token_and_all_at_once_are_the_same_bits(lengths, seed):
    traces = random_traces(lengths, seed)
    built = build(traces, ALL)
    for row in range(len(lengths)):
        piece = built[traces.starts[row] : traces.starts[row + 1]]
        assert same(piece, streamed(traces, row))


@settings(max_examples=40, deadline=None)
@given(lengths_of_traces, st.integers(0, 2**32 - 1), st.randoms())
def test_the_order_of_rows_and_their_neighbours_change_nothing(lengths, seed, random):
    traces = random_traces(lengths, seed)
    order = list(range(len(lengths)))
    random.shuffle(order)
    chosen = np.array(order[: max(1, len(order) // 2)])
    whole, part = build(traces, ALL), build(traces.take(chosen), ALL)
    pieces = [whole[traces.starts[r] : traces.starts[r + 1]] for r in chosen]
    assert same(part, np.concatenate(pieces))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 60), min_size=2, max_size=5))
def test_rows_that_join_late_or_leave_early_have_the_features_they_have_alone(seed, delays):
    traces = random_traces([30] * len(delays), seed)
    state, rows, got = FeatureState(ALL), [], {row: [] for row in range(len(delays))}
    for now in range(max(delays) + 30):
        done = [i for i, row in enumerate(rows) if len(got[row]) == 30]
        if done:
            keep = np.array([i for i in range(len(rows)) if i not in done], dtype=int)
            state.keep(keep)
            rows = [rows[i] for i in keep]
        joining = [row for row, delay in enumerate(delays) if delay == now]
        if joining:
            state.add(prefill_of(traces, joining))
            rows += joining
        if rows:
            tokens = [traces.starts[row] + len(got[row]) for row in rows]
            out = state.step({name: v[tokens] for name, v in traces.signals.items()})
            for row, features_of_row in zip(rows, out, strict=True):
                got[row].append(features_of_row)
    for row, parts in got.items():
        assert same(np.stack(parts), streamed(traces, row))


def test_a_row_that_is_rolled_back_is_replayed_and_joins_again():
    traces = random_traces([50, 50], 3)
    state = FeatureState(ALL)
    state.add(prefill_of(traces, [0, 1]))
    for a, b in zip(steps(traces, 0)[:40], steps(traces, 1)[:40], strict=True):
        state.step({n: np.concatenate([a[n], b[n]]) for n in a})
    state.keep(np.array([1]))
    again = FeatureState(ALL)
    again.add(prefill_of(traces, [0]))
    for signals in steps(traces, 0)[:10]:
        again.step(signals)
    state.join(again)
    assert state.tokens.tolist() == [40, 10]
    a, b = steps(traces, 1)[40], steps(traces, 0)[10]
    out = state.step({n: np.concatenate([a[n], b[n]]) for n in a})
    assert same(out[:1], streamed(traces, 1)[40:41])
    assert same(out[1:], streamed(traces, 0)[10:11])


@pytest.mark.parametrize("feature_set", SETS)
def test_a_set_alone_gives_the_columns_it_has_among_all(feature_set):
    traces, names = random_traces([70, 3, 20], 1), names_of(feature_set, PRESSES)
    columns = [ALL.index(name) for name in names]
    assert same(build(traces, names), np.ascontiguousarray(build(traces, ALL)[:, columns]))


def test_windows_hold_the_mean_and_standard_deviation_of_what_there_is():
    traces = random_traces([100], 5)
    names = [f"{k}_{w}_entropy_nats" for w in (8, 32, 64) for k in ("mean", "std")]
    built, x = build(traces, names), np.clip(traces.signals["entropy_nats"], -255, 255)
    for t in (0, 5, 40, 99):
        expected = []
        for window in (8, 32, 64):
            past = x[max(0, t + 1 - window) : t + 1].astype(float)
            expected += [past.mean(), past.std()]
        assert built[t] == pytest.approx(expected, abs=1e-3)


def test_a_window_over_a_constant_has_no_spread():
    traces = random_traces([80], 5)
    traces.signals["entropy_nats"][:] = 0.7371
    assert (build(traces, ["std_8_entropy_nats", "std_64_entropy_nats"]) == 0).all()


def test_cusums_grow_with_a_shift_and_stay_low_without():
    traces = random_traces([120], 5)
    noise = np.random.default_rng(0).uniform(-0.2, 0.2, 120)
    traces.signals["entropy_nats"][:] = 1 + noise
    traces.signals["entropy_nats"][60:] += 2
    names = ["cusum_up_entropy_nats", "cusum_down_entropy_nats", "so_far_entropy_nats"]
    built = build(traces, names)
    assert built[:60, :2].max() < 0.6
    assert built[75, 0] > 15
    assert built[59, 2] == pytest.approx(traces.signals["entropy_nats"][:60].mean(), abs=1e-5)


def test_a_loop_is_near_an_earlier_step_though_no_token_is_known():
    traces = random_traces([40], 6)
    top = np.nan_to_num(traces.signals["top_logprobs"], nan=-200.0)
    top[20:] = top[13:20][np.arange(20) % 7]
    traces.signals["top_logprobs"][:] = top
    nearest = build(traces, ["nearest_past_step"])[:, 0]
    assert np.isnan(nearest[0])
    assert nearest[1:20].min() > 1
    assert (nearest[20:] == 0).all()


def test_the_entropy_change_is_computed_and_starts_at_zero():
    traces = random_traces([10, 10], 2)
    change = build(traces, ["entropy_change_nats"])[:, 0]
    entropy = traces.signals["entropy_nats"]
    assert change[[0, 10]].tolist() == [0, 0]
    assert same(change[1:10], np.diff(entropy[:10]))


def test_prefill_features_use_the_last_position_as_the_one_of_the_first_token():
    traces = random_traces([1], 0)
    kl = np.full((1, 8), np.nan, np.float32)
    kl[0, -2:] = [1.0, 3.0]
    traces.prefill["probe_kl_nats"][:] = kl
    names = ["probe_kl_0", "probe_kl_1", "probe_kl_2", "probe_kl_mean", "probe_kl_max"]
    row = build(traces, names)[0]
    assert row.tolist()[:2] == [3.0, 1.0]
    assert np.isnan(row[2])
    assert row.tolist()[3:] == [2.0, 3.0]


def test_what_each_set_holds():
    assert len(SETS["original40"]) == len(set(SETS["original40"])) == 40
    assert set(SETS["original40"]) < set(SETS["full"])
    assert all(len(names) == len(set(names)) for names in SETS.values())
    given = {
        "budget", "log_kept_tokens", "score_evicted", "log_prompt_tokens", "token", "token_share",
        "has_previous", "repetition_count", "sum_8_repetition_count", "period", "thinking",
    }  # fmt: skip
    assert not given & set(SETS["logit_only"])
    assert set(SETS["full"]) - set(SETS["logit_only"]) == given
    assert not any(name.startswith("press=") for name in SETS["full"])
    assert names_of("metadata_only", ["b", "a", "a"])[-2:] == ("press=a", "press=b")
    assert set(PREFILL_FEATURES) < set(SETS["full"])


@given(st.integers(0, 2**32 - 1), st.integers(5, 60))
def test_the_top20_entropy_is_what_a_server_gives(seed, vocabulary):
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 3, (9, vocabulary))
    logprobs = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    top = np.full((9, 20), np.nan)
    n = min(20, vocabulary)
    top[:, :n] = -np.sort(-logprobs, axis=1)[:, :n]
    chosen = logprobs[np.arange(9), rng.integers(0, vocabulary, 9)]
    served = entropy_nats(chosen.tolist(), [row[:n].tolist() for row in top])
    found = top20_entropy(top.astype(np.float32), chosen.astype(np.float32))
    assert found == pytest.approx(served, abs=2e-5)
    assert (found <= -(np.exp(logprobs) * logprobs).sum(axis=1) + 2e-5).all()


def test_a_servers_traces_are_enough_for_top20():
    assert not [n for n in SETS["top20"] if n.endswith("entropy_nats")]
    assert FeatureState(SETS["top20"]).needs == {"logprob", "entropy_nats", "top_logprobs"}


def test_an_unknown_feature_is_named():
    with pytest.raises(KeyError, match="entropy_nets"):
        FeatureState(["entropy_nats", "entropy_nets"])
    with pytest.raises(ValueError, match="different features"):
        FeatureState(["rank"]).join(FeatureState(["period"]))
    assert features.build(random_traces([0, 0], 0), ["rank"]).shape == (0, 1)
