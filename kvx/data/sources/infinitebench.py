"""InfiniteBench's generated tasks (https://arxiv.org/abs/2402.13718, code under MIT), at any size.

Wording of contexts and questions is the benchmark's. Its own sizes: 5,220 lines of noise (passkey,
number_string), 1,855 pairs (kv_retrieval).
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

from kvx.data.example import Example
from kvx.data.ranges import check_least, check_range, one_of
from kvx.data.texts import log_uniform

VERSION = "1"
TASKS = ("passkey", "number_string", "kv_retrieval", "math_find")
NOISE = (
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
)
PASSKEY = "The pass key is {key}. Remember it. {key} is the pass key.\n"
NUMBER_STRING = "The sequence of digits is {key}. Remember it. {key} is the sequence of digits.\n"
KV_QUESTION = 'Key: "{key}"\nThe value associated with the specified key is: '
MATH_FIND = "You should answer with only one number, no other words. The {kind} of the list is: "
# the paper's seven: the three largest, the three smallest, and the median
KINDS = (
    "largest number", "second largest number", "third largest number",
    "smallest number", "second smallest number", "third smallest number", "median number",
)  # fmt: skip
HIGHEST = 999  # three new tokens are allowed, which is a digit each at worst


@dataclass
class InfiniteBenchSource:
    """`n_examples` contexts of `min_items`..`max_items` lines, pairs or numbers (log-uniform).

    What is asked for stands at depths that are spread evenly.
    """

    task: str
    n_examples: int = 200
    min_items: int = 20
    max_items: int = 150
    seed: int = 0

    def __post_init__(self) -> None:
        one_of("task", self.task, TASKS)
        check_least("n_examples", self.n_examples)
        least = len(KINDS) if self.task == "math_find" else 1
        check_range("min_items", self.min_items, "max_items", self.max_items, least)

    def revision(self) -> str:
        return f"infinitebench-{VERSION}"

    def examples(self) -> Iterator[Example]:
        depths = [(i + 0.5) / self.n_examples for i in range(self.n_examples)]
        random.Random(self.seed).shuffle(depths)
        for index, depth in enumerate(depths):
            rng = random.Random(f"{self.seed}-{self.task}-{index}")
            n_items = log_uniform(self.min_items, self.max_items, rng)
            context, question, answer = self._row(n_items, depth, rng)
            yield Example(
                example_id=f"{self.task}-{self.seed}-{index:05d}",
                context=context,
                question=question,
                answers=(answer,),
                meta={"depth": round(depth, 4), "n_items": n_items},
            )

    def _row(self, n_items: int, depth: float, rng: random.Random) -> tuple[str, str, str]:
        if self.task == "passkey":
            key = "".join(rng.choices("0123456789", k=5))
            return _hidden(PASSKEY.format(key=key), n_items, depth), "What is the pass key?", key
        if self.task == "number_string":
            key = _repeating_digits(rng)
            sentence = NUMBER_STRING.format(key=key)
            return _hidden(sentence, n_items, depth), "What is the sequence of digits?", key
        if self.task == "kv_retrieval":
            pairs = uuid_pairs(n_items, rng)
            key, value = pairs[min(int(depth * n_items), n_items - 1)]
            return json_context(pairs), KV_QUESTION.format(key=key), value
        kind = rng.choice(KINDS)
        numbers = distinct_extremes(n_items, rng)
        context = f"What is the {kind} in the following list?\n\n{numbers}"
        return context, MATH_FIND.format(kind=kind), str(found(kind, numbers))


def _hidden(sentence: str, n_lines: int, depth: float) -> str:
    before = round(depth * n_lines)
    return NOISE * before + sentence + NOISE * (n_lines - before)


def _repeating_digits(rng: random.Random) -> str:
    """Ten digits: five at random, and five that each repeat the digit where they are put in."""
    digits = rng.choices("0123456789", k=5)
    for _ in range(5):
        place = rng.randrange(len(digits))
        digits.insert(place, digits[place])
    return "".join(digits)


def uuid_pairs(n: int, rng: random.Random) -> list[tuple[str, str]]:
    """`n` pairs of random UUIDs: keys, all different, and values."""
    keys = {_uuid(rng): None for _ in range(n)}
    while len(keys) < n:
        keys[_uuid(rng)] = None
    return [(key, _uuid(rng)) for key in keys]


def _uuid(rng: random.Random) -> str:
    return str(UUID(int=rng.getrandbits(128), version=4))


def json_context(pairs: list[tuple[str, str]]) -> str:
    return "JSON data:\n" + json.dumps(dict(pairs))


def distinct_extremes(n: int, rng: random.Random) -> list[int]:
    """An odd number of numbers, `n` or n + 1.

    The three largest and the three smallest occur once, so that each kind has one answer.
    """
    low = sorted(rng.sample(range(1, HIGHEST // 3), 3))
    high = sorted(rng.sample(range(2 * HIGHEST // 3, HIGHEST), 3))
    others = [rng.randint(low[-1] + 1, high[0] - 1) for _ in range(n + 1 - n % 2 - 6)]
    numbers = [*low, *high, *others]
    rng.shuffle(numbers)
    return numbers


def found(kind: str, numbers: list[int]) -> int:
    """The number of one of `KINDS`."""
    ordered = sorted(numbers)
    if kind.startswith("median"):
        return ordered[len(ordered) // 2]
    rank = {"second": 1, "third": 2}.get(kind.split()[0], 0)
    return ordered[rank] if "smallest" in kind else ordered[-1 - rank]
