"""kvx's LongBench metrics beside lm-eval's, on 200 synthetic answers of each task.

lm-eval needs no environment of kvx's: `pip install --no-deps lm-eval==0.4.13 jieba==0.42.1
rouge==1.0.1 six fuzzywuzzy==0.18.0 python-Levenshtein` in one of its own, whose Python is named.

    python scripts/longbench_metrics.py --python /tmp/lm-eval/bin/python

Code is Python's own argparse, other texts are drawn words. A task's answers are made from its
references: as they are, shuffled, cut, repeated, with commas,
several numbers, comments or fences before them, lines after them, or line breaks before them.
lm-eval gets what its harness would: the text up to a stop string of the task's YAML. An answer on
which the two differ is told by what it has: a line break before the first line, where lm-eval's
stop string ends the answer (LongBench drops such line breaks), or a first line of code that is
blank (lm-eval passes over it, LongBench takes it). Exit code 1 for any other difference.

`--answers N` sets their number. The last table is LongBench's code similarity by fuzzywuzzy, with
and without python-Levenshtein.
"""

import argparse
import inspect
import json
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from kvx.config.folders import conf_dir
from kvx.scoring.metrics import METRICS

TOLERANCE = 1e-9
Row = dict[str, Any]

# what runs in lm-eval's environment: its own functions, by the file they are in
THEIRS = """
import importlib.util, json, re, sys
from pathlib import Path

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "Levenshtein":
            raise ModuleNotFoundError(name)

rows, hide = json.load(sys.stdin), sys.argv[1] == "hide"
if hide:
    sys.meta_path.insert(0, Hidden())
folder = Path(importlib.util.find_spec("lm_eval").submodule_search_locations[0])
folder = folder / "tasks" / "longbench"
spec = importlib.util.spec_from_file_location("metrics", folder / "metrics.py")
metrics = importlib.util.module_from_spec(spec)
spec.loader.exec_module(metrics)
metrics.jieba.setLogLevel(30)
found = []
for row in rows:
    text = (folder / (row["task"] + ".yaml")).read_text()
    function = getattr(metrics, re.search(r"process_results: !function metrics.(\\w+)", text)[1])
    stops = json.loads(re.search(r"until: (\\[.*\\])", text)[1])
    cut = row["text"]
    for stop in stops:
        cut = cut.split(stop)[0]
    scores = function({"answers": row["answers"], "all_classes": row["all_classes"]}, [cut])
    found.append(scores["score"])
json.dump(found, sys.stdout)
"""

WORDS = [
    "harbour",
    "captain",
    "storm",
    "letter",
    "island",
    "gold",
    "map",
    "sailor",
    "night",
    "lamp",
]
ZH = [
    "我们",
    "今天",
    "讨论",
    "公司",
    "市场",
    "产品",
    "会议",
    "问题",
    "北京",
    "计划",
    "增长",
    "年度",
]
TREC = [
    "Definition of something", "Food", "Date", "Number of something", "Other number", "City",
    "Other location", "Individual", "Individual or organization", "Description of a person",
    "Description",
]  # fmt: skip
LSHT = ["体育", "财经", "社会", "科技", "文化", "文化教育", "教育", "教育科技"]
CODE = [line for line in inspect.getsource(argparse).split("\n") if len(line.strip()) > 8]


def sentence(rng: random.Random, words: Sequence[str], n: int, space: str = " ") -> str:
    return space.join(rng.choice(words) for _ in range(n))


def reference(task: str, rng: random.Random) -> tuple[list[str], list[str] | None]:
    """References of one row of `task`, and its classes."""
    if task == "trec":
        return [rng.choice(TREC)], TREC
    if task == "lsht":
        return [rng.choice(LSHT)], LSHT
    if task == "passage_count":
        return [str(rng.randint(1, 30))], None
    if task.startswith("passage_retrieval"):
        word = "段落" if task.endswith("zh") else "Paragraph "
        return [f"{word}{rng.randint(1, 30)}"], None
    if task in ("lcc", "repobench-p"):
        return [rng.choice(CODE)], None
    if task in ("multifieldqa_zh", "dureader", "vcsum"):
        n = 80 if task == "vcsum" else 6
        return [
            sentence(rng, ZH, rng.randint(2, n), "") + "。" for _ in range(rng.randint(1, 2))
        ], None
    n = 60 if task in ("gov_report", "qmsum", "multi_news", "samsum") else 4
    texts = [
        ". ".join(sentence(rng, WORDS, rng.randint(1, 9)) for _ in range(rng.randint(1, n // 4)))
        for _ in range(rng.randint(1, 3))
    ]
    return texts, None


def answer(task: str, answers: Sequence[str], rng: random.Random) -> str:
    """What a model could have said to a row with these references."""
    said = rng.choice(answers)
    words = said.split(" ") if " " in said else list(said)
    space = " " if " " in said else ""
    others: list[Callable[[], str]] = [
        lambda: said,
        lambda: said.upper(),
        lambda: f"The answer is: {said}.",
        lambda: space.join(rng.sample(words, len(words))),
        lambda: space.join(words[: 1 + len(words) // 2]),
        lambda: f"{said} " * rng.randint(2, 20),
        lambda: f"{said}, {rng.randint(1, 30)}, 1,{rng.randint(100, 999)}",
        lambda: f"{answer_of_another(task, rng)} or {said}",
        lambda: answer_of_another(task, rng),
        lambda: f"{said}\n{answer_of_another(task, rng)}\nQuestion: who?",
        lambda: f"\n\n{said}\n{answer_of_another(task, rng)}",
        lambda: f"```python\n# {said}\n{said}\n```",
        lambda: f"// {said}\n{said}  # as asked",
        lambda: f"   \n{said}",
        lambda: "",
        lambda: "...",
        lambda: " ",
    ]
    return rng.choice(others)()


def answer_of_another(task: str, rng: random.Random) -> str:
    return reference(task, rng)[0][0]


def rows_of(task: str, n: int) -> list[Row]:
    rng = random.Random(f"{task}-0")
    rows = []
    for _ in range(n):
        answers, classes = reference(task, rng)
        text = answer(task, answers, rng)
        rows.append({"task": task, "answers": answers, "all_classes": classes, "text": text})
    return rows


def theirs(python: str, rows: Sequence[Row], hide: bool = True) -> list[float]:
    """lm-eval's scores; without python-Levenshtein if `hide`."""
    done = subprocess.run(
        [python, "-c", THEIRS, "hide" if hide else "show"], input=json.dumps(rows), text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{python}: {done.stderr.strip().splitlines()[-1]}")
    return list(json.loads(done.stdout))


def reason(row: Row, metric: str) -> str | None:
    """Why the two may differ on an answer; None if they may not."""
    if metric.endswith("_first_line") and row["text"].startswith("\n"):
        return "line break first"
    first = row["text"].lstrip("\n").split("\n")[0]
    if metric == "code_similarity" and row["text"] and not first.strip():
        return "blank line first"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--python", required=True, help="of an environment with lm-eval 0.4.13")
    parser.add_argument("--answers", type=int, default=200, help="of each task")
    asked = parser.parse_args()
    tasks: Any = OmegaConf.load(Path(conf_dir()) / "dataset" / "longbench.yaml").tasks
    rows = [row for task in tasks for row in rows_of(task, asked.answers)]
    values = theirs(asked.python, rows)
    print(
        "| task | metric | mean | equal | line break first | blank line first | other | largest |"
    )
    print("|---|---|---|---|---|---|---|---|")
    unexplained = 0
    for task, entry in tasks.items():
        name = entry.metrics[0]
        pairs = [(r, v) for r, v in zip(rows, values, strict=True) if r["task"] == task]
        counts = {"line break first": 0, "blank line first": 0, None: 0}
        largest, total, equal = 0.0, 0.0, 0
        for row, value in pairs:
            ours = METRICS.get(name, "")(row["text"], row["answers"], row).value
            total += ours
            if abs(ours - value) <= TOLERANCE:
                equal += 1
                continue
            why = reason(row, name)
            counts[why] += 1
            if why is None:
                largest = max(largest, abs(ours - value))
        unexplained += counts[None]
        differ = " | ".join(map(str, counts.values()))
        print(
            f"| {task} | {name} | {total / len(pairs):.3f} | {equal} | {differ} | {largest:.1e} |"
        )
    _with_levenshtein(asked.python, [r for r in rows if r["task"] in ("lcc", "repobench-p")])
    return int(unexplained > 0)


def _with_levenshtein(python: str, rows: Sequence[Row]) -> None:
    """How far fuzzywuzzy's two backends are apart on the code tasks."""
    without, beside = theirs(python, rows), theirs(python, rows, hide=False)
    apart = [b - a for a, b in zip(without, beside, strict=True)]
    print(
        f"\nfuzzywuzzy with python-Levenshtein: {sum(a != 0 for a in apart)} of {len(rows)} code "
        f"answers differ, by {sum(apart) / len(apart):+.4f} in the mean, "
        f"{min(apart):+.2f} to {max(apart):+.2f}"
    )


if __name__ == "__main__":
    sys.exit(main())
