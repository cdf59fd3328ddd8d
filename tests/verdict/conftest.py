import pytest

from tests.fixtures.verdict import World, write_matrix
from world_modality.verdict.document import Bullets

ARMS = {"A": 0.03, "B": 0.0, "C": 0.0, "C_no_world_input": 0.0}
RATES = {"A": 0.2, "B": 0.6, "C": 0.6, "C_no_world_input": 0.6}


@pytest.fixture
def matrix(tmp_path):
    """Three seeds of each arm and their rollouts; A is planted to be the worst."""
    write_matrix(tmp_path / "runs", World(), ARMS, success=RATES)
    return tmp_path / "runs"


def block(document, kind, name):
    """Return the table or figure of that name."""
    return next(b for b in document.blocks() if isinstance(b, kind) and b.name == name)


def verdict_items(document):
    """Return the sentences of the verdict, those that start with a subject and a colon."""
    return [
        item
        for one in document.sections[0].blocks
        if isinstance(one, Bullets)
        for item in one.items
    ]


def starting(items, words):
    """Return the one that starts with these words."""
    return next(item for item in items if item.startswith(words))
