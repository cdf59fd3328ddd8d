"""What a label's author has to be able to do: answer a question about pictures.

The one interface that the labelling loop knows; a local model, a server and the rules are behind
it.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from coc_vla.events.motion import EpisodeMotion
from world_modality.system.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

JPEG_QUALITY = 95


@dataclass(frozen=True)
class RecordedImage:
    """An image file as it is in the dataset; its media type is `image/png` or `image/jpeg`."""

    content: bytes = field(repr=False)
    media_type: str


Picture = UInt8[np.ndarray, "_h _w 3"] | RecordedImage
Pictures = tuple[Picture, ...]


@dataclass(frozen=True)
class VlmRequest:
    """One question about an episode.

    Attributes:
        episode_id: whose.
        instruction: what the robot was told.
        images: the keyframes in order, empty for an author that needs none.
        prompt: the question, with what was wrong with the last answer.
        seed: of sampling; the answer depends on nothing else that is random.
        motion: for an author that reads it.
    """

    episode_id: int
    instruction: str
    images: Pictures = field(repr=False)
    prompt: str = field(repr=False)
    seed: int
    motion: EpisodeMotion | None = field(default=None, repr=False)


@dataclass(frozen=True)
class VlmAnswer:
    """One answer, or why there is none.

    Attributes:
        text: as the author gave it.
        num_tokens: tokens generated, where the author counts them.
        seconds: its share of the time.
        is_cut_off: whether the token limit ended it.
        error: why the request failed.
        refusal: why the author does not write a text; the next episode may fare better.
    """

    text: str
    num_tokens: int | None
    seconds: float
    is_cut_off: bool = False
    error: str | None = None
    refusal: str | None = None


class VlmUnavailableError(UserError):
    """The author is gone, or refuses everybody: no use in asking for the next episode."""


@runtime_checkable
class Vlm(Protocol):
    """An author of traces."""

    @property
    def model_name(self) -> str:
        """What labels are signed with."""
        ...

    def answer(self, requests: Sequence[VlmRequest]) -> list[VlmAnswer]:
        """Answer each request; one that fails gets an answer with an `error`.

        Raises:
            VlmUnavailableError: no request can be answered any more.
        """
        ...

    def close(self) -> None:
        """Let go of connections and memory."""
        ...


def image_url(picture: Picture) -> str:
    """Return a picture as a `data:` address; pixels as JPEG without subsampling of colours."""
    if isinstance(picture, RecordedImage):
        content, media_type = picture.content, picture.media_type
    else:
        buffer = io.BytesIO()
        pil_image(picture).save(buffer, "jpeg", quality=JPEG_QUALITY, subsampling=0)
        content, media_type = buffer.getvalue(), "image/jpeg"
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


def pil_image(picture: Picture) -> "Image.Image":
    """Return a picture for a library that takes Pillow's images."""
    from PIL import Image

    if isinstance(picture, RecordedImage):
        return Image.open(io.BytesIO(picture.content))
    return Image.fromarray(picture)
