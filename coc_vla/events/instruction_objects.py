"""Which things an instruction speaks of, found by the words around them; no language model."""

import re
from dataclasses import dataclass
from itertools import pairwise


def _listed(words: str) -> frozenset[str]:
    return frozenset(words.split())


_DETERMINERS = _listed("a an the this that these those both all your its each every")
_PREPOSITIONS = _listed(
    "to on onto in into inside of from with without at by under over between beside behind next "
    "near using against through along around above below off out up down away toward towards "
    "until for across"
)
_CONJUNCTIONS = _listed("and or then while so")
_PRONOUNS = _listed("it them one another itself")
_VERBS = _listed(
    "pick place put push pull open close turn press lift move slide stack insert grasp take get "
    "reach rotate lock unlock unplug bypass sweep kick dunk hammer drop bring pour wipe fold hang "
    "assemble rotating switch"
)
_ADVERBS = _listed("sideways clockwise counter-clockwise gently slowly carefully degrees")
_BREAKS = _DETERMINERS | _PREPOSITIONS | _CONJUNCTIONS | _PRONOUNS | _VERBS | _ADVERBS
# A phrase of nothing else names a place, not a thing.
_PLACES = _listed(
    "top bottom left right front back rear middle center centre side position location place"
)
_WORD = re.compile(r"[^\W\d_]+(?:[-'][^\W\d_]+)*", re.UNICODE)


@dataclass(frozen=True)
class InstructionObject:
    """One thing that an instruction names.

    Attributes:
        phrase: its words, without the article: `black bowl`.
        head: the word that a text about it has to use: `bowl`.
    """

    phrase: str
    head: str

    def is_named_in(self, text: str) -> bool:
        """Say whether a text uses the head word, in singular or plural."""
        return _singular(self.head) in {_singular(word) for word in words_of(text)}


def words_of(text: str) -> list[str]:
    """Return a text's words in lower case, without numbers and punctuation."""
    return [word.lower() for word in _WORD.findall(text)]


def instruction_verb(instruction: str) -> str:
    """Return the first word of an imperative: what is to be done."""
    words = words_of(instruction)
    return words[0] if words else ""


def instruction_objects(instruction: str) -> list[InstructionObject]:
    """Return the things that an instruction names, in order, each once."""
    return list(dict.fromkeys(object_mentions(instruction)))


def object_mentions(instruction: str) -> list[InstructionObject]:
    """Return the things that an instruction names, in order, as often as it names them.

    A phrase is a run of words between articles, prepositions, conjunctions, pronouns and verbs of
    manipulation. The first word is a verb (an imperative), and so is a word that an article follows
    without a preposition between (`and hammer the screw`). Of `yellow and white mug` the later half
    is the phrase.
    """
    words = words_of(instruction)
    phrases: list[list[str]] = []
    run: list[str] = []
    for position, word in enumerate(words):
        follower, second = (*words[position + 1 :], "", "")[:2]
        if word == "and" and len(run) == 1 and not {follower, second} & (_BREAKS | {""}):
            run = []  # `yellow and white mug`: the later half holds the noun
        elif word in _BREAKS or (position == 0 and word not in _DETERMINERS):
            _keep(run, phrases)
            run = []
        elif follower in _DETERMINERS and not run:
            continue
        else:
            run.append(word)
    _keep(run, phrases)
    return [InstructionObject(" ".join(phrase), _head(phrase)) for phrase in phrases]


def instruction_clauses(instruction: str) -> list[str]:
    """Split an instruction where a new imperative begins: `turn on … | put the moka pot …`.

    A clause whose verb is followed by a pronoun (`place it on the plate`) is about the thing of the
    clause before, and stays with it. `put both X and Y in Z` becomes two clauses.
    """
    words = words_of(instruction)
    starts = [0]
    for position, word in enumerate(words[:-1]):
        following = words[position + 1 :]
        is_verb = following[0] in _VERBS
        of_pronoun = next((w for w in following[1:] if w not in _PREPOSITIONS), "") in _PRONOUNS
        is_both = word == "and" and "both" in words[:position] and not is_verb
        if word == "and" and (
            is_both or (is_verb and not of_pronoun and position > starts[-1] + 1)
        ):
            starts.append(position + 1)
    return [" ".join(words[a:b]) for a, b in pairwise([*starts, len(words)])]


def _keep(run: list[str], phrases: list[list[str]]) -> None:
    if any(word not in _PLACES for word in run):
        phrases.append(run)


def _head(phrase: list[str]) -> str:
    """Return the last word that is no place: `goal` of `goal position`."""
    return [word for word in phrase if word not in _PLACES][-1]


def _singular(word: str) -> str:
    for ending, replacement in (("ies", "y"), ("xes", "x"), ("shes", "sh"), ("ches", "ch")):
        if word.endswith(ending):
            return word[: -len(ending)] + replacement
    is_plural = word.endswith("s") and not word.endswith(("ss", "us", "is"))
    return word[:-1] if is_plural and len(word) > 3 else word
