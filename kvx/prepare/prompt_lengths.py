"""Examples with the lengths of their parts in tokens, cut to the model's context where allowed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby

from kvx.config.dataset import BinUnit, Overflow
from kvx.config.engine import OpenAIConfig
from kvx.config.schema import Config
from kvx.data.binning import bin_of
from kvx.data.example import Example
from kvx.data.model_folder import files_of
from kvx.data.prompt import PromptBuilder, truncate_context
from kvx.data.token_counts import Count, batches
from kvx.data.tokenizer import max_context_tokens
from kvx.data.truncation import TRUNCATED_FROM, truncate_prompt
from kvx.errors import UserError

# A prompt may have other tokens than its parts where they meet; this many are allowed for.
JOINTS = 256


@dataclass(frozen=True)
class Sized:
    """An example with its tokens: of the context alone, of the compressed part, of the prompt.

    The last two are null while it is enough to know that the prompt fits.
    """

    example: Example
    context_tokens: int
    compressed_tokens: int | None = None
    prompt_tokens: int | None = None


class Sizer:
    """Measures the examples of one configuration, many at a time."""

    def __init__(self, config: Config, builder: PromptBuilder) -> None:
        self.config, self.builder = config, builder
        self.count = builder.counter
        self.limit = max_context_tokens(config.model)
        self.most = config.dataset.max_prompt_tokens
        self.known = _vocabulary(config)
        overflow, sampling = config.dataset.overflow, config.dataset.sampling
        # questions on one context keep one context, whatever is cut
        self.alike = sampling.whole_clusters and overflow is not Overflow.truncate_prompt

    def length(self, example: Example, context_tokens: int) -> int:
        """What decides an example's bin. Raises `UserError` for a row without words of its own."""
        if self.config.dataset.binning.unit is BinUnit.tokens:
            return context_tokens
        words = example.meta.get("length")
        if type(words) is not int:
            raise UserError(
                f"example {example.example_id}: no length in its row, which "
                "dataset.binning.unit=words needs"
            )
        return words

    def inside(self, examples: Iterator[Example], edges: Sequence[int]) -> Iterator[Example]:
        """The examples whose length is between `edges`."""
        for batch in batches(examples, _chars):
            found = self.count([e.context for e in batch])
            for example, context in zip(batch, found, strict=True):
                if bin_of(self.length(example, context.n_tokens), edges) is not None:
                    yield example

    def fitting(self, examples: Iterator[Example]) -> Iterator[Sized]:
        """The examples as they fit the model's context, cut if the configuration says so.

        A prompt is tokenised only if it could be too long: its context's tokens, a token for each
        byte around it, and some to spare exceed the model's context. Raises `UserError` for one
        that does not fit and must not be cut, and for tokens that the model does not have.
        """
        for batch in self._batches(examples):
            found = self.count([example.context for example in batch])
            sized, unsure = {}, {}
            for place, (example, context) in enumerate(zip(batch, found, strict=True)):
                self._check_known(example, context)
                before, rest = self.builder.texts(example)
                n_around = len((before + rest).encode()) - len(example.context.strip().encode())
                most = context.n_tokens + n_around + JOINTS
                fits = most + self._new_tokens(example) <= self.limit
                if fits and (self.most is None or most <= self.most):
                    sized[place] = Sized(example, context.n_tokens)
                else:
                    unsure[place] = example
            if self.alike:
                contexts = {example.context for example in unsure.values()}
                unsure = {n: e for n, e in enumerate(batch) if e.context in contexts}
            found_sizes = list(self._sized(list(unsure.values())))
            cut = self._cut_alike(found_sizes) if self.alike else map(self._cut, found_sizes)
            sized |= dict(zip(unsure, cut, strict=True))
            yield from (sized[place] for place in range(len(batch)))

    def complete(self, chosen: Sequence[Sized]) -> list[Sized]:
        """`chosen` with all their lengths."""
        open_ = [sized.example for sized in chosen if sized.prompt_tokens is None]
        found = (s for batch in batches(open_, _chars) for s in self._sized(batch))
        return [next(found) if sized.prompt_tokens is None else sized for sized in chosen]

    def _sized(self, batch: Sequence[Example]) -> Iterator[Sized]:
        texts = [self.builder.texts(example) for example in batch]
        contexts = self.count([example.context for example in batch])
        befores = self.count([before for before, _ in texts])
        rests = self.count([rest for _, rest in texts])
        for example, context, before, rest in zip(batch, contexts, befores, rests, strict=True):
            self._check_known(example, before, rest)
            total = before.n_tokens + rest.n_tokens
            yield Sized(example, context.n_tokens, before.n_tokens, total)

    def _check_known(self, example: Example, *counts: Count) -> None:
        if self.known is not None and max(c.highest_id for c in counts) >= self.known:
            raise UserError(
                f"example {example.example_id}: its tokens are not all among the {self.known} of "
                f"model={self.config.model.name}; is the tokenizer in its folder another model's?"
            )

    def _excess(self, sized: Sized) -> int:
        """Tokens by which prompt and answer exceed the model's context."""
        assert sized.prompt_tokens is not None
        return sized.prompt_tokens + self._new_tokens(sized.example) - self.limit

    def _new_tokens(self, example: Example) -> int:
        usual = self.config.decoding.max_new_tokens
        return usual if example.max_new_tokens is None else example.max_new_tokens

    def _batches(self, examples: Iterator[Example]) -> Iterator[list[Example]]:
        """Lists of examples; those on one context come together where they are cut alike."""
        if not self.alike:
            return batches(examples, _chars)
        groups: dict[str, list[Example]] = {}
        for example in examples:
            groups.setdefault(example.context, []).append(example)
        joined = batches(iter(groups.values()), lambda group: sum(map(_chars, group)))
        return (list(chain.from_iterable(groups)) for groups in joined)

    def _cut_alike(self, sizes: Sequence[Sized]) -> Iterator[Sized]:
        """Each example, the questions on one context cut as the longest of them."""
        for _, group in groupby(sizes, key=lambda sized: sized.example.context):
            asked = list(group)
            longest = max(asked, key=self._excess)
            cut = self._cut(longest)
            if cut is longest:
                yield from asked
                continue
            context, was = cut.example.context, {TRUNCATED_FROM: longest.context_tokens}
            examples = [
                replace(a.example, context=context, meta={**a.example.meta, **was}) for a in asked
            ]
            yield from self._sized(examples)

    def _cut(self, sized: Sized) -> Sized:
        excess, example = self._excess(sized), sized.example
        whole = self.config.dataset.overflow is Overflow.truncate_prompt
        if whole and (excess > 0 or self.most is not None):
            room = self.limit - self._new_tokens(example)
            cut = truncate_prompt(example, room, self.builder, self.most)
            return sized if cut is example else next(self._sized([cut]))
        return sized if excess <= 0 else self._shortened(sized, excess)

    def _shortened(self, sized: Sized, excess: int) -> Sized:
        example, before = sized.example, sized.context_tokens
        name, overflow = self.config.model.name, self.config.dataset.overflow
        if overflow is Overflow.error:
            raise UserError(
                f"example {example.example_id}: prompt and {self._new_tokens(example)} new tokens "
                f"exceed the context of model={name} ({self.limit}) by {excess}; set "
                "dataset.overflow=truncate_middle, truncate_head or truncate_prompt, or use "
                "shorter contexts"
            )
        middle = overflow is Overflow.truncate_middle
        keep = before - excess
        while keep > 0:  # decoding and encoding again may change the length by a few tokens
            context = truncate_context(example.context, keep, self.builder.tokenizer, middle)
            meta = {**example.meta, TRUNCATED_FROM: before}
            (cut,) = self._sized([replace(example, context=context, meta=meta)])
            if (over := self._excess(cut)) <= 0:
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
