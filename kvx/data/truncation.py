"""Prompts cut in the middle, wording and context together, as LongBench cuts them."""

from dataclasses import replace

from kvx.data.example import Example
from kvx.data.prompt import PromptBuilder
from kvx.errors import UserError

TRUNCATED_FROM = "truncated_from_tokens"


def truncate_prompt(
    example: Example, room: int, builder: PromptBuilder, most: int | None = None
) -> Example:
    """`example` with a context of which the middle is left out, where its prompt is too long.

    Of a prompt of more than `most` tokens, counted before the chat template, the first and the last
    `most` / 2 are kept (of an odd number, one more at the end). The prompt, with its chat template,
    then fits into `room` tokens. Raises `UserError` where that would cut the wording.
    """
    before, after = builder.wording(example)
    ids = builder.tokenizer.encode(before + example.context + after)  # as LongBench counts
    n_tokens = min(len(ids), most or len(ids))
    while n_tokens > 0:
        cut = example
        if n_tokens < len(ids):
            cut = _kept(example, ids, n_tokens, builder)
        over = builder.parts(cut).n_tokens - room
        if over <= 0:
            return cut
        n_tokens -= over
    raise _no_room(example)


def _kept(example: Example, ids: list[int], n_tokens: int, builder: PromptBuilder) -> Example:
    """The example of the first and the last of the prompt's token `ids`, `n_tokens` together."""
    before, after = builder.wording(example)
    at = n_tokens // 2
    head, tail = (
        builder.tokenizer.decode(part, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for part in (ids[:at], ids[len(ids) - (n_tokens - at) :])
    )
    if not head.startswith(before) or not tail.endswith(after):
        raise _no_room(example)
    return replace(
        example,
        context=head[len(before) :] + tail[: len(tail) - len(after)],
        meta={**example.meta, TRUNCATED_FROM: builder.context_tokens(example)},
    )


def _no_room(example: Example) -> UserError:
    return UserError(
        f"example {example.example_id}: half of the tokens that are left do not hold what stands "
        "beside its context; raise dataset.max_prompt_tokens, or set "
        "dataset.overflow=truncate_middle"
    )
