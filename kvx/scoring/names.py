"""Names and numbers of a text, and the share of a question's that an answer mentions."""

import re

MIN_TERMS = 2  # a single name is easily left out of a good answer
_TERM = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+(?:['’-][^\W\d_]+)*")
# words that begin sentences and name nothing
_SENTENCE_WORDS = """
a about after all also although an and answer any are as at be because been before begin but by
can could did do does during each end every find first follow for from give given had has have
he her here his how however i if in into is it its let list many may more most my next no not
now of on once one only or our please put question she should since so some story such summarise
summarize text that the their them then there these they this those though through to under
until use using was we were what when where which while who whose why will with would write you
your
"""
_COMMON = frozenset(_SENTENCE_WORDS.split())


def names_and_numbers(text: str) -> list[str]:
    """Capitalised words and numbers of `text` in their order, lower case, digits without commas.

    Common words that begin sentences are left out, and possessive endings dropped.
    """
    found = []
    for match in _TERM.finditer(text):
        word = match[0]
        if word[0].isdigit():
            found.append(word.replace(",", ""))
        elif word[0].isupper() and word.lower() not in _COMMON:
            found.append(re.sub(r"['’]s?$", "", word.lower()))
    return found


def question_recall(question: str, answer: str) -> float | None:
    """Share of the question's distinct names and numbers that the answer mentions in any case.

    None for a question with fewer than two.
    """
    return recall(asked_for(question), answer)


def asked_for(question: str) -> frozenset[str]:
    """The question's distinct names and numbers; none if there are fewer than two."""
    asked = frozenset(names_and_numbers(question))
    return asked if len(asked) >= MIN_TERMS else frozenset()


def recall(asked: frozenset[str], answer: str) -> float | None:
    """`question_recall` for what `asked_for` found in the question."""
    if not asked:
        return None
    said = {t.lower() for t in _TERM.findall(answer)}
    said |= {re.sub(r"['’]s?$", "", t) for t in said} | {t.replace(",", "") for t in said}
    return len(asked & said) / len(asked)
