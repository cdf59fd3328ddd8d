"""What a label's author has to be able to do: answer a question about pictures.

The one interface that the labelling loop knows; a local model, a server and the rules are behind
it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from coc_vla.authors.pictures import Pictures
from coc_vla.events.motion import EpisodeMotion
from world_modality.system.errors import UserError


@dataclass(frozen=True)
class VlmRequest:
    """One question.

    Attributes:
        episode_id: whose episode.
        instruction: what the robot was told.
        images: the keyframes in order, empty for an author that needs none.
        prompt: the question, with what was wrong with the last answer.
        seed: of sampling; the answer depends on nothing else that is random.
        motion: what the recording holds beside pictures, for an author that reads it.
    """

    episode_id: int
    instruction: str
    images: Pictures = field(repr=False)
    prompt: str = field(repr=False)
    seed: int
    motion: EpisodeMotion | None = field(default=None, repr=False)


@dataclass(frozen=True)
class VlmAnswer:
    """One answer.

    Attributes:
        text: as the author gave it.
        num_tokens: tokens generated, where the author counts them.
        seconds: its share of the time.
        is_cut_off: whether the token limit ended it.
        error: why there is no answer, None where there is one.
        refusal: why the author does not write a text, in its own words; the next episode may fare
            better.
    """

    text: str
    num_tokens: int | None
    seconds: float
    is_cut_off: bool = False
    error: str | None = None
    refusal: str | None = None


@runtime_checkable
class Vlm(Protocol):
    """An author of traces."""

    @property
    def model_name(self) -> str:
        """What labels are signed with."""
        ...

    @property
    def needs_images(self) -> bool:
        """Whether keyframes have to be decoded for it."""
        ...

    @property
    def needs_motion(self) -> bool:
        """Whether states and actions have to be read for it."""
        ...

    def answer(self, requests: Sequence[VlmRequest]) -> list[VlmAnswer]:
        """Answer each request.

        A request that fails gets an answer with an `error`.

        Raises:
            VlmUnavailableError: no request can be answered any more.
        """
        ...

    def close(self) -> None:
        """Let go of connections and memory."""
        ...


class VlmUnavailableError(UserError):
    """The author is gone, or refuses everybody: no use in asking for the next episode."""
