"""The cache's arrays on the training device, and batches gathered from them by frame index."""

import copy
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from world_modality.arms import VECTOR_TARGETS, WorldTarget
from world_modality.cache.contract import Cache, require_arrays
from world_modality.cache.frame_shapes import (
    FrameShape,
    ObservationShape,
    WindowShape,
    WorldShape,
)
from world_modality.cache.future_rows import ChangeRows, FutureRows
from world_modality.cache.mapped_rows import MappedRows, Place, stays_on_disk
from world_modality.source.episodes import Episodes
from world_modality.system.errors import InvalidInputError

# Batches that are read before their turn; one would do if every read took the same time.
NUM_AHEAD = 4

T = TypeVar("T")


class ReadAhead(Generic[T]):
    """What was read for batches that are about to be used."""

    def __init__(self) -> None:
        # By the batch's very tensor: comparing contents would wait for the device.
        self._reads: dict[Tensor, Future[T]] = {}

    def over(
        self,
        batches: Sequence[Int[Tensor, " _"]],
        read: Callable[[Int[Tensor, " B"]], T],
    ) -> Iterator[Int[Tensor, " _"]]:
        """Yield the batches, having started to read for the next `NUM_AHEAD`.

        Args:
            batches: frames, on any device.
            read: called in a background thread with the frames on the host.
        """
        on_host = [frames.cpu() for frames in batches]
        submitted = 0
        with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as reader:
            try:
                for number, frames in enumerate(batches):
                    while submitted < min(number + 1 + NUM_AHEAD, len(batches)):
                        future = reader.submit(read, on_host[submitted])
                        self._reads[batches[submitted]] = future
                        submitted += 1
                    yield frames
                    self._reads.pop(frames, None)
            finally:
                for frames in batches[:submitted]:
                    self._reads.pop(frames, None)

    def take(self, frames: Int[Tensor, " B"]) -> T | None:
        """Return what was read for this batch, waiting for it; None if `over` does not know it."""
        future = self._reads.pop(frames, None)
        return None if future is None else future.result()


IGNORED_TOKEN = -100  # what torch's cross_entropy leaves out by default

# Embeddings of frames and of instructions: all but a few dozen bytes of each frame.
_LARGE_ARRAYS = ("embeddings", "instruction_embeddings", "pooled_embeddings")
# By field of a batch; those that there are.
_LargeRows = dict[str, Tensor]

# Vectors that a statistic converts to float32 at a time: 2,048 x 768 are 6 MB, a core's cache.
_BLOCK = 2048


@dataclass(frozen=True)
class Batch:
    """B windows, each around one frame t.

    The axes P and W are there only where a frame has several vectors or world tokens, the axis R
    only where the tokens of earlier frames are read, too.

    Attributes:
        embeddings: T frames up to t, oldest first (`WindowShape.context_lags`); before the
            episode's start its first frame is repeated.
        states: robot states of the same frames, raw units.
        world_tokens: tokens of the R frames up to t, oldest first (`WindowShape.world_lags`);
            before the episode's start those of its first frame are repeated.
        future_tokens: tokens of t + stride·1…K, IGNORED_TOKEN past the episode's end.
        actions: actions of frames t…t+H-1, raw units; past the end the last action is repeated.
        action_is_pad: marks the repeated ones.
        instructions: embedding of frame t's instruction; None without language.
        is_dark: marks the frames of the context whose embeddings the policy does not see; None
            where it sees all.
        future_embeddings: pooled embeddings of t + stride·1…K, as cached; past the episode's end
            that of its last frame. None unless they are asked for, as are the next two.
        embedding_changes: by how much these differ from that of frame t.
        change_tokens: token of the change from t to t + stride·K, IGNORED_TOKEN where that lies
            past the episode's end.
    """

    embeddings: Float[Tensor, "B T *P D"]
    states: Float[Tensor, "B T S"]
    world_tokens: Int[Tensor, " B *RW"]
    future_tokens: Int[Tensor, "B K *W"]
    actions: Float[Tensor, "B H A"]
    action_is_pad: Bool[Tensor, "B H"]
    instructions: Float[Tensor, "B L"] | None = None
    is_dark: Bool[Tensor, "B T"] | None = None
    future_embeddings: Float[Tensor, "B K _"] | None = None
    embedding_changes: Float[Tensor, "B K _"] | None = None
    change_tokens: Int[Tensor, " B"] | None = None

    def vectors(self, target: WorldTarget) -> Float[Tensor, "B K _"]:
        """Return one of the targets that are vectors, in the units of the cache."""
        values = {"embedding": self.future_embeddings, "embedding_change": self.embedding_changes}
        vectors = values[target]
        assert vectors is not None, f"{target} was not asked for when the frames were loaded"
        return vectors

    def tensors(self) -> dict[str, Tensor]:
        """Return what there is, by field; `Batch(**tensors)` is the same batch."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


class FrameTensors:
    """All N frames of a cache as tensors on one device.

    Args:
        arrays: `embeddings`, `states`, `actions`, `world_tokens` of the cache, and
            `instruction_embeddings` for language. Embeddings are those that the policy reads,
            [N, D], or [N, P, D] with `observation`; world tokens [N], or [N, W]. For targets that
            are vectors `pooled_embeddings`, [N, D], where they are not the embeddings themselves;
            for change tokens `change_tokens`, [N].
        episodes: of the same cache.
        device: where the tensors live.
        mapped: leave the embeddings on the disk and copy rows of them batch by batch; they must
            then be mapped from a file.
        observation: of a frame; one vector if left out.
        futures: what of the frames ahead is gathered, beside their tokens.
        num_change_tokens: size of the codebook of changes.

    Raises:
        ValueError: the embeddings are not of the observation's shape.
    """

    def __init__(
        self,
        arrays: dict[str, np.ndarray],
        episodes: Episodes,
        device: torch.device,
        *,
        mapped: bool = False,
        observation: ObservationShape | None = None,
        futures: Collection[WorldTarget] = (),
        num_change_tokens: int = 0,
    ) -> None:
        hold = MappedRows if mapped else _to_device
        self.observation = observation or ObservationShape(arrays["embeddings"].shape[-1])
        expected = (*self.observation.axis, self.observation.embedding_dim)
        if (found := arrays["embeddings"].shape[1:]) != expected:
            raise ValueError(f"a frame's embeddings are of shape {found}, expected {expected}")
        self.episodes = episodes
        self.device = device
        self.mapped = mapped
        self.embeddings: Tensor | MappedRows = hold(arrays["embeddings"], device)
        self.states = _to_device(arrays["states"], device)
        self.actions = _to_device(arrays["actions"], device)
        self.world_tokens = _to_device(arrays["world_tokens"], device)
        instructions = arrays.get("instruction_embeddings")
        self.instructions = None if instructions is None else hold(instructions, device)
        position = episodes.of_frame
        self._first = torch.from_numpy(episodes.starts[position]).to(device)
        self._last = torch.from_numpy(episodes.ends[position] - 1).to(device)
        self._read_ahead: ReadAhead[_LargeRows] = ReadAhead()
        self.futures = frozenset(futures)
        self.num_change_tokens = num_change_tokens
        changes = arrays.get("change_tokens")
        self.change_tokens = None if changes is None else _to_device(changes, device)
        self.future_rows: FutureRows | None = None
        if self.futures & {*VECTOR_TARGETS}:
            pooled = arrays.get("pooled_embeddings")
            rows = self.embeddings if pooled is None else hold(pooled, device)
            self.future_rows = FutureRows(rows, self._last)

    @classmethod
    def from_cache(
        cls,
        cache: Cache,
        device: torch.device,
        *,
        with_language: bool = False,
        place: Place = "auto",
        futures: Collection[WorldTarget] = (),
        num_change_tokens: int = 0,
    ) -> "FrameTensors":
        """Load and check the arrays that training and offline evaluation need.

        Args:
            cache: to read.
            device: where to compute.
            with_language: load the instruction embeddings, too.
            place: where the embeddings stay; `auto` takes the device if they fit into half of its
                free memory, and otherwise the disk, and says so. Batches are the same.
            futures: see the class.
            num_change_tokens: likewise.

        Raises:
            InvalidInputError, MissingFileError: the cache is damaged or incomplete.
        """
        observed = cache.observation_array
        names = [observed, "states", "actions", "world_tokens"]
        if with_language:
            names.append("instruction_embeddings")
        has_pooled = observed != "embeddings" and not {*VECTOR_TARGETS}.isdisjoint(futures)
        names += ["embeddings"] if has_pooled else []
        names += ["change_tokens"] if "change_token" in futures else []
        arrays = require_arrays(cache, [*names, "episode_index", "task_index"])
        observation = cache.observation_shape
        embeddings = arrays.pop(observed)
        if has_pooled:
            arrays["pooled_embeddings"] = arrays.pop("embeddings")
        row_shape = (*observation.axis, observation.embedding_dim)
        # On the disk the axis of the vectors is there for one vector, too.
        arrays["embeddings"] = embeddings.reshape(len(embeddings), *row_shape)
        episodes = Episodes.from_frames(
            arrays["episode_index"], arrays["task_index"], cache.episode_ids
        )
        num_bytes = sum(arrays[name].nbytes for name in _LARGE_ARRAYS if name in arrays)
        mapped = stays_on_disk(num_bytes, device, place)
        tensors = cls(
            arrays,
            episodes,
            device,
            mapped=mapped,
            observation=observation,
            futures=futures,
            num_change_tokens=num_change_tokens,
        )
        _require_finite(tensors.embeddings, observed, cache)
        if has_pooled and tensors.future_rows is not None:
            _require_finite(tensors.future_rows.embeddings, "embeddings", cache)
        for name in ("states", "actions"):
            _require_finite(getattr(tensors, name), name, cache)
        if tensors.instructions is not None:
            _require_finite(tensors.instructions, "instruction_embeddings", cache)
        return tensors

    def frame_shape(self, num_world_tokens: int) -> FrameShape:
        """Return what a frame holds, given the codebook's size V."""
        num_slots = 1 if self.world_tokens.dim() == 1 else self.world_tokens.shape[1]
        return FrameShape(
            observation=self.observation,
            world=WorldShape(num_world_tokens, num_slots),
            state_dim=self.states.shape[1],
            action_dim=self.actions.shape[1],
            instruction_dim=0 if self.instructions is None else self.instructions.shape[1],
            future_dim=0 if self.future_rows is None else self.future_rows.dim,
            num_change_tokens=self.num_change_tokens,
        )

    def ahead(
        self, batches: Sequence[Int[Tensor, " _"]], shape: WindowShape
    ) -> Iterator[Int[Tensor, " _"]]:
        """Yield these batches of frames, each to be gathered before the next is asked for.

        What is on the disk of the coming ones is read in the background.
        """
        if not self.mapped:
            yield from batches
            return
        first = self._first.cpu()
        future = None if self.future_rows is None else self.future_rows.on_host()

        def read(frames: Int[Tensor, " B"]) -> _LargeRows:
            context = _earlier(frames, first[frames], shape.context_lags)
            return self._large_rows(frames, context, shape, future)

        yield from self._read_ahead.over(batches, read)

    def gather(self, frames: Int[Tensor, " B"], shape: WindowShape) -> Batch:
        """Gather the windows around these frames."""
        large = self._read_ahead.take(frames)
        frames = frames.to(self.device)
        last = self._last[frames][:, None]
        context = _earlier(frames, self._first[frames], shape.context_lags)
        chunk = _reach(frames, 0, 1, shape.chunk_size)
        stride = shape.future_stride
        future = _reach(frames, stride, stride, shape.future_offset)
        tokens = self.world_tokens[torch.minimum(future, last)].long()
        is_past = future > last
        past_slots = is_past.reshape(*future.shape, *[1] * (tokens.dim() - 2))
        if large is None:
            large = self._large_rows(frames, context, shape, self.future_rows)
        changes = None
        if self.change_tokens is not None:
            changes = self.change_tokens[frames].long().masked_fill(is_past[:, -1], IGNORED_TOKEN)
        return Batch(
            embeddings=large["embeddings"],
            states=self.states[context],
            world_tokens=self.tokens_read(frames, shape),
            future_tokens=tokens.masked_fill(past_slots, IGNORED_TOKEN),
            actions=self.actions[torch.minimum(chunk, last)],
            action_is_pad=chunk > last,
            instructions=large.get("instructions"),
            future_embeddings=large.get("future_embeddings"),
            embedding_changes=large.get("embedding_changes"),
            change_tokens=changes,
        )

    def tokens_read(self, frames: Int[Tensor, " B"], shape: WindowShape) -> Int[Tensor, " B *RW"]:
        """Return the tokens that are read at these frames, as `Batch.world_tokens` has them."""
        if not shape.world_history:
            return self.world_tokens[frames].long()
        return self.world_tokens[_earlier(frames, self._first[frames], shape.world_lags)].long()

    def frames_ahead(self, frames: Int[Tensor, " B"], num_steps: int) -> Int[Tensor, " B"]:
        """Return t + num_steps; past the episode's end its last frame."""
        return torch.minimum(frames + num_steps, self._last[frames])

    def shuffled_in_time(self, order: Int[np.ndarray, " N"]) -> "FrameTensors":
        """Return the same frames with another frame's future each: that of `order[t]` for t.

        Targets change their place, and the tokens that are read with them; what is observed stays.
        """
        places = torch.from_numpy(order).to(self.device)
        shuffled = copy.copy(self)
        shuffled.world_tokens = self.world_tokens[places]
        if self.change_tokens is not None:
            shuffled.change_tokens = self.change_tokens[places]
        if self.future_rows is not None:
            shuffled.future_rows = self.future_rows.shuffled(places)
        return shuffled

    def _large_rows(
        self,
        frames: Int[Tensor, " B"],
        context: Int[Tensor, "B T"],
        shape: WindowShape,
        future: FutureRows | None,
    ) -> _LargeRows:
        rows = {"embeddings": self.embeddings[context]}
        if self.instructions is not None:
            rows["instructions"] = self.instructions[frames]
        if future is not None and "embedding" in self.futures:
            rows["future_embeddings"] = future.ahead(frames, shape)
        if future is not None and "embedding_change" in self.futures:
            rows["embedding_changes"] = future.changes(frames, shape)
        return rows


def _earlier(
    frames: Int[Tensor, " B"], first: Int[Tensor, " B"], lags: tuple[int, ...]
) -> Int[Tensor, "B count"]:
    """Return the frames so many before each, not before the first of the episode.

    `lags` are evenly spaced and end with 0.
    """
    stride = lags[-2] if len(lags) > 1 else 1
    return torch.maximum(_reach(frames, -lags[0], stride, len(lags)), first[:, None])


def _reach(frames: Int[Tensor, " B"], start: int, step: int, count: int) -> Int[Tensor, "B count"]:
    return frames[:, None] + start + step * torch.arange(count, device=frames.device)


def mean_and_std(
    values: Float[Tensor, "N *P C"] | MappedRows | ChangeRows, frames: Int[np.ndarray, " M"]
) -> tuple[Float[Tensor, "*P C"], Float[Tensor, "*P C"]]:
    """Return mean and standard deviation of each number over these frames, in one pass.

    Those of a frame's several vectors are kept apart: of a camera that stands still, what tells
    frames apart within a cell is small beside what tells cells apart.

    Blocks are merged in float64 (Chan, Golub and LeVeque, 1979, eq. 2.1). A number that does not
    vary gets std 1, so that standardising leaves it at 0.
    """
    index = torch.from_numpy(frames).to(values.device)
    count = 0
    mean = torch.zeros(values.shape[1:], dtype=torch.float64, device=values.device)
    squares = torch.zeros_like(mean)
    for chosen in index.split(_block_frames(values)):
        block = values[chosen].float()
        block_mean = block.mean(dim=0)
        squares += block.sub_(block_mean).square_().sum(dim=0)
        shift = block_mean - mean
        merged = count + len(block)
        squares += shift.square() * (count * len(block) / merged)
        mean += shift * (len(block) / merged)
        count = merged
    std = (squares / count).sqrt()
    constant = std <= 1e-6 * mean.abs().clamp(min=1e-2)
    return mean.float(), torch.where(constant, 1.0, std).float()


def _block_frames(values: Tensor | MappedRows | ChangeRows) -> int:
    """Return how many frames have `_BLOCK` vectors together."""
    return max(_BLOCK // math.prod(values.shape[1:-1]), 1)


def _to_device(array: np.ndarray, device: torch.device) -> Tensor:
    if isinstance(array, np.memmap) and array.filename is not None:
        # Read, not copied out of the map, whose pages would count as memory on top of the copy.
        array = np.load(array.filename, allow_pickle=False).reshape(array.shape)
    return torch.from_numpy(array).to(device)


def _require_finite(values: Tensor | MappedRows, name: str, cache: Cache) -> None:
    # A block's sum is finite only if all its values are: float16 cannot overflow a float32 sum of
    # this size, nor float32 a float64 sum. It takes a fifth of the time of isfinite on each value.
    step = _block_frames(values)
    for start in range(0, len(values), step):
        block = values[start : start + step]
        wide = torch.float32 if block.dtype == torch.float16 else torch.float64
        if torch.isfinite(block.sum(dtype=wide)):
            continue
        frame = start + int((~torch.isfinite(block)).flatten(1).any(dim=1).nonzero()[0])
        raise InvalidInputError(
            f"{name} holds NaN or infinity, first at frame {frame} in {cache.array_path(name)}; "
            f"{cache.mend(name)}"
        )
