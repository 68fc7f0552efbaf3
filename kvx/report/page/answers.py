"""What the sample browser of report.html shows: questions and answers, as many as there is room."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kvx.data.frozen_examples import examples_file
from kvx.errors import unreadable
from kvx.identity.hashing import digest
from kvx.report.page.kept_shown import Kept, kept_of
from kvx.report.page.packing import Pool, packed, plain
from kvx.store import layout
from kvx.store.catalog import PointRecord

MOST_ANSWERS = 20_000  # more are no help to a reader, and would take long to read and to pack
CONTEXT_CHARS = (None, 6_000, 1_500)  # what is left of a context where room is short
MOST_KEPT = 8_000_000  # tokens, about a byte each when packed
ANSWER_CHARS = 6_000
REQUEST = [
    "example_id", "text", "degenerate", "degenerate_reason", "finish_reason", "output_tokens",
    "context_tokens", "compressed_tokens",
]  # fmt: skip
FAILED = ["example_id", "error_type"]
JUDGED = ["example_id", "score", "failure", "looping", "loop_onset", "cap_reached"]

Marks = Mapping[tuple[str, str], Kept]
NOTHING: Marks = {}


@dataclass(frozen=True)
class Shown:
    """Packed examples; how many of all prompts, and the characters that contexts were cut to.

    `kept_left_out`: what presses kept is recorded, but there was no room for it.
    """

    data: str
    n_prompts: int
    n_all: int
    context_chars: int | None
    kept_left_out: bool = False


def answers(
    points: Sequence[PointRecord], number: Mapping[str, int], output: Path, room: int
) -> Shown:
    """The examples of all points in at most `room` characters.

    Where they do not fit, what presses kept of the contexts is left out first, then contexts are
    cut, then whole prompts are left out: as many of each
    bin, chosen by a hash of their names, and the same ones at every point.
    """
    chosen = [p for p in points if p.id in number]
    prompts = _prompts(chosen)
    kept = _evenly(prompts, min(len(prompts), _affordable(prompts, chosen)))
    rows_of = {p.id: _answers_of(p, kept) for p in chosen}
    texts = _texts(chosen, output, kept)
    marks, recorded = _kept(chosen, rows_of)
    for chars, shaded in [(None, marks), *((chars, NOTHING) for chars in CONTEXT_CHARS)]:
        data = packed(_tables(chosen, number, kept, rows_of, texts, shaded, chars))
        if len(data) <= room:
            break
    while len(data) > room and len(kept) > 1:
        kept = _evenly(kept, max(1, int(len(kept) * min(0.9, 0.95 * room / len(data)))))
        data = packed(_tables(chosen, number, kept, rows_of, texts, shaded, chars))
    return Shown(data, len(kept), len(prompts), chars, recorded and not shaded)


def _kept(
    points: Sequence[PointRecord], rows_of: Mapping[str, Sequence[Mapping[str, Any]]]
) -> tuple[Marks, bool]:
    """What was kept, by point and example, and whether it is recorded anywhere.

    Empty also where it is too much for any page.
    """
    traced = [p for p in points if p.info["config"].get("signals") == "full"]
    rows = [row for p in traced for row in rows_of[p.id]]
    if sum(row.get("compressed_tokens") or 0 for row in rows) > MOST_KEPT:
        return {}, True
    found = {
        (p.id, example): kept
        for p in traced
        for example, kept in kept_of(p, [row["example_id"] for row in rows_of[p.id]]).items()
    }
    return found, bool(found)


def _prompts(points: Sequence[PointRecord]) -> pd.DataFrame:
    """Every prompt of a manifest [rows]: `manifest`, `example_id`, `bin`."""
    found: dict[str, pd.DataFrame] = {}
    for point in points:
        key = point.info["manifest"]["key"]
        if key not in found:
            table = pq.read_table(
                layout.merged(point.dir, layout.REQUESTS),
                columns=["example_id", "bin"], partitioning=None,
            )  # fmt: skip
            found[key] = table.to_pandas().assign(manifest=key)
    frame: pd.DataFrame = pd.concat(found.values(), ignore_index=True)
    return frame


def _affordable(prompts: pd.DataFrame, points: Sequence[PointRecord]) -> int:
    per_prompt = len(points) / max(1, prompts["manifest"].nunique())
    return max(1, int(MOST_ANSWERS / max(1.0, per_prompt)))


def _evenly(prompts: pd.DataFrame, n: int) -> pd.DataFrame:
    """`n` of the prompts, as evenly as can be over manifests and bins; all if there are no more."""
    if n >= len(prompts):
        return prompts
    ranks = prompts["example_id"].map(lambda i: digest([i], 16))
    shuffled = prompts.assign(rank=ranks).sort_values("rank", kind="stable")
    turn = shuffled.groupby(["manifest", "bin"]).cumcount()
    kept = shuffled.loc[turn.sort_values(kind="stable").index[:n]].index
    return prompts.loc[prompts.index.isin(kept)]


def _answers_of(point: PointRecord, kept: pd.DataFrame) -> list[dict[str, Any]]:
    """A point's answers to the prompts kept, with how they were judged."""
    own = kept[kept["manifest"] == point.info["manifest"]["key"]]
    names = pa.array(own["example_id"], pa.string())

    def read(name: str, wanted: list[str]) -> list[dict[str, Any]]:
        path = point.dir / f"{name}.parquet"
        try:
            with pq.ParquetFile(path) as file:
                have = file.schema_arrow.names  # an older kvx wrote fewer columns
                table = file.read(columns=[c for c in wanted if c in have])
        except (OSError, ValueError) as error:
            raise unreadable(path, error) from None
        rows: list[dict[str, Any]] = table.filter(
            pc.is_in(table["example_id"], value_set=names)
        ).to_pylist()
        return rows

    judged = {row["example_id"]: row for row in read("catastrophes", JUDGED)}
    failed = {r["example_id"]: r["error_type"] for r in read("failures", FAILED)}
    found = []
    for row in read("requests", REQUEST):
        example = row["example_id"]
        # a request without a response is judged only as a failure
        found.append({"failure": failed.get(example), **row, **judged.get(example, {})})
    return found


def _texts(
    points: Sequence[PointRecord], output: Path, kept: pd.DataFrame
) -> dict[tuple[str, str], dict[str, Any]]:
    """Context, question and answers of the prompts kept, by manifest and example."""
    folders = {p.info["manifest"]["key"]: p.manifest_dir(output) for p in points}
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for key, group in kept.groupby("manifest"):
        table = pq.read_table(
            examples_file(folders[str(key)]),
            columns=["example_id", "context", "question", "answers"], partitioning=None,
            filters=pc.field("example_id").isin(list(group["example_id"])),
        )  # fmt: skip
        found |= {(str(key), row["example_id"]): row for row in table.to_pylist()}
    return found


def _tables(
    points: Sequence[PointRecord],
    number: Mapping[str, int],
    kept: pd.DataFrame,
    rows_of: Mapping[str, Sequence[Mapping[str, Any]]],
    texts: Mapping[tuple[str, str], dict[str, Any]],
    marks: Marks,
    context_chars: int | None,
) -> dict[str, Any]:
    """Prompts and answers as columns; texts by their number in `texts`."""
    pool = Pool()
    place = {
        (m, e): i for i, (m, e) in enumerate(zip(kept["manifest"], kept["example_id"], strict=True))
    }
    prompts: dict[str, list[Any]] = {
        n: [] for n in ("id", "bin", "tokens", "question", "references", "context", "chars")
    }
    tokens: dict[int, int | None] = {}
    chars: dict[int, list[int]] = {}
    rows: dict[str, list[Any]] = {
        n: []
        for n in (
            "point", "prompt", "text", "score", "failure", "looping", "onset", "capped",
            "degenerate", "finish", "tokens", "kept",
        )
    }  # fmt: skip
    for point in points:
        key = point.info["manifest"]["key"]
        for row in rows_of[point.id]:
            prompt = place.get((key, row["example_id"]))
            if prompt is None:
                continue
            tokens[prompt] = row.get("context_tokens")
            rows["point"].append(number[point.id])
            rows["prompt"].append(prompt)
            rows["text"].append(pool.number(_cut(row.get("text"), ANSWER_CHARS)))
            rows["score"].append(plain(row.get("score")))
            rows["failure"].append(pool.number(row["failure"]))
            rows["looping"].append(int(bool(row.get("looping"))))
            rows["onset"].append(row.get("loop_onset"))
            rows["capped"].append(int(bool(row.get("cap_reached"))))
            reason = row.get("degenerate_reason") or "degenerate"
            rows["degenerate"].append(pool.number(reason) if row["degenerate"] else None)
            rows["finish"].append(pool.number(row.get("finish_reason")))
            rows["tokens"].append(row.get("output_tokens"))
            shaded = marks.get((point.id, row["example_id"]))
            rows["kept"].append(None if shaded is None else pool.number(shaded[0]))
            if shaded is not None:
                chars[prompt] = shaded[1]
    for (key, example), i in place.items():
        text = texts[key, example]
        prompts["id"].append(example)
        prompts["bin"].append(int(kept["bin"].iloc[i]))
        prompts["tokens"].append(tokens.get(i))
        prompts["question"].append(pool.number(text["question"]))
        prompts["references"].append([pool.number(a) for a in text["answers"]])
        prompts["context"].append(pool.number(_cut(text["context"], context_chars)))
        prompts["chars"].append(chars.get(i))
    return {"texts": pool.texts, "prompts": prompts, "answers": rows}


def _cut(text: str | None, chars: int | None) -> str | None:
    """`text`, its middle left out where it is longer than `chars`."""
    if text is None or chars is None or len(text) <= chars:
        return text
    half = chars // 2
    left_out = len(text) - 2 * half
    return f"{text[:half]}\n[… {left_out:,} characters left out …]\n{text[-half:]}"
