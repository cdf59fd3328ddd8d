"""The one table of arms and their controls: what each reads and predicts, and what it answers.

A new arm is a row here, its question among the contrasts, and a choice of a training script. What
a control reads is made by `tokens/control_tokens.py`; in closed loop its row says it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

ModelType = Literal["A", "B", "C", "C_no_world_input"]
ControlName = Literal["none", "placebo", "dummy", "shuffled", "oracle", "privileged"]
WorldTarget = Literal["token", "embedding", "embedding_change", "change_token"]
MODEL_TYPES: tuple[ModelType, ...] = get_args(ModelType)
WORLD_TARGETS: tuple[WorldTarget, ...] = get_args(WorldTarget)
# Targets that are vectors, of the pooled embedding's dimension, one for each of the K steps.
VECTOR_TARGETS: tuple[WorldTarget, ...] = ("embedding", "embedding_change")
READING_ARM: ModelType = "C"
DUMMY_TOKEN = 0
# What an arm reads in closed loop, besides the names of corruptions (`tokens/corruption.py`).
OWN_TOKEN, ONE_CODE, TRUE_STATE = "none", "one_code", "true_state"
# Flags that only an arm that reads the world token can use, with the values that change nothing.
WORLD_INPUT_FLAGS: Mapping[str, float | bool] = {
    "world_input_scale": 1.0,
    "world_input_dropout": 0.0,
    "world_input_layernorm": False,
    "world_history": 0,
    "world_history_stride": 1,
    "block_world_to_action": False,
}
# Flags that only an arm that predicts the world can use, likewise: what it predicts, which makes
# another comparison, and what its actions read of that, which makes a variant of the arm.
WORLD_TARGET_FLAGS: Mapping[str, object] = {
    "world_target": ("token",),
    "world_target_loss": "squared_error",
}
FUTURE_INPUT_FLAGS: Mapping[str, float | bool] = {"future_to_action": False, "future_noise": 0.5}


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


@dataclass(frozen=True)
class Arm:
    """A row of the table.

    Attributes:
        model_type: the network, as `--model_type` spells it.
        script: what trains it.
        reads_world: whether the current world token is an input.
        predicts_world: whether future world tokens are predicted.
        control: how its tokens are taken away from their frames.
        tokens: what a control reads or predicts instead, as the help of `--token_control` says it.
        own_token: whether what it reads depends on the present frame's own token.
        closed_loop: what it reads in closed loop: OWN_TOKEN, ONE_CODE for DUMMY_TOKEN always,
            TRUE_STATE for a token of the simulator's state, or the corruption that is the same;
            None where closed loop has no such token.
        closed_loop_history: the corruption that is the same where the tokens of earlier frames
            are read, too, and single draws would be no stream; empty for the same as without.

    Raises:
        ValueError: it does not read its own token, and does not say what it reads in closed loop.
    """

    model_type: ModelType
    script: str
    reads_world: bool
    predicts_world: bool
    control: ControlName = "none"
    tokens: str = ""
    own_token: bool = True
    closed_loop: str | None = OWN_TOKEN
    closed_loop_history: str = ""

    def __post_init__(self) -> None:
        if not self.own_token and self.closed_loop == OWN_TOKEN:
            raise ValueError(f"control {self.control} has to say what it reads in closed loop")

    @property
    def choices(self) -> tuple[ModelType, ...]:
        """What `--model_type` of its script may be."""
        return tuple(name for name in MODEL_TYPES if ARMS[name].script == self.script)


_B = Arm("B", "train_baseline_b.py", reads_world=False, predicts_world=True)
_C = Arm("C", "train_model_c.py", reads_world=True, predicts_world=True)
_SHUFFLED = "the future loss on tokens shuffled in time within the episode"
_AHEAD = "the true target future_offset x future_stride frames ahead; offline only"
_TRUE = "the simulator's true state as a token of its own codebook; targets stay the usual tokens"
_OTHER, _ONE = "another frame's token of the same task", "one code instead of every w_t"
ARMS: Mapping[str, Arm] = {
    "A": Arm("A", "train_baseline_a.py", reads_world=False, predicts_world=False),
    "B": _B,
    "C": _C,
    "C_no_world_input": replace(_C, model_type="C_no_world_input", reads_world=False),
    "B_placebo": replace(_B, control="placebo", tokens=_SHUFFLED),
    "C_dummy": replace(_C, control="dummy", tokens=_ONE, own_token=False, closed_loop=ONE_CODE),
    "C_shuffled": replace(
        _C,
        control="shuffled",
        tokens=_OTHER,
        own_token=False,
        closed_loop="task_marginal",
        closed_loop_history="other_episode",
    ),
    "C_oracle": replace(_C, control="oracle", tokens=_AHEAD, closed_loop=None),
    "C_privileged": replace(_C, control="privileged", tokens=_TRUE, closed_loop=TRUE_STATE),
}
CONTRASTS = (
    Contrast("B", "A", "does predicting future tokens help the actions?"),
    Contrast("C", "B", "does reading the token help beyond predicting it?"),
    Contrast("C", "C_no_world_input", "the same, through C's own code path"),
    Contrast("B", "B_placebo", "is it the future, or any auxiliary loss?"),
    Contrast("C", "C_dummy", "is it the content, or parameters and sequence length?"),
    Contrast("C", "C_shuffled", "is it this frame's content, or any token of the task?"),
    Contrast("C_oracle", "C", "how much more could the true future token give?"),
    Contrast("C_privileged", "B", "does a token help that says what the cameras may not show?"),
    Contrast("A", "A_pca", "does the encoder beat principal components of pixels?"),
    Contrast("A", "A_random", "does the encoder beat an untrained one?"),
)
HISTORY_KNOB = "world_history"
_OF_A_HISTORY = (Contrast("C", "A", "does the stream of tokens help as a memory?"),)
# What arm A is called on the cache of an encoder that knows less.
CONTROL_ENCODERS = {"pixel-pca": "A_pca", "random-vit": "A_random"}
CLOSED_LOOP_READS = {arm.control: arm.closed_loop for arm in ARMS.values()}
CLOSED_LOOP_HISTORY_READS = {
    arm.control: arm.closed_loop_history or arm.closed_loop for arm in ARMS.values()
}
CONTROLS = {arm.control: arm for arm in ARMS.values() if arm.control != "none"}
# As tables list them: the arms of one letter together.
_ORDER = sorted((*ARMS, *CONTROL_ENCODERS.values()), key=lambda name: name[0])


def arm_order(arm: str) -> tuple[int, str]:
    """Sort key: the arms as tables list them, variants after their arm."""
    base = arm.split(" (")[0]
    return (_ORDER.index(base) if base in _ORDER else len(_ORDER), arm)


def contrasts_between(arms: set[str]) -> list[Contrast]:
    """Return the comparisons that these arms allow, those of an arm with other knobs included.

    A variant that reads a history is also compared as its arm is, with references that have the
    same knobs or read no token at all.
    """
    chosen = [c for c in CONTRASTS if {c.first, c.second} <= arms]
    variants = sorted((arm for arm in arms if " (" in arm), key=arm_order)
    for arm in variants:
        base, _, knobs = arm.partition(" (")
        if base in arms:
            chosen.append(Contrast(arm, base, "do the world-input knobs help?"))
        if HISTORY_KNOB in knobs:
            for one in (*CONTRASTS, *_OF_A_HISTORY):
                second = f"{one.second} ({knobs}" if _reads_world(one.second) else one.second
                if one.first == base and second in arms:
                    chosen.append(Contrast(arm, second, one.question))
    return chosen


def _reads_world(arm: str) -> bool:
    # C_no_world_input has C's flags, although it reads no token.
    return arm in ARMS and "C" in ARMS[arm].choices
