"""Speed of `kvx.prepare`'s counting of tokens beside the tokenizer's own batch call.

Both tokenise the same texts, turn by turn, `--rounds` times; the best time of each counts. The
batch call gets every distinct text once, as one list, which is what there is to do. Needs
`make assets`.

    RAYON_NUM_THREADS=2 python scripts/bench_prepare.py
    RAYON_NUM_THREADS=2 python scripts/bench_prepare.py dataset=narrativeqa_documents
"""

import argparse
import math
import tempfile
import time
from collections.abc import Callable
from typing import Any

from kvx.cli.command import compose
from kvx.data import manifest as manifests
from kvx.data.prompt import PromptBuilder
from kvx.data.tokenizer import load_tokenizer
from kvx.prepare.build import ensure_manifest
from kvx.prepare.prompt_lengths import Sizer


class Recorder:
    """A tokenizer that keeps the texts it is given."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self.texts = tokenizer, list[str]()
        self.backend_tokenizer = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def encode_batch_fast(self, texts: list[str], **options: Any) -> Any:
        self.texts += texts
        return self._tokenizer.backend_tokenizer.encode_batch_fast(texts, **options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("overrides", nargs="*", default=["dataset=niah"])
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = compose("model=smollm2", f"paths.output={folder}", *given.overrides)
        tokenizer = load_tokenizer(config.model)
        builder = PromptBuilder(tokenizer, config)
        examples = list(manifests.make_source(config.dataset).examples())

        recorder = Recorder(tokenizer)
        sizer = Sizer(config, PromptBuilder(recorder, config))
        list(sizer.fitting(iter(examples)))
        texts = recorder.texts[1:]  # without the probe
        assert len(set(texts)) == len(texts), "a text was tokenised twice"

        def ours() -> None:
            list(Sizer(config, PromptBuilder(tokenizer, config)).fitting(iter(examples)))

        def batch() -> None:
            tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)

        def one_by_one() -> None:  # as it was: context, prompt and context again
            for example in examples:
                builder.parts(example)
                builder.context_tokens(example)

        works = (batch, ours, one_by_one)
        best = {work.__name__: (math.inf, math.inf) for work in works}
        for _ in range(given.rounds):
            for work in works:
                wall, cpu = seconds(work)
                before = best[work.__name__]
                best[work.__name__] = min(before[0], wall), min(before[1], cpu)
        n_chars = sum(map(len, texts))
        print(f"{len(examples)} examples, {len(texts)} texts, {n_chars / 1e6:.1f} M characters")
        for name, (wall, cpu) in best.items():
            speed = f"{best['batch'][0] / wall:5.0%} of the batch call's speed"
            by_cpu = f"{best['batch'][1] / cpu:5.0%} by CPU seconds"
            print(f"{name:10s} {wall:6.2f} s {cpu:6.2f} CPU s  {speed}, {by_cpu}")
        first, _ = seconds(lambda: ensure_manifest(config))
        again, _ = seconds(lambda: ensure_manifest(config))
        print(f"prepare {first:.2f} s; again, nothing changed {again:.3f} s")


def seconds(work: Callable[[], Any]) -> tuple[float, float]:
    """Wall and CPU seconds; the latter of all threads."""
    started = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - started[0], time.process_time() - started[1]


if __name__ == "__main__":
    main()
