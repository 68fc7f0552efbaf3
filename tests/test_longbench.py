"""LongBench's prompts, limits, layouts, bins and cuts, on small files of the published layouts."""

import json
import zipfile
from copy import deepcopy
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from conftest import Kvx
from omegaconf import OmegaConf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from kvx.cli.command import compose
from kvx.config.folders import conf_dir
from kvx.data.example import Example
from kvx.data.prompt import PromptBuilder
from kvx.data.sources.longbench import LongBenchSource
from kvx.data.sources.longbench_v2 import LongBenchV2Source
from kvx.data.tokenizer import load_tokenizer
from kvx.data.truncation import TRUNCATED_FROM, truncate_prompt
from kvx.errors import UserError
from kvx.identity.hashing import sha256_text
from kvx.prepare.build import ensure_manifest
from kvx.scoring.metrics import METRICS

SHIPPED: Any = OmegaConf.load(conf_dir() / "dataset" / "longbench.yaml")
# SHA-256 of the prompts in LongBench's dataset2prompt.json, the limits of its dataset2maxlen.json
PROMPTS = {
    "narrativeqa": ("aada7ed24b06", 128), "qasper": ("0fbdd123fe7f", 128),
    "multifieldqa_en": ("20b4666a2de8", 64), "multifieldqa_zh": ("344b3a4e557c", 64),
    "hotpotqa": ("9ec4ae308865", 32), "2wikimqa": ("9ec4ae308865", 32),
    "musique": ("9ec4ae308865", 32), "dureader": ("ae53329f51b1", 128),
    "gov_report": ("91c25d585b18", 512), "qmsum": ("dca23b678fe0", 512),
    "multi_news": ("2af3f28c40b9", 512), "vcsum": ("3e5d8241bc9b", 512),
    "trec": ("0eff8bebdba9", 64), "triviaqa": ("00a802e6377e", 32), "samsum": ("a68d88423490", 128),
    "lsht": ("f3edabdf7fae", 64), "passage_count": ("986550b6c610", 32),
    "passage_retrieval_en": ("39b96b7fa52b", 32), "passage_retrieval_zh": ("c1e2346e245e", 32),
    "lcc": ("6a1f24cf0bb8", 64), "repobench-p": ("ee9ec182ea5f", 64),
}  # fmt: skip
WITHOUT_CHAT = {"trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"}


def test_every_task_has_longbenchs_prompt_limit_and_a_metric() -> None:
    assert list(SHIPPED.tasks) == list(PROMPTS)
    for task, (prompt, limit) in PROMPTS.items():
        entry = SHIPPED.tasks[task]
        question = entry.template.question
        if not entry.get("source", {}).get("reads_input", True):
            question = question.removeprefix("{question}")
            assert "{question}" not in question
        text = entry.template.context + question.replace("{question}", "{input}")
        assert (sha256_text(text)[:12], entry.max_new_tokens) == (prompt, limit), task
        assert entry.template.get("chat", True) == (task not in WITHOUT_CHAT)
        assert all(name in METRICS.built_in for name in entry.metrics)
    firsts = {t for t, e in SHIPPED.tasks.items() if str(e.metrics[0]).endswith("_first_line")}
    assert firsts == {"trec", "triviaqa", "samsum", "lsht"}


def row(number: int, **own: Any) -> dict[str, Any]:
    return {"input": f"q{number}?", "context": f"the quick fox {number} " * 5, "answers": ["fox"],
            "length": 15, "dataset": "trec", "language": "en", "all_classes": ["fox", "red fox"],
            "_id": f"{number}"} | own  # fmt: skip


def write(folder: Path, name: str, *rows: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("\n".join(json.dumps(r) for r in rows))
    return folder


def test_the_published_layouts_hold_the_same_rows(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain", "trec.jsonl", row(0), row(1, input=""))
    write(tmp_path / "unpacked" / "data", "trec.jsonl", row(0), row(1, input=""))
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.write(plain / "trec.jsonl", "data/trec.jsonl")
        archive.writestr("__MACOSX/data/._trec.jsonl", b"\x00")
    sources = [
        LongBenchSource("trec", str(tmp_path / place))
        for place in ("plain", "unpacked", "data.zip")
    ]
    assert len({source.revision() for source in sources}) == 1
    first, *others = (list(source.examples()) for source in sources)
    assert first == others[0] == others[1]
    assert [e.question for e in first] == ["q0?", ""]
    assert first[0].meta == {"all_classes": ["fox", "red fox"]}
    unread = LongBenchSource("trec", str(plain), reads_input=False).examples()
    assert [e.question for e in unread] == ["", ""]


def test_a_place_that_is_not_longbenchs_says_what_is_there(tmp_path: Path) -> None:
    write(tmp_path, "trec.jsonl", row(0))
    write(tmp_path, "lcc.jsonl", {"prompt": "x", "completion": "y"})
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.write(tmp_path / "trec.jsonl", "data/trec.jsonl")
    (tmp_path / "empty").mkdir()
    for place, said in (
        ("", r"qasper\.jsonl: no such file; there is lcc, trec"),
        ("empty", r"no such file; there is no jsonl file; set dataset\.source\.path to a"),
        ("data.zip", r"data\.zip: holds no qasper\.jsonl; there is trec"),
        ("trec.jsonl", r"trec\.jsonl: cannot be read \(File is not a zip file\)"),
        ("nowhere", r"nowhere: no such file or directory; set dataset\.source\.path"),
    ):
        with pytest.raises(UserError, match=said):
            LongBenchSource("qasper", str(tmp_path / place)).revision()
    with pytest.raises(UserError, match=r"not LongBench's layout .*: it has prompt, completion"):
        next(LongBenchSource("lcc", str(tmp_path)).examples())
    with pytest.raises(UserError, match=r"trec_e\.jsonl: no such file; there is lcc, trec"):
        LongBenchSource("trec", str(tmp_path), even=True).revision()


def test_the_hubs_files_are_read_from_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the hub's client leaves them; a commit that is there is not asked for again."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    v1 = SHIPPED.source
    v2: Any = OmegaConf.load(conf_dir() / "dataset/longbench_v2.yaml").source
    for source in (v1, v2):
        folder = f"datasets--{source.hub.replace('/', '--')}/snapshots/{source.hub_revision}"
        (tmp_path / folder).mkdir(parents=True)
        if source is v1:
            with zipfile.ZipFile(tmp_path / folder / "data.zip", "w") as archive:
                archive.writestr("data/trec_e.jsonl", json.dumps(row(0)))
        else:
            (tmp_path / folder / "data.json").write_text(json.dumps([second(0)]))
    source = LongBenchSource("trec", None, v1.hub, v1.hub_revision, True, v1.archive, True)
    assert [e.example_id for e in source.examples()] == ["trec-0"]
    assert source.revision().endswith(f"zai-org/LongBench@{v1.hub_revision}")
    second_source = LongBenchV2Source(hub_revision=v2.hub_revision)
    assert [e.example_id for e in second_source.examples()] == ["v0"]
    with pytest.raises(UserError, match=r"holds no qasper_e\.jsonl; there is trec_e"):
        list(replace(source, task="qasper").examples())
    with pytest.raises(UserError, match="hub_revision=main: name a commit"):
        replace(second_source, hub_revision="main").revision()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("dataset=longbench", "dataset.task=squad"), "dataset.task=squad: no task of dataset="),
        (("dataset=longbench_e", "dataset.task=musique"), "use all, or one of qasper, multifield"),
        (("dataset=longbench",), "the hub did not give data.zip (OfflineModeIsEnabled); "
         "without a hub, set dataset.source.path to a directory of LongBench's jsonl files"),
        (("dataset=longbench_v2",), "set dataset.source.path to LongBench v2's data.json"),
        (("dataset=longbench", "dataset.max_prompt_tokens=100", "dataset.overflow=error"),
         "is read with dataset.overflow=truncate_prompt"),
    ],
)  # fmt: skip
def test_a_wrong_request_is_one_line(
    arguments: tuple[str, ...], said: str, kvx: Kvx, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    outcome = kvx("prepare", *arguments)
    assert outcome.code == 2
    (line,) = outcome.err.strip().splitlines()
    assert said in line


def test_longbench_e_has_three_bins_of_words(tmp_path: Path) -> None:
    lengths = (3999, 4000, 7999, 8000, 20000)
    rows = [row(i, length=n, context="the quick fox " * (i + 5)) for i, n in enumerate(lengths)]
    write(tmp_path, "trec_e.jsonl", *rows)
    config = compose("dataset=longbench_e", "dataset.task=trec", f"dataset.source.path={tmp_path}")
    manifest, _ = ensure_manifest(config)
    assert [b.n_chosen for b in manifest.bins] == [1, 2, 2]
    assert [e.bin for e in manifest.entries] == [0, 1, 1, 2, 2]
    tokens = [e.context_tokens for e in manifest.entries]
    assert [(b.low_tokens, b.high_tokens) for b in manifest.bins] == [
        (tokens[0], tokens[0]), (tokens[1], tokens[2]), (tokens[3], tokens[4])
    ]  # fmt: skip
    assert all(low < high for low, high in pairwise(tokens))
    missing = write(tmp_path / "b", "trec_e.jsonl", {**row(0), "length": None})
    config.dataset.source["path"] = str(missing)
    with pytest.raises(UserError, match="no length in its row, which dataset"):
        ensure_manifest(config)


def second(number: int, **own: Any) -> dict[str, Any]:
    choices = {f"choice_{letter}": f" {letter.lower()}{number}" for letter in "ABCD"}
    return {"_id": f"v{number}", "domain": "Code", "sub_domain": "s", "difficulty": "easy",
            "length": "short", "question": f" Which {number}? ", "answer": "C",
            "context": f"the quick fox {number}\n", **choices} | own  # fmt: skip


def test_longbench_v2_asks_as_its_own_prompt(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps([second(0), second(1, length="long", difficulty="hard")]))
    config = compose("dataset=longbench_v2", f"dataset.source.path={path}")
    builder = PromptBuilder(load_tokenizer(config.model), config)
    first, _ = LongBenchV2Source(str(path)).examples()
    assert "".join(builder.texts(first)).removeprefix(builder.tokenizer.bos_token or "") == (
        "Please read the following text and answer the question below.\n\n<text>\nthe quick fox 0\n"
        "</text>\n\nWhat is the correct answer to this question: Which 0?\nChoices:\n(A) a0\n"
        "(B) b0\n(C) c0\n(D) d0\n\nFormat your response as follows: "
        '"The correct answer is (insert answer here)".'
    )
    assert (first.example_id, first.answers, first.meta["length"]) == ("v0", ("C",), "short")
    assert [e.example_id for e in LongBenchV2Source(str(path), length="long").examples()] == ["v1"]
    with pytest.raises(UserError, match=r"domain=Law: no such row in .*; it has Code"):
        list(LongBenchV2Source(str(path), domain="Law").examples())
    with pytest.raises(UserError, match="length=short-ish: choose from short, medium, long"):
        LongBenchV2Source(str(path), length="short-ish")
    write(tmp_path, "data.json", row(0))
    with pytest.raises(UserError, match="not LongBench v2's layout: no 'question'; it has input,"):
        list(LongBenchV2Source(str(path)).examples())


def by_bytes(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes, with a token that begins every text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", *alphabet])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", chat_template=chat_template
    )


composed = cache(lambda task: compose("dataset=longbench", f"dataset.task={task}"))


def builder_for(task: str, tokenizer: Any, **own: Any) -> PromptBuilder:
    config = deepcopy(composed(task))
    for name, value in own.items():
        setattr(config.dataset.template, name, value)
    return PromptBuilder(tokenizer, config)


CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}<assistant>"


def test_a_task_that_forbids_a_chat_template_gets_none() -> None:
    tokenizer, example = by_bytes(CHAT), Example("e", "1 2\n", "Type:", ("a",))
    trec = "".join(builder_for("trec", tokenizer).texts(example))
    assert trec == (
        "<s>Please determine the type of the question below. Here are some examples of questions."
        "\n\n1 2\n\nType:"
    )
    report = "".join(builder_for("gov_report", tokenizer).texts(Example("e", "1 2", "", ("a",))))
    assert report.startswith("<user>You are given a report by a government agency.")
    assert report.endswith("Report:\n1 2\n\nNow, write a one-page summary of the report.\n\n"
                           "Summary:</><assistant>")  # fmt: skip
    plain = builder_for("gov_report", by_bytes())
    assert "".join(plain.texts(example)).endswith("Summary:")
    assert "".join(builder_for("lcc", tokenizer).texts(example)).endswith("Next line of code:\n")


def test_a_server_that_applies_a_chat_template_cannot_ask_such_a_task() -> None:
    config = compose("dataset=longbench", "dataset.task=trec", "engine=openai", "engine.api=chat",
                     "engine.base_url=http://127.0.0.1:9/v1")  # fmt: skip
    with pytest.raises(UserError, match=r"dataset\.template\.chat=false: .*engine\.api=complet"):
        PromptBuilder(by_bytes(CHAT), config)


@pytest.mark.parametrize("task", ["hotpotqa", "trec"])
@pytest.mark.parametrize("most", [400, 401])
def test_a_prompt_is_cut_as_longbench_cuts_it(task: str, most: int) -> None:
    """The first and the last half of all its tokens, before the chat template."""
    tokenizer = by_bytes(CHAT)
    builder = builder_for(task, tokenizer)
    words = " ".join(f"w{i}" for i in range(300))
    example = Example("e", words, "Where is w7?", ("a",))
    before, after = builder.wording(example)
    ids = tokenizer.encode(before + words + after)
    half = most // 2
    expected = tokenizer.decode(ids[:half], skip_special_tokens=True)
    expected += tokenizer.decode(ids[-(most - half) :], skip_special_tokens=True)
    cut = truncate_prompt(example, 10_000, builder, most)
    assert before + cut.context + after == expected
    assert cut.meta == {TRUNCATED_FROM: len(words)}
    assert truncate_prompt(example, 10_000, builder, len(ids)) is example
    fitted = truncate_prompt(example, most, builder)  # what fits, chat template and all
    assert most - 2 <= builder.parts(fitted).n_tokens <= most
    with pytest.raises(UserError, match="do not hold what stands beside its context"):
        truncate_prompt(example, 10_000, builder, 20)


def test_the_new_fields_of_a_template_change_no_older_prompts_hash() -> None:
    tokenizer = by_bytes()
    old = builder_for("trec", tokenizer, chat=True, separator="\n").template_hash
    assert builder_for("trec", tokenizer, separator="\n").template_hash == old  # both without chat
    assert builder_for("trec", tokenizer).template_hash != old
