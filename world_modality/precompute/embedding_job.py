"""Which frames are embedded with what: known before an encoder is fitted or a frame decoded."""

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from world_modality.encode.pixel_pca import COMPUTE as PIXEL_PCA_COMPUTE
from world_modality.encode.pixel_pca import KIND as PIXEL_PCA
from world_modality.encode.pixel_pca import PixelPCA
from world_modality.encode.vision_encoders import EncoderRequest, VisionEncoder, build_encoder
from world_modality.precompute.embedding_pass import fit_pixel_pca
from world_modality.precompute.inputs import PrecomputeInputs

PIXEL_PCA_ARRAYS = ("pixel_pca_components", "pixel_pca_mean")


@dataclass(frozen=True)
class PixelPcaRequest:
    """Settings of `pixel-pca`."""

    size: int
    num_components: int
    fit_frames: int
    seed: int

    def fit(self, inputs: PrecomputeInputs, batch_size: int) -> PixelPCA:
        """Fit it to a sample of training frames."""
        return fit_pixel_pca(
            inputs.source,
            inputs.image_key,
            inputs.training_sample(self.fit_frames, self.seed),
            size=self.size,
            num_components=self.num_components,
            seed=self.seed,
            batch_size=batch_size,
        )


@dataclass(frozen=True)
class Execution:
    """How the encoder runs; not part of what the embeddings are."""

    batch_size: int
    device: str


@dataclass(frozen=True)
class EmbeddingJob:
    """The frames of a dataset, the encoder asked for, and how it runs."""

    inputs: PrecomputeInputs
    request: EncoderRequest
    pixel_pca: PixelPcaRequest
    execution: Execution

    @cached_property
    def _built(self) -> VisionEncoder | None:
        """The encoder where it needs no dataset."""
        if self.request.name == PIXEL_PCA:
            return None
        from world_modality.system.device import resolve_device

        return build_encoder(self.request, resolve_device(self.execution.device))

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that determines the embeddings."""
        if self._built is None:
            own = asdict(self.pixel_pca)
            settings = {"kind": PIXEL_PCA, **own, "split": self.inputs.split_section}
        else:
            # A model is the same under another path, and whatever the device that ran it.
            record = self._built.record()
            settings = {k: v for k, v in record.items() if k not in ("name", "revision")}
        return {"dataset": self.inputs.dataset_section, "encoder": settings}

    @property
    def is_fitted(self) -> bool:
        """Whether the encoder is fitted to the dataset."""
        return self._built is None

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of the arrays that it makes."""
        return ("embeddings", *(PIXEL_PCA_ARRAYS if self.is_fitted else ()))

    @property
    def compute(self) -> dict[str, str]:
        """Device and number format that the encoder computes with."""
        return PIXEL_PCA_COMPUTE if self._built is None else self._built.compute

    def make_encoder(self) -> VisionEncoder:
        """Return the encoder; `pixel-pca` is fitted now."""
        return self._built or self.pixel_pca.fit(self.inputs, self.execution.batch_size)
