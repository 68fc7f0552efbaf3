"""Examples with the lengths of their parts in tokens, cut to the model's context where allowed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from kvx.config.dataset import Overflow
from kvx.config.engine import OpenAIConfig
from kvx.config.schema import Config
from kvx.data.binning import bin_of
from kvx.data.example import Example
from kvx.data.model_folder import files_of
from kvx.data.prompt import PromptBuilder, truncate_context
from kvx.data.token_counts import TokenCounter, batches
from kvx.data.tokenizer import max_context_tokens
from kvx.errors import UserError

TRUNCATED_FROM = "truncated_from_tokens"


@dataclass(frozen=True)
class Sized:
    """An example with its tokens: of the context alone, of the compressed part, of the prompt."""

    example: Example
    context_tokens: int
    compressed_tokens: int
    prompt_tokens: int


class Sizer:
    """Measures the examples of one configuration, many at a time."""

    def __init__(self, config: Config, builder: PromptBuilder) -> None:
        self.config, self.builder = config, builder
        self.count = TokenCounter(builder.tokenizer)
        self.limit = max_context_tokens(config.model)
        self.known = _vocabulary(config)

    def inside(self, examples: Iterator[Example], edges: Sequence[int]) -> Iterator[Example]:
        """The examples whose contexts are of a length between `edges`."""
        for batch in batches(examples, _chars):
            found = self.count([e.context for e in batch])
            for example, context in zip(batch, found, strict=True):
                if bin_of(context.n_tokens, edges) is not None:
                    yield example

    def fitting(self, examples: Iterator[Example]) -> Iterator[Sized]:
        """The examples as they fit the model's context, cut if the configuration says so.

        Raises `UserError` for one that does not fit and must not be cut, and for tokens that the
        model does not have.
        """
        for batch in batches(examples, _chars):
            for sized, excess in self._sized(batch):
                yield sized if excess <= 0 else self._shortened(sized, excess)

    def _sized(self, batch: Sequence[Example]) -> Iterator[tuple[Sized, int]]:
        """Each example with the tokens by which it exceeds the model's context."""
        texts = [self.builder.texts(example) for example in batch]
        contexts = self.count([example.context for example in batch])
        parts = [self.count(part) for part in zip(*texts, strict=True)]
        for example, context, before, rest in zip(batch, contexts, *parts, strict=True):
            highest = max(before.highest_id, rest.highest_id)
            if self.known is not None and highest >= self.known:
                raise UserError(
                    f"example {example.example_id}: its tokens are not all among the {self.known} "
                    f"of model={self.config.model.name}; is the tokenizer in its folder another "
                    "model's?"
                )
            total = before.n_tokens + rest.n_tokens
            sized = Sized(example, context.n_tokens, before.n_tokens, total)
            yield sized, total + self._new_tokens(example) - self.limit

    def _new_tokens(self, example: Example) -> int:
        usual = self.config.decoding.max_new_tokens
        return usual if example.max_new_tokens is None else example.max_new_tokens

    def _shortened(self, sized: Sized, excess: int) -> Sized:
        example, before = sized.example, sized.context_tokens
        name, overflow = self.config.model.name, self.config.dataset.overflow
        if overflow is Overflow.error:
            raise UserError(
                f"example {example.example_id}: prompt and {self._new_tokens(example)} new tokens "
                f"exceed the context of model={name} ({self.limit}) by {excess}; set "
                "dataset.overflow=truncate_middle or truncate_head, or use shorter contexts"
            )
        middle = overflow is Overflow.truncate_middle
        keep = before - excess
        while keep > 0:  # decoding and encoding again may change the length by a few tokens
            context = truncate_context(example.context, keep, self.builder.tokenizer, middle)
            meta = {**example.meta, TRUNCATED_FROM: before}
            ((cut, over),) = self._sized([replace(example, context=context, meta=meta)])
            if over <= 0:
                return cut
            keep -= over
        raise UserError(
            f"example {example.example_id}: its question alone exceeds the context of model={name}"
        )


def _chars(example: Example) -> int:
    return len(example.context) + len(example.question)


def _vocabulary(config: Config) -> int | None:
    """How many tokens the model has; None for a server's, or where no file says."""
    files = files_of(config.model)
    if isinstance(config.engine, OpenAIConfig) or files.adapter or files.gguf:
        return None
    size = files.read_text_config().get("vocab_size")
    return size if isinstance(size, int) else None
