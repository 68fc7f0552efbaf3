"""The metric of repeating a text behind a given prefix: OpenAI's MRCR."""

from collections.abc import Sequence
from difflib import SequenceMatcher

from kvx.scoring.metrics.base import Score, best, metric


@metric(reads=("random_string_to_prepend",))
def mrcr_ratio(prediction: str, answers: Sequence[str], random_string_to_prepend: str) -> Score:
    """difflib's ratio of prediction and reference without their prefix; 0 if it does not begin so.

    MRCR's metric (https://huggingface.co/datasets/openai/mrcr), difflib's heuristic for frequent
    characters included: in texts of 200 characters and more, characters that make up more than 1%
    of the reference anchor no match.
    """
    prefix = random_string_to_prepend
    if not prediction.startswith(prefix):
        return best(prediction, [a.removeprefix(prefix) for a in answers], lambda a, b: 0.0)
    ours = prediction.removeprefix(prefix)
    return best(
        ours,
        [a.removeprefix(prefix) for a in answers],
        lambda a, b: SequenceMatcher(None, a, b).ratio(),
    )
