"""Reasoning and answer in a generated text: pure functions on strings.

Models write their reasoning between tags of their family, then their answer. Some chat templates
open the tag in the prompt, so that only the closing one is generated; some models never close it.
Servers that parse reasoning send it in a field of its own; the text is then the answer.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# <think> (DeepSeek R1, Qwen3, GLM, Nemotron, Hunyuan, Ernie, MiniMax, Step, Olmo 3, Granite 4, …),
# <thinking>, <thought>, <reasoning>, and with a prefix (<seed:think>, <longcat_think>)
_NAMES = r"(?:[a-z0-9]+[:_-])?(?:think|thinking|thoughts?|reason|reasoning)"
_PAIRS = (
    ("[THINK]", "[/THINK]"),  # Mistral: Magistral, Mistral Small and Medium
    ("◁think▷", "◁/think▷"),  # Kimi VL, Kimi Dev
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Cohere Command A Reasoning, Command R7B
    ("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    ("<|think:start|>", "<|think:end|>"),  # Solar Open
    ("<|begin_of_thought|>", "<|end_of_thought|>"),  # Sky-T1, OpenThinker
    ("<|channel>thought", "<channel|>"),  # Gemma 4
    ("[unused16]", "[unused17]"),  # Pangu
)
_OPEN = "|".join([f"<{_NAMES}>", *(re.escape(o) for o, _ in _PAIRS)])
_CLOSE = "|".join([f"</{_NAMES}>", *(re.escape(c) for _, c in _PAIRS)])
_TAG = re.compile(f"(?P<open>{_OPEN})|(?P<close>{_CLOSE})", re.IGNORECASE)
# an open tag at the end of a prompt
_OPENED = re.compile(rf"(?:{_OPEN}|<\|channel\|>analysis<\|message\|>)\s*\Z", re.IGNORECASE)

# tags that some families put around the answer
_AROUND = (
    ("<answer>", "</answer>"),  # Hunyuan
    ("<response>", "</response>"),  # Granite 4
    ("<|START_RESPONSE|>", "<|END_RESPONSE|>"),  # Cohere
    ("<|begin_of_solution|>", "<|end_of_solution|>"),  # Sky-T1, OpenThinker
)

# gpt-oss (harmony): channels analysis and commentary, then final; also without the special tokens,
# which some servers drop ("analysisWe need … assistantfinalParis")
_CHANNEL = re.compile(r"<\|channel\|>\s*(?P<name>\w+)[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>")
_CHANNEL_END = re.compile(r"<\|(?:end|return|call|start)\|>")
_BARE_ANALYSIS = re.compile(r"\s*(?:assistant)?(?:analysis|commentary)(?=[A-Z0-9\"'(*])")
_BARE_FINAL = re.compile(r"assistant\s*final(?=\S)")
_BARE_FINAL_ALONE = re.compile(r"\s*(?:assistant)?final(?=[A-Z0-9])")
HARMONY = ("<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|return|>", "<|constrain|>")

# Granite 3: no tags but sentences
_GRANITE = re.compile(r"\s*Here(?:'s| is) my thought process:")
_GRANITE_ANSWER = re.compile(r"Here(?:'s| is) my response:")

# tags that a tokenizer may hold as special tokens, which decoding would drop
SPECIAL_TAGS = frozenset(
    [tag for pair in (*_PAIRS, *_AROUND) for tag in pair]
    + [*HARMONY, "<|channel>", "<think>", "</think>", "<seed:think>", "</seed:think>"]
)


@dataclass(frozen=True)
class Split:
    """A text's `reasoning`, None if it has none, and its `answer`, without the tags.

    Reasoning that is not `closed` runs to the end of the text, and there is no answer.
    """

    reasoning: str | None
    answer: str
    closed: bool = True


def split(text: str, opened: bool = False) -> Split:
    """The reasoning and the answer in `text`; `opened`: the prompt ends with an open tag.

    A text without tags is all answer, or all reasoning if `opened`. A closing tag without an
    opening one ends reasoning that began with the text. Any closing tag ends reasoning.
    """
    for find in (_harmony, _granite):
        if (found := find(text)) is not None:
            return found
    thoughts: list[str] = []
    kept: list[str] = []
    inside, at = opened, 0
    for tag in _TAG.finditer(text):
        before = text[at : tag.start()]
        if tag["open"]:
            if inside:
                continue  # a tag inside reasoning is part of it
            kept.append(before)
            inside = True
        elif inside:
            thoughts.append(before)
            inside = False
        else:  # the text up to here was reasoning, not answer
            thoughts.append("".join([*kept, before]))
            kept = []
        at = tag.end()
    if inside:
        answer = "".join(kept).strip()
        return Split(_joined([*thoughts, text[at:]]), answer, closed=answer != "")
    if not thoughts:
        return Split(None, text)
    return Split(_joined(thoughts), _unwrapped("".join([*kept, text[at:]])))


def opens(prompt: str) -> bool:
    """Whether a prompt ends with an open tag: what is generated begins with reasoning."""
    return _OPENED.search(prompt[-200:]) is not None


def _harmony(text: str) -> Split | None:
    channels = list(_CHANNEL.finditer(text))
    if channels:
        thoughts, answer, closed = [text[: channels[0].start()]], "", False
        for channel, following in zip(channels, [*channels[1:], None], strict=True):
            stop = len(text) if following is None else following.start()
            ended = _CHANNEL_END.search(text, channel.end(), stop)
            said = text[channel.end() : stop if ended is None else ended.start()]
            if channel["name"] == "final":
                answer, closed = answer + said, True
            else:
                thoughts.append(said)
        thoughts = [t for t in thoughts if t.strip() not in ("", "<|start|>assistant", "assistant")]
        return Split(_joined(thoughts) if thoughts else None, answer.strip(), closed)
    if (begun := _BARE_ANALYSIS.match(text)) is not None:
        final = _BARE_FINAL.search(text, begun.end())
        if final is None:
            return Split(_joined([text[begun.end() :]]), "", closed=False)
        return Split(_joined([text[begun.end() : final.start()]]), text[final.end() :].strip())
    if (alone := _BARE_FINAL_ALONE.match(text)) is not None:
        return Split(None, text[alone.end() :])
    return None


def _granite(text: str) -> Split | None:
    begun = _GRANITE.match(text)
    if begun is None:
        return None
    answer = _GRANITE_ANSWER.search(text, begun.end())
    if answer is None:
        return Split(_joined([text[begun.end() :]]), "", closed=False)
    thought = text[begun.end() : answer.start()]
    return Split(_joined([thought]), text[answer.end() :].strip())


def _unwrapped(answer: str) -> str:
    answer = answer.strip()
    for begin, end in _AROUND:
        if answer.startswith(begin):
            return answer.removeprefix(begin).removesuffix(end).strip()
    return answer


def _joined(thoughts: list[str]) -> str:
    return "\n".join(t for thought in thoughts if (t := thought.strip()))


def count_tokens(encode: Callable[..., Any], reasoning: str | None) -> int | None:
    """How many tokens `reasoning` takes by a tokenizer's `encode`; None without any."""
    if reasoning is None:
        return None
    return len(encode(reasoning, add_special_tokens=False)) if reasoning else 0
