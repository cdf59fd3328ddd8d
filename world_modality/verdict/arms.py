"""The comparisons that the matrix of arms is made for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Contrast:
    """Two arms and the question that their difference answers.

    Attributes:
        first: the arm under test.
        second: its reference.
        question: what a difference would mean.
    """

    first: str
    second: str
    question: str

    @property
    def name(self) -> str:
        """`first − second`."""
        return f"{self.first} − {self.second}"


CONTRASTS = (
    Contrast("B", "A", "does predicting future tokens help the actions?"),
    Contrast("C", "B", "does reading the token help beyond predicting it?"),
    Contrast("C", "C_no_world_input", "the same, through C's own code path"),
    Contrast("B", "B_placebo", "is it the future, or any auxiliary loss?"),
    Contrast("C", "C_dummy", "is it the content, or parameters and sequence length?"),
    Contrast("C", "C_shuffled", "is it this frame's content, or any token of the task?"),
    Contrast("C_oracle", "C", "how much more could the true future token give?"),
    Contrast("A", "A_pca", "does the encoder beat principal components of pixels?"),
    Contrast("A", "A_random", "does the encoder beat an untrained one?"),
)
CONTROL_ENCODERS = {"pixel-pca": "A_pca", "random-vit": "A_random"}
_ORDER = (
    *("A", "A_pca", "A_random", "B", "B_placebo"),
    *("C", "C_no_world_input", "C_dummy", "C_shuffled", "C_oracle"),
)


def arm_order(arm: str) -> tuple[int, str]:
    """Sort key: the arms as the matrix lists them, variants after their arm."""
    base = arm.split(" (")[0]
    return (_ORDER.index(base) if base in _ORDER else len(_ORDER), arm)


def contrasts_between(arms: set[str]) -> list[Contrast]:
    """Return the comparisons that these arms allow, those of an arm with other knobs included."""
    chosen = [c for c in CONTRASTS if {c.first, c.second} <= arms]
    variants = sorted((arm for arm in arms if " (" in arm), key=arm_order)
    for arm in variants:
        base = arm.split(" (")[0]
        if base in arms:
            chosen.append(Contrast(arm, base, "do the world-input knobs help?"))
    return chosen
