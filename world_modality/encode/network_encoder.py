"""A vision encoder that is a torch network: how it runs, and how its output is pooled."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
import torch
from jaxtyping import Float, UInt8

from world_modality.encode.pixel_pca import averaging_matrix
from world_modality.system.device import keep_freed_memory
from world_modality.system.errors import InvalidInputError
from world_modality.system.recorded_calls import RecordedCalls, Tensors

if TYPE_CHECKING:
    from world_modality.encode.vision_encoders import Pooling, Precision, VisionEncoderFlags

Encoded = TypeVar("Encoded")

# Workers on a CPU; each holds the activations of a block.
MAX_WORKERS = 4
# What autocast computes in its number format, weights included.
_PRODUCTS = (torch.nn.Linear, torch.nn.Conv2d)
_PREPROCESSING_KEYS = (
    *("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale"),
    *("rescale_factor", "do_normalize", "image_mean", "image_std"),
)


def on_device_processor(processor: Any) -> Any | None:
    """Return the processor's form that runs on any device, None where it has none."""
    import transformers
    from transformers.image_processing_utils_fast import BaseImageProcessorFast

    if isinstance(processor, BaseImageProcessorFast):
        return processor
    fast = getattr(transformers, f"{type(processor).__name__}Fast", None)
    return None if fast is None else fast(**processor.to_dict())


def preprocess_on_device(
    processor: Any, images: UInt8[torch.Tensor, "B H W 3"]
) -> Float[torch.Tensor, "B 3 h w"]:
    """Resize, crop, rescale and normalise images, on the device where they are, in uint8."""
    batch = images.permute(0, 3, 1, 2).contiguous()
    pixels: torch.Tensor = processor(
        list(batch), return_tensors="pt", input_data_format="channels_first", device=batch.device
    )["pixel_values"]
    return pixels


@dataclass(frozen=True)
class NetworkEncoder:
    """A vision model of transformers or like them, its image processor, and how it is pooled.

    Attributes:
        name: its `--vision_model_name`: hub name, local folder, or the name of a kind.
        revision: the pinned or resolved hub revision, or the version of the weights' package; None
            for a local folder.
        model: from `pixel_values` [B, 3, h, w] to `last_hidden_state`: tokens [B, L, D], or a
            convolutional network's map [B, D, h, w]; its `config` knows D and the patches' size.
        processor: an image processor of transformers.
        pooling: `cls`, or `mean` over the patch tokens (class and register tokens left out) or map.
        compute_dtype: the precision of the matrix products.
        options: what else rebuilds it, for the manifest.
        stand_in_note: what to say beside every result, None for a trained encoder.
    """

    name: str
    kind: str
    revision: str | None
    model: Any = field(repr=False)
    processor: Any = field(repr=False)
    pooling: "Pooling"
    device: torch.device
    compute_dtype: torch.dtype
    weights_sha256: str
    options: dict[str, Any]
    stand_in_note: str | None = None
    uses_threads: ClassVar[bool] = True

    @classmethod
    def of(
        cls,
        model: Any,
        processor: Any,
        flags: "VisionEncoderFlags",
        device: torch.device,
        **known: Any,
    ) -> "NetworkEncoder":
        """Put a model on a device, to run it as the flags ask for; `known` are further fields.

        The weights' hash is that of the model's parameters unless it is among those.
        """
        if device.type == "cpu":
            keep_freed_memory()
        known.setdefault("weights_sha256", weights_sha256(model))
        return cls(
            model=model.eval().to(device),
            processor=processor,
            pooling=flags.embedding_pooling,
            device=device,
            compute_dtype=compute_dtype_of(flags.precision, device),
            **known,
        )

    def __post_init__(self) -> None:
        """Hold the weights of products as autocast would round them again for every block."""
        if self.compute_dtype == torch.float32:
            return  # without autocast a model computes in the format that it was saved in
        for module in self.model.modules():
            if isinstance(module, _PRODUCTS):
                module.to(self.compute_dtype)

    @property
    def embedding_dim(self) -> int:
        """D."""
        config = self.model.config
        width = getattr(config, "hidden_size", None)
        return int(config.hidden_sizes[-1] if width is None else width)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What the cache stores of it: nothing."""
        return {}

    @property
    def compute(self) -> dict[str, str]:
        """Device and number format that it computes with."""
        dtype = str(self.compute_dtype).removeprefix("torch.")
        return {"device": self.device.type, "dtype": dtype}

    def encode(self, images: UInt8[np.ndarray, "B H W 3"]) -> Float[np.ndarray, "B D"]:
        """Embed images; float32.

        The processor gets uint8: it divides by 255 itself, and images in [0, 1] once more.
        """
        return self._embedded(images).cpu().numpy()

    def encode_blocks(
        self, blocks: Iterable[UInt8[np.ndarray, "B H W 3"]], block_size: int
    ) -> Iterator[Float[np.ndarray, "B D"]]:
        """Embed block after block, several at a time, with the same numbers."""
        if self.device.type == "cpu":
            return encode_side_by_side(self.encode, blocks, block_size)
        return self._one_ahead(blocks)

    def encode_grid(
        self, images: UInt8[np.ndarray, "B H W 3"], grid_size: int
    ) -> tuple[Float[np.ndarray, "B D"], Float[np.ndarray, "B cells D"]]:
        """Embed images as a whole, as `encode` does, and cell by cell; float32.

        Raises:
            InvalidInputError: the map of patches has fewer rows or columns than the grid.
        """
        return _apart(self._embedded(images, grid_size).cpu().numpy())

    def grid_blocks(
        self, blocks: Iterable[UInt8[np.ndarray, "B H W 3"]], block_size: int, grid_size: int
    ) -> Iterator[tuple[Float[np.ndarray, "B D"], Float[np.ndarray, "B cells D"]]]:
        """Embed block after block, cells included, several at a time, with the same numbers."""
        if self.device.type == "cpu":
            encode = partial(self.encode_grid, grid_size=grid_size)
            return encode_side_by_side(encode, blocks, block_size)
        return map(_apart, self._one_ahead(blocks, grid_size))

    def _one_ahead(
        self, blocks: Iterable[np.ndarray], grid_size: int | None = None
    ) -> Iterator[np.ndarray]:
        """Yield a block's embeddings when the GPU has begun with the next block."""
        ahead: deque[_Arriving] = deque()
        for images in blocks:
            ahead.append(_Arriving(self._embedded(images, grid_size)))
            if len(ahead) > 1:
                yield ahead.popleft().array()
        for arriving in ahead:
            yield arriving.array()

    def _embedded(
        self, images: np.ndarray, grid_size: int | None = None
    ) -> Float[torch.Tensor, "B ..."]:
        """Start to embed images; the result is on the device, see `_embed`."""
        if self._on_device_processor is None:
            inputs = {"pixels": self._preprocess(images)}
        else:
            inputs = {"images": torch.from_numpy(images)}
        if self.device.type == "cpu":
            return self._embed(inputs, grid_size)
        return self._recorded(grid_size)(
            {k: v.pin_memory().to(self.device, non_blocking=True) for k, v in inputs.items()}
        )

    def _recorded(self, grid_size: int | None = None) -> RecordedCalls:
        if grid_size not in self._recorded_by_grid:
            embed = partial(self._embed, grid_size=grid_size)
            calls = RecordedCalls(embed, self.device, f"the vision encoder {self.name}")
            self._recorded_by_grid[grid_size] = calls
        return self._recorded_by_grid[grid_size]

    @cached_property
    def _recorded_by_grid(self) -> dict[int | None, RecordedCalls]:
        return {}

    def _embed(self, inputs: Tensors, grid_size: int | None = None) -> Float[torch.Tensor, "B ..."]:
        """Return embeddings [B, D], or with a grid [B, 1 + g², D]: whole images, then cells."""
        autocast = torch.autocast(
            self.device.type, self.compute_dtype, enabled=self.compute_dtype != torch.float32
        )
        with torch.inference_mode():
            pixels = inputs.get("pixels")
            if pixels is None:
                processor = self._on_device_processor
                pixels = preprocess_on_device(processor, inputs["images"])
            with autocast:
                hidden = self.model(pixel_values=pixels).last_hidden_state
            hidden = hidden.float()
            pooled = self._pool(hidden, pixels.shape[-2], pixels.shape[-1])
            if grid_size is None:
                return pooled
            cells = self._cells(hidden, pixels.shape[-2], pixels.shape[-1], grid_size)
            return torch.cat([pooled[:, None], cells], dim=1)

    def record(self) -> dict[str, Any]:
        """Return what the manifest says about the encoder."""
        probe = np.zeros((1, 64, 64, 3), dtype=np.uint8)
        return {
            "name": self.name,
            "kind": self.kind,
            "revision": self.revision,
            "weights_sha256": self.weights_sha256,
            "pooling": self.pooling,
            "image_size": list(self._preprocess(probe).shape[-2:]),
            "embedding_dim": self.embedding_dim,
            "preprocessing": preprocessing_of(self.processor),
            **self.options,
            "is_stand_in": self.stand_in_note is not None,
            "note": self.stand_in_note,
        }

    @cached_property
    def _on_device_processor(self) -> Any | None:
        # On a CPU the processor itself keeps what a cache of the same command has always held.
        return None if self.device.type == "cpu" else on_device_processor(self.processor)

    def _preprocess(self, images: np.ndarray) -> torch.Tensor:
        if self._on_device_processor is not None:
            batch = torch.from_numpy(images).to(self.device)
            return preprocess_on_device(self._on_device_processor, batch)
        # Named, because an image 3 pixels wide would be ambiguous.
        channels_first = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        pixels = self.processor(
            list(channels_first), return_tensors="pt", input_data_format="channels_first"
        )["pixel_values"]
        return torch.as_tensor(pixels)

    def _pool(self, hidden: torch.Tensor, height: int, width: int) -> torch.Tensor:
        if hidden.ndim == 4 and self.pooling == "mean":  # a convolutional network's [B, D, h, w]
            return hidden.mean(dim=(2, 3))
        patches = self._patches(height, width)
        num_patches = patches[0] * patches[1] if patches else None
        num_prefix = hidden.shape[1] - num_patches if num_patches else -1
        if hidden.ndim != 3 or num_prefix < 0 or (self.pooling == "cls" and num_prefix == 0):
            raise InvalidInputError(
                f"--embedding_pooling {self.pooling} does not fit {self.name}: its output has "
                f"shape {list(hidden.shape)} for {num_patches} patches; try the other pooling"
            )
        return hidden[:, 0] if self.pooling == "cls" else hidden[:, num_prefix:].mean(dim=1)

    def _patches(self, height: int, width: int) -> tuple[int, int] | None:
        """Return the rows and columns of patches of an image, None where there are none."""
        patch = getattr(self.model.config, "patch_size", None)
        if not patch:
            return None
        side = (patch, patch) if isinstance(patch, int) else patch
        return height // side[0], width // side[1]

    def _cells(
        self, hidden: torch.Tensor, height: int, width: int, grid_size: int
    ) -> Float[torch.Tensor, "B cells D"]:
        """Average what `_pool` has found to fit over the cells of a grid."""
        if hidden.ndim == 4:
            feature_map = hidden.permute(0, 2, 3, 1)
        else:
            rows, columns = self._patches(height, width) or (0, 0)
            feature_map = hidden[:, -rows * columns :].unflatten(1, (rows, columns))
        largest = min(feature_map.shape[1:3])
        if not 1 <= grid_size <= largest:
            raise InvalidInputError(
                f"--embedding_grid {grid_size} must lie between 1 and {largest}: the map of "
                f"{self.name} has {feature_map.shape[1]}x{feature_map.shape[2]} places"
            )
        return averages_of_cells(feature_map, grid_size)


def averages_of_cells(
    feature_map: Float[torch.Tensor, "B h w D"], grid_size: int
) -> Float[torch.Tensor, "B cells D"]:
    """Return the area averages of a map over g×g cells of equal size, row by row.

    A place of the map that lies in several cells counts in each by its part there, so that the mean
    of the cells is the mean of the map.
    """
    rows, columns = (
        _averaging_matrix_on(num, grid_size, feature_map.device) for num in feature_map.shape[1:3]
    )
    narrow = torch.einsum("yh,bhwd->bywd", rows, feature_map)
    return torch.einsum("xw,bywd->byxd", columns, narrow).flatten(1, 2)


@cache
def _averaging_matrix_on(num_pixels: int, size: int, device: torch.device) -> torch.Tensor:
    # Kept for good: a recorded call reads it where it lies.
    return torch.tensor(averaging_matrix(num_pixels, size), device=device)


def _apart(
    vectors: Float[np.ndarray, "B _ D"],
) -> tuple[Float[np.ndarray, "B D"], Float[np.ndarray, "B cells D"]]:
    return vectors[:, 0].copy(), vectors[:, 1:]


def encode_side_by_side(
    encode: Callable[[np.ndarray], Encoded], blocks: Iterable[np.ndarray], block_size: int
) -> Iterator[Encoded]:
    """Yield what `encode` gives for each block, in order.

    Many threads on one block wait for each other at every layer, and for the slowest of them
    wherever decoding has taken one of their cores. The workers share the threads that torch was
    given (OMP_NUM_THREADS, or one a core). A block of another size is computed alone, with all of
    them: products of few rows can differ in the last bit with the number of threads, and the same
    command has always given the same bits.

    Args:
        encode: a torch model's; called from several threads at a time.
        blocks: pulled at most one further than there are workers.
        block_size: of all blocks but the last.
    """
    num_threads = torch.get_num_threads()
    num_workers = min(num_threads, MAX_WORKERS)
    pool = ThreadPoolExecutor(
        num_workers, initializer=torch.set_num_threads, initargs=(num_threads // num_workers,)
    )
    ahead: deque[Future[Encoded]] = deque()
    try:
        for block in blocks:
            if len(block) != block_size:
                while ahead:
                    yield ahead.popleft().result()
                yield encode(block)
                continue
            ahead.append(pool.submit(encode, block))
            if len(ahead) > num_workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(num_threads)  # a worker's number is also that of threads to come


class _Arriving:
    """Embeddings on their way from the GPU, in memory that it can write to by itself."""

    def __init__(self, embeddings: Float[torch.Tensor, "B ..."]) -> None:
        self._host = torch.empty(embeddings.shape, dtype=embeddings.dtype, pin_memory=True)
        self._host.copy_(embeddings, non_blocking=True)
        self._arrived = torch.cuda.Event()
        self._arrived.record(torch.cuda.current_stream(embeddings.device))

    def array(self) -> Float[np.ndarray, "B ..."]:
        """Wait for them."""
        self._arrived.synchronize()
        array: np.ndarray = self._host.numpy()
        return array


def compute_dtype_of(precision: "Precision", device: torch.device) -> torch.dtype:
    """Return the number format of the matrix products."""
    # float16 keeps three more bits than bfloat16, and embeddings are stored in it.
    if precision == "auto":
        precision = "fp16" if device.type == "cuda" else "fp32"
    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]


def weights_sha256(model: Any) -> str:
    """Return the SHA-256 of a torch module's parameters and buffers, names and dtypes included."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def preprocessing_of(processor: Any) -> dict[str, Any]:
    """Return the processor's settings as plain JSON, the same for every transformers release."""
    found: dict[str, Any] = {}
    for key in _PREPROCESSING_KEYS:
        value = getattr(processor, key, None)
        if value is None:
            continue
        if key in ("size", "crop_size"):
            value = {k: int(v) for k, v in dict(value).items() if v is not None}
        elif key in ("image_mean", "image_std"):
            value = [float(v) for v in value]
        else:
            value = int(value) if key == "resample" else value
        found[key] = value
    return found
