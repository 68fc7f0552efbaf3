"""LongBench's metrics of Chinese texts: as the English ones, on the words that jieba finds."""

import string
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from kvx.scoring.metrics.base import Score, best, metric
from kvx.scoring.metrics.normalized import token_f1
from kvx.scoring.metrics.summaries import rouge_l_f

# what LongBench's normalize_zh_answer drops beside ASCII punctuation
_PUNCTUATION = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞"
    "〟〰〾〿–—‘’‛“”„‟…‧﹏."
)
_DROP = str.maketrans("", "", string.punctuation + _PUNCTUATION)


@metric(needs=("jieba",))
def qa_f1_zh(prediction: str, answers: Sequence[str]) -> Score:
    """Multiset F1 of jieba's words without punctuation, the maximum over references.

    LongBench's qa_f1_zh_score.
    """
    return best(_normal(prediction), [_normal(answer) for answer in answers], token_f1)


@metric(needs=("jieba", "rouge"))
def rouge_l_zh(prediction: str, answers: Sequence[str]) -> Score:
    """`rouge_l` of jieba's words; LongBench's rouge_zh_score. A Chinese full stop ends nothing."""
    texts = [" ".join(_words(answer)) for answer in answers]
    return best(" ".join(_words(prediction)), texts, rouge_l_f)


def _normal(text: str) -> str:
    """The words in lower case, without punctuation, white space, or words of nothing else."""
    forms = ("".join(word.lower().translate(_DROP).split()) for word in _words(text))
    return " ".join(form for form in forms if form)


def _words(text: str) -> Iterable[str]:
    words: Iterable[str] = _jieba().cut(text, cut_all=False)
    return words


@cache
def _jieba() -> Any:
    import logging

    import jieba  # of the extra longbench; its dictionary takes a second

    jieba.setLogLevel(logging.WARNING)
    return jieba
