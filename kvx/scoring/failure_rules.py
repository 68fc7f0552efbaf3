"""Failures found in a response's text; those without a response are in `kvx.scoring.failures`."""

import json
import re
from collections.abc import Callable

from kvx.errors import UserError
from kvx.scoring.failures import FailureType
from kvx.scoring.metrics.numeric import find_number

ANY = "any"  # of score.answer_format: no format is asked for
ONLY_REASONING = "only reasoning"


def check_format(answer_format: str | None, field: str = "dataset.answer_format") -> None:
    """Raises `UserError` for a format that is not in `ANSWER_FORMATS`; None stands for any text."""
    if answer_format is not None and answer_format not in ANSWER_FORMATS:
        any_text = ANY if field == "score.answer_format" else "null"
        raise UserError(
            f"{field}={answer_format}: unknown format; choose from "
            f"{', '.join(ANSWER_FORMATS)}, or {any_text} for any text"
        )


def classify_response(
    text: str, finish_reason: str | None, answer_format: str | None, unfinished: bool = False
) -> FailureType | None:
    """What keeps a response from being an answer, or None. The first of these that holds:

    - EMPTY_OUTPUT: no text, or whitespace only, also when the token cap was hit.
    - REFUSAL: the text starts as a refusal, or the server's content filter ended it.
    - TRUNCATED: the token cap ended it (`finish_reason` "length"), whatever its format.
    - FORMAT_ERROR: not of `answer_format`: `number` (no number in it), `json` (neither the text nor
      its fenced block parses) or `yes_no` (neither is the first word).

    `text` is the answer: without reasoning (unless that is kept), and up to the first stop string.
    An `unfinished` response was all reasoning: TRUNCATED if the token cap ended it, else
    EMPTY_OUTPUT. Every response here is scored too. Raises `UserError` for an unknown
    `answer_format`, whatever the text.
    """
    check_format(answer_format)
    if not text.strip():
        capped = unfinished and finish_reason == "length"
        return FailureType.TRUNCATED if capped else FailureType.EMPTY_OUTPUT
    if finish_reason == "content_filter" or _is_refusal(text):
        return FailureType.REFUSAL
    if finish_reason == "length":
        return FailureType.TRUNCATED
    if answer_format is not None and not ANSWER_FORMATS[answer_format](text):
        return FailureType.FORMAT_ERROR
    return None


_UNABLE = r"I(?: can't| cannot| can not| won't| will not|(?:'m| am) (?:unable|not able) to)"
_SORRY = (
    r"(?:(?:(?:I'm|I am) )?(?:(?:very|so|really) )?sorry|I apologi[sz]e|my apologies)"
    r"[,.:;]? (?:but )?"
)
_AS_AN_AI = r"as an? (?:AI|artificial intelligence)\b[^.,]{0,40}, "
_REFUSAL = re.compile(
    rf"(?:{_SORRY}(?:{_AS_AN_AI})?|{_AS_AN_AI}){_UNABLE}\b"
    rf"|(?:unfortunately, )?{_UNABLE} (?:assist|comply|fulfill?|help (?:you|with))\b",
    re.IGNORECASE,
)
_LACKING = re.compile(
    r"(?:can't|cannot|can not|able to) "
    r"(?:find|see|locate|recall|remember|determine|identify|infer)\b"
    r"|\b(?:in|from|on) the (?:given|provided|text|context|stor|passage|document|article|summar)",
    re.IGNORECASE,
)


def _is_refusal(text: str) -> bool:
    """Whether `text` starts with a refusal, in English.

    "I can't find it in the text" is none: it is a wrong answer, the damage that compression does.
    """
    head = " ".join(text[:400].replace("’", "'").split()).lstrip("*_\"'“# ")
    return bool(_REFUSAL.match(head)) and not _LACKING.search(head[:200])


def _is_json(text: str) -> bool:
    fenced = text.partition("```")[2].partition("```")[0].strip()
    return _parses(text) or _parses(fenced[4:] if fenced[:4].lower() == "json" else fenced)


def _parses(text: str) -> bool:
    try:
        json.loads(text, parse_int=str)  # int() refuses more than 4,300 digits; JSON does not
    except (ValueError, RecursionError):  # a loop of "[" nests too deeply
        return False
    return True


def _is_yes_no(text: str) -> bool:
    first = re.search(r"[^\W_]+", text)
    return first is not None and first[0].lower() in ("yes", "no")


ANSWER_FORMATS: dict[str, Callable[[str], bool]] = {
    "number": lambda text: find_number(text) is not None,
    "json": _is_json,
    "yes_no": _is_yes_no,
}
