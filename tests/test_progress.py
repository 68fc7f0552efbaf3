"""Progress moves while nothing is finished, and the time left follows what was done."""

import logging
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from kvx.cli.command import compose
from kvx.config.measures import Measure
from kvx.data.tokenizer import model_hash
from kvx.engines.activity import ACTIVITY, Activity, Seen
from kvx.engines.kvpress.model import load
from kvx.engines.kvpress.progress_hooks import reporting_progress
from kvx.points import experiment_dir
from kvx.run import progress
from kvx.run.planning import plan
from kvx.run.progress import Meter, waiting
from kvx.run.time_left import Load, Pace
from kvx.run.units import Unit
from kvx.status.build import rate_of
from kvx.store import journal
from tests.conftest import Kvx


def unit(n, prompt_tokens=0, output_tokens=0, measure=Measure.quality):
    return Unit((), (), "s001of001-0", measure, Load(n, prompt_tokens, output_tokens))


def lines(caplog):
    return [r.getMessage() for r in caplog.records if r.name == progress.__name__]


def wait_for(seen, what):
    """Until `seen()` is true; the time is a limit for a machine that hangs, not what is tested."""
    end = time.monotonic() + 120
    while not seen():
        assert time.monotonic() < end, f"never seen: {what}"
        time.sleep(0.005)


@pytest.fixture
def often(monkeypatch):
    """A line at every tick, and ticks that come at once."""
    monkeypatch.setattr(progress, "TICK_S", 0.01)
    monkeypatch.setattr(progress, "LOG_EVERY_S", (0.02, 0.02))


def test_the_first_line_is_due_within_ten_seconds():
    due = progress.Due(100.0)
    assert progress.TICK_S + progress.LOG_EVERY_S[0] <= 11
    assert [t for t in range(100, 131) if due.is_due(float(t))] == [110, 120, 130]


def test_lines_come_and_move_while_no_request_is_finished(often, caplog):
    caplog.set_level(logging.INFO, "kvx")
    with Meter([unit(40)], show=False) as meter:
        ACTIVITY.prefill(32_768, 3, 30)
        wait_for(lambda: any("layer 3 of 30" in line for line in lines(caplog)), "a line")
        ACTIVITY.prefill(32_768, 4, 30)
        wait_for(lambda: any("layer 4 of 30" in line for line in lines(caplog)), "the next layer")
        assert lines(caplog)[0].startswith("run: 0/40 requests, ")
        assert "prefill of 32,768 tokens, layer 4 of 30" in lines(caplog)[-1]
        assert "left" not in lines(caplog)[-1]  # nothing is known yet, so nothing is said
        assert meter.done == 0


def test_loading_is_told_before_there_is_anything_to_count(often, caplog):
    caplog.set_level(logging.INFO, "kvx")
    with waiting("checking the points"):
        wait_for(lambda: lines(caplog), "a line")
        ACTIVITY.say("loading model {big}")
        wait_for(lambda: "loading model {big}" in lines(caplog)[-1], "what it does now")
    n = len(lines(caplog))
    assert lines(caplog)[0].startswith("run: checking the points, ")
    assert "kvx progress" not in {thread.name for thread in threading.enumerate()}
    assert len(lines(caplog)) == n


class Work:
    """120 requests of 10 prompts, on a clock of its own: all prefills, then all answers."""

    def __init__(self, prefill_s, step_s, lengths):
        self.prefill_s, self.step_s, self.lengths = prefill_s, step_s, lengths
        self.total_s = 10 * prefill_s + max(lengths) * step_s

    def run(self, pace):
        """(seconds, what is left, what the pace says) at every step that finishes something."""
        now, seen = 0.0, Seen()
        told = []
        for _ in range(10):
            now += self.prefill_s
            after = Seen(
                begun=seen.begun + 12, begun_tokens=seen.begun_tokens + 12_000,
                passed_tokens=seen.passed_tokens + 1000, prefill_s=seen.prefill_s + self.prefill_s,
            )  # fmt: skip
            pace.learn(seen, after)
            assert pace.left_s(now) is None
            seen = after
        for step in range(1, max(self.lengths) + 1):
            now += self.step_s
            after = Seen(
                begun=120, begun_tokens=120_000, passed_tokens=10_000, prefill_s=seen.prefill_s,
                output_tokens=seen.output_tokens + sum(n >= step for n in self.lengths),
                steps=step, decode_s=seen.decode_s + self.step_s,
            )  # fmt: skip
            pace.learn(seen, after)
            seen = after
            for length in self.lengths:
                if length == step:
                    pace.finish(now)
            if pace.left and pace.left_s(now) is not None:
                told.append((now, self.total_s - now, pace.left_s(now)))
        return told


def test_a_long_start_is_not_taken_for_the_rate_of_what_follows():
    """8 min of prefills, 3 min of answers: 5% done after 8 min is not 150 min to go."""
    lengths = [20 + 5 * (i // 6) for i in range(120)]  # they end in groups of 6
    work = Work(prefill_s=48.0, step_s=180 / max(lengths), lengths=lengths)
    told = work.run(Pace(Load(120, 120_000, 120 * 128), 0.0))
    now, _, first = told[0]
    assert now * (120 - 6) / 6 > 100 * 60  # what a rate since the start would say
    assert first < 15 * 60
    for _, left, said in told[len(told) // 4 :]:
        assert said == pytest.approx(left, rel=1.0, abs=20)
    assert told[-1][2] < 30


def test_an_engine_that_tells_nothing_is_timed_by_its_last_answers():
    """A server that needs 8 min for its first answers and a second for each of the others."""
    pace, now = Pace(Load(200, 0, 0), 0.0), 480.0
    for _ in range(10):
        pace.finish(now)
    assert pace.left_s(now) < 45 * 60  # 480 s for 10 would be 152 min
    for _ in range(60):
        now += 1.0
        pace.finish(now)
    assert pace.left_s(now) == pytest.approx(130, rel=0.8)
    for _ in range(100):
        now += 1.0
        pace.finish(now)
    assert pace.left_s(now) == pytest.approx(30, rel=0.3)


def test_what_was_slow_long_ago_counts_less():
    pace, seen = Pace(Load(1000, 0, 100_000), 0.0), Seen()
    for step_s, steps in ((1.0, 600), (0.1, 6000)):  # a loaded machine, then a free one
        for _ in range(steps):
            after = Seen(begun_tokens=seen.begun_tokens + 1, prefill_s=seen.prefill_s,
                         output_tokens=seen.output_tokens + 1, steps=seen.steps + 1,
                         decode_s=seen.decode_s + step_s)  # fmt: skip
            pace.learn(seen, after)
            seen = after
    for _ in range(66):
        pace.finish(seen.decode_s)
    assert pace.left_s(1200.0) == pytest.approx((100_000 - 6600) * 0.1, rel=0.1)


def test_workers_share_what_is_left_and_latencies_run_alone():
    one, two = (Pace(Load(100, 10_000, 6_400), 0.0, width) for width in (1, 2))
    seen = Seen("", 10, 1_000, 1_000, 10.0, 320, 320, 32.0)
    for pace in (one, two):
        pace.learn(Seen(), seen)
        for _ in range(10):
            pace.finish(40.0)
    assert one.left_s(42.0) == pytest.approx(2 * two.left_s(42.0))
    assert one.left_s(42.0) == pytest.approx(9_000 * 0.01 + 90 * 32 * 0.1)
    assert two.alone_s(Load(5, 500, 5 * 64)) == pytest.approx(500 * 0.01 + 5 * 32 * 0.1)


def test_time_left_and_rate_are_in_the_line(monkeypatch, caplog):
    now = [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(ACTIVITY, "_doing", ("", ()))
    caplog.set_level("INFO", "kvx")
    meter = Meter([unit(100)], show=False)
    for _ in range(4):
        now[0] += 9.9
        meter.advance("p")
    assert lines(caplog) == ["run: 2/100 requests, 20 s so far (p)",
                             "run: 4/100 requests, 40 s so far (p)"]  # fmt: skip
    for _ in range(20):
        now[0] += 10
        meter.advance("p")
    assert lines(caplog)[-1] == (
        "run: 24/100 requests, 6.0/min, about 12 min 40 s left, 240 s so far (p)"
    )


def test_status_does_not_take_a_long_start_for_the_rate():
    start = 1_000.0  # 5 min of loading are in its window; 20 requests came in the last 20 s
    times = [start + 280 + n for n in range(20)]
    assert rate_of(times, start + 300) == pytest.approx(1.0, rel=0.05)
    assert rate_of(times[:5], start + 285) is None
    assert rate_of([], start) is None
    assert rate_of(times, times[-1] + 600) < 0.05  # nothing has come for long


def test_a_rate_forgets_what_a_loaded_machine_took(kvx: Kvx, monkeypatch) -> None:
    asked = compose("dataset.source.n_examples=20", "dataset.sampling.n_per_bin=1")
    points = plan([asked])
    folder = experiment_dir(asked)
    folder.mkdir(parents=True)
    journal.record_rate(points, 1000.0, 100, 10_000)
    for _ in range(5):
        journal.record_rate(points, 100.0, 100, 10_000)
    rate = journal.latest_rate(folder.parent, model_hash(asked.model))
    assert rate.prompt_tokens / rate.seconds == pytest.approx(100.0, rel=0.2)  # not 40


def test_what_another_process_does_is_shown_until_it_is_gone(often, caplog):
    caplog.set_level(logging.INFO, "kvx")
    with Meter([unit(8)], show=False, width=2) as meter:
        meter.heard(71, Seen("decoding 4 rows, 12 tokens so far"))
        meter.heard(72, Seen("loading model smollm2"))
        both = "decoding 4 rows, 12 tokens so far; loading model smollm2"
        wait_for(lambda: lines(caplog) and both in lines(caplog)[-1], "both workers")
        meter.gone(72)
        wait_for(lambda: both not in lines(caplog)[-1], "the other one alone")
        assert "decoding 4 rows" in lines(caplog)[-1]


def test_a_listener_hears_of_what_begins_at_once_and_of_steps_now_and_then():
    heard, activity = [], Activity()
    activity.listener = heard.append
    activity.say("loading model tiny")
    for _ in range(1000):
        activity.step(4)
    assert heard[0].doing == "loading model tiny"
    assert len(heard) < 500
    assert (activity.seen.output_tokens, activity.seen.steps) == (4000, 1000)
    activity.say("")
    assert heard[-1].output_tokens == 4000
    assert heard[-1].decode_s > 0


def test_a_batch_that_was_left_unfinished_makes_nothing_count_twice() -> None:
    model = load(compose("model=tiny_recall").model).model
    before = ACTIVITY.seen.passed_tokens
    left = reporting_progress(model)
    left.__enter__()
    with reporting_progress(model):
        model(input_ids=torch.ones((1, 40), dtype=torch.long))
    assert ACTIVITY.seen.passed_tokens - before == 40
    left.__exit__(None, None, None)
    model(input_ids=torch.ones((1, 40), dtype=torch.long))
    assert ACTIVITY.seen.passed_tokens - before == 40


def test_the_engine_tells_of_prompts_and_steps_as_they_are(kvx: Kvx) -> None:
    before = ACTIVITY.seen
    done = kvx("run", "-m", "press=snapkv,knorm", "budget=1.0,0.5",
               "dataset.source.n_examples=20", "dataset.sampling.n_per_bin=1")  # fmt: skip
    assert done.code == 0
    after = ACTIVITY.seen
    begun = after.begun - before.begun
    assert begun == 20  # 5 bins, 4 points
    # a prompt passes once for all points of its example
    passed, asked = (
        after.passed_tokens - before.passed_tokens, after.begun_tokens - before.begun_tokens
    )  # fmt: skip
    assert asked / 4 <= passed < asked / 2
    assert after.output_tokens - before.output_tokens > 0
    assert after.prefill_s > before.prefill_s
    assert after.decode_s > before.decode_s
