"""Work in forked processes: results in order, errors where they are waited for, nothing left."""

import os
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import psutil
import pytest

from kvx.errors import UserError
from kvx.store import forks
from kvx.store.forks import beside, in_order


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def test_results_come_in_the_order_of_the_items_from_other_processes() -> None:
    waits = [0.3, 0.0, 0.1, 0.0]
    before = children()

    def slow(wait: float) -> tuple[float, int]:
        time.sleep(wait)
        return wait, os.getpid()

    found = list(in_order(slow, waits, 2))
    assert [wait for wait, _ in found] == waits
    assert len({pid for _, pid in found} - {os.getpid()}) == 2
    assert children() == before
    assert {pid for _, pid in in_order(slow, [0.0, 0.0], 1)} == {os.getpid()}


def _refuse(*_: Any) -> None:
    raise UserError("points/a: edited")


def _die(*_: Any) -> None:
    os._exit(3)


@pytest.mark.parametrize(("work", "error"), [(_refuse, UserError), (_die, BrokenProcessPool)])
def test_an_error_is_raised_where_the_result_is_waited_for(
    work: Callable[..., None], error: type[Exception]
) -> None:
    before = children()
    with pytest.raises(error):
        list(in_order(work, [1, 2], 2))
    with pytest.raises(error), beside(work, 2) as wait:
        wait()
    assert children() == before


def test_what_runs_beside_is_waited_for_or_ended() -> None:
    begun = time.monotonic()
    with beside(os.getpid, 2) as first, beside(os.getpid, 2) as second:
        assert len({first(), second(), os.getpid()}) == 3
    with pytest.raises(ZeroDivisionError), beside(lambda: time.sleep(60), 2):
        raise ZeroDivisionError
    assert time.monotonic() - begun < 30
    with beside(os.getpid, 1) as here:
        assert here() == os.getpid()


def test_few_rows_are_not_worth_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "usable_cores", lambda: 2)
    assert (forks.processes(49_999), forks.processes(50_000)) == (1, 2)
    monkeypatch.setattr(forks.sys, "platform", "darwin")
    assert forks.processes(10**6) == 1
