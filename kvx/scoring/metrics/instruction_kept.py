"""The metric of answers that are instructions to be checked."""

from collections.abc import Sequence

from kvx.errors import UserError, shown
from kvx.scoring.instructions import parse
from kvx.scoring.metrics.base import Score, metric


def _are_instructions(answers: Sequence[str]) -> str | None:
    wrong = [answer for answer in answers if parse(answer) is None]
    return f"no instruction in its reference {shown(wrong[0])}" if wrong else None


@metric(binary="one reference", fits=_are_instructions)
def instruction_kept(prediction: str, answers: Sequence[str]) -> Score:
    """Share of the instructions in `answers` that the prediction keeps, for dataset=instructions.

    Raises `UserError` for an answer that is no instruction in JSON (`kvx.scoring.instructions`).
    """
    kept = []
    for answer in answers:
        instruction = parse(answer)
        if instruction is None:
            raise UserError(
                f"dataset.metrics: instruction_kept needs an instruction to check, not the answer "
                f"{answer[:60]!r}; use it with dataset=instructions"
            )
        kept.append(instruction.kept(prediction))
    return Score(sum(kept) / max(1, len(kept)), prediction.strip(), " | ".join(answers))
