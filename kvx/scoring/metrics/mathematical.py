"""The metric of mathematical answers: equal as mathematics, whatever their LaTeX."""

import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from kvx.scoring.metrics.base import Score, best, metric

_BOXED = r"\boxed{"
PARSE_S = 5  # of an answer, and of a comparison; sympy may simplify for ever


@metric(binary=True, needs=("math_verify",))
def math_equal(prediction: str, answers: Sequence[str]) -> Score:
    r"""1 if the prediction's answer equals a reference as mathematics; MATH-500's metric.

    Its answer is in the last `\boxed{}`, else what math-verify finds in the text. Texts alike but
    for spaces are equal. math-verify (https://github.com/huggingface/Math-Verify) compares the
    rest: it is asked as its authors do, reference first.
    """
    ours = last_boxed(prediction)
    return best(prediction if ours is None else ours, answers, _equal(ours is not None))


def last_boxed(text: str) -> str | None:
    r"""What the last `\boxed{...}` of `text` holds; None if there is none that is closed."""
    start = text.rfind(_BOXED)
    while start >= 0:
        depth, begin = 1, start + len(_BOXED)
        for end in range(begin, len(text)):
            depth += (text[end] == "{") - (text[end] == "}")
            if depth == 0:
                return text[begin:end].strip()
        start = text.rfind(_BOXED, 0, start)
    return None


def _equal(is_boxed: bool) -> Any:
    def equal(ours: str, reference: str) -> float:
        if is_boxed and "".join(ours.split()) == "".join(reference.split()):
            return 1.0
        from math_verify import verify  # slow to import

        wanted = _parsed(f"${reference}$")
        found = _parsed(f"${ours}$" if is_boxed else ours)
        return float(bool(verify(list(wanted), list(found), timeout_seconds=_limit())))

    return equal


@lru_cache(maxsize=4096)
def _parsed(text: str) -> tuple[Any, ...]:
    from math_verify import parse

    return tuple(parse(text, parsing_timeout=_limit()))


def _limit() -> int | None:
    """Its time limit is an alarm signal, which only the main thread can have."""
    return PARSE_S if threading.current_thread() is threading.main_thread() else None
