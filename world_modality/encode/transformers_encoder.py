"""Vision encoders of the transformers library: DINOv2 and its like."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from world_modality.encode.network_encoder import NetworkEncoder
from world_modality.system.errors import InvalidInputError
from world_modality.system.network import through_hub_proxy

if TYPE_CHECKING:
    from world_modality.encode.vision_encoders import VisionEncoderFlags


def load_transformers_encoder(flags: "VisionEncoderFlags", device: torch.device) -> NetworkEncoder:
    """Load a vision model by hub name or local folder.

    Raises:
        InvalidInputError: not found, no hub reachable, or no vision model.
    """
    from transformers import AutoImageProcessor, AutoModel

    name, revision = flags.vision_model_name, flags.vision_revision
    remote_code = {"trust_remote_code": flags.trust_remote_code}
    options: dict[str, Any] = {"revision": revision, **remote_code}
    try:
        processor = AutoImageProcessor.from_pretrained(name, **options, **_fast_processor())
        model = AutoModel.from_pretrained(name, **options)
    except (OSError, ValueError, ImportError) as error:
        raise InvalidInputError(
            f"--vision_model_name {name}: no vision model could be loaded"
            f"{through_hub_proxy(name)} ({str(error).splitlines()[0]}); give a hub name like "
            "facebook/dinov2-base, a local folder with its files, or, where no hub is reachable, "
            "efficientnet-lite0 or pixel-pca"
        ) from error
    # Of a model of images and texts, its image tower.
    takes_images = getattr(model, "main_input_name", None) == "pixel_values"
    vision = model if takes_images else getattr(model, "vision_model", None)
    if vision is None:
        raise InvalidInputError(
            f"--vision_model_name {name} is a {type(model).__name__}, which takes no images"
        )
    loaded = None if Path(name).exists() else hub_revision(name, revision) or revision
    return NetworkEncoder.of(
        vision,
        processor,
        flags,
        device,
        kind="transformers",
        name=name,
        revision=loaded,
        options=remote_code,
    )


def _fast_processor() -> dict[str, Any]:
    """Ask transformers 4 for the torchvision processors that transformers 5 takes by default."""
    import transformers

    return {"use_fast": True} if int(transformers.__version__.split(".")[0]) < 5 else {}


def hub_revision(name: str, requested: str | None) -> str | None:
    """Return the commit of a hub model on this disk, by where the hub's cache keeps its files.

    transformers 4 leaves it in the model's config, transformers 5 no longer does.
    """
    from transformers.utils import cached_file

    path = cached_file(
        name,
        "config.json",
        revision=requested,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    folder = None if path is None else Path(path).parent
    return folder.name if folder is not None and folder.parent.name == "snapshots" else None
