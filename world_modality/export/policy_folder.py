"""The files that LeRobot loads: configuration, weights, processors.

They are written without LeRobot; `tests/plugin` holds them against what LeRobot itself writes.
"""

import json
from pathlib import Path
from typing import Any

import safetensors.torch

from world_modality.export.policy_parts import PolicyParts
from world_modality.export.policy_record import (
    CARD_FILE,
    CONFIG_FILE,
    FORMAT,
    POLICY_TYPE,
    WEIGHTS_FILE,
    PolicyRecord,
    named_tensors,
)
from world_modality.system.atomic import replacing, write_json
from world_modality.system.errors import InvalidInputError

PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor", "policy_postprocessor"
# Where the image's size is not known: LeRobot wants one, and compares none.
_UNKNOWN_SIZE = 224


def policy_config(
    record: PolicyRecord, action_range: tuple[float, float] | None, image_size: int | None
) -> dict[str, Any]:
    """Return the content of `config.json`.

    Args:
        record: of the policy.
        action_range: what actions are clipped to; None leaves them as they are.
        image_size: height and width of the cameras' images where they are known.
    """
    frame, window = record.policy.frame, record.policy.window
    side = image_size or _UNKNOWN_SIZE
    features: dict[str, Any] = {
        key: {"type": "VISUAL", "shape": [3, side, side]} for key in record.observed_images
    }
    if len(record.observed_states) == 1:
        features[record.observed_states[0]] = {"type": "STATE", "shape": [frame.state_dim]}
    return {
        "type": POLICY_TYPE,
        "n_obs_steps": window.context_frames,
        "input_features": features,
        "output_features": {"action": {"type": "ACTION", "shape": [frame.action_dim]}},
        "n_action_steps": window.chunk_size,
        "temporal_ensemble_coeff": None,
        "action_range": None if action_range is None else list(action_range),
        "vision_model_name": None,
        "text_model_name": None,
        "trust_remote_code": False,
        "record": record.as_json(),
    }


def processor_configs() -> dict[str, dict[str, Any]]:
    """Return the content of the two processor files, by name.

    lerobot-eval overrides `rename_observations_processor` and `device_processor` by name, the
    policy server the postprocessor's `device_processor`: a file that lacks one is refused there.
    Standardising is part of the network.
    """
    device = {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}}
    rename = {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}}
    batch = {"registry_name": "to_batch_processor", "config": {}}
    steps = {PREPROCESSOR: [rename, batch, device], POSTPROCESSOR: [device]}
    return {name: {"name": name, "steps": own} for name, own in steps.items()}


def require_free(folder: Path, checkpoint_sha256: str, overwrite: bool) -> None:
    """Refuse a folder that holds something else than an export of this checkpoint.

    Raises:
        InvalidInputError: names what is there.
    """
    if overwrite or not folder.exists():
        return
    if not folder.is_dir():
        raise InvalidInputError(f"--out_dir {folder} is a file; give a folder")
    path = folder / CONFIG_FILE
    foreign = [one.name for one in folder.iterdir() if not one.name.startswith(".")]
    if not path.exists():
        # What an interrupted export leaves has no configuration yet.
        known = {WEIGHTS_FILE, CARD_FILE, "export_policy_config.json"}
        known |= {f"{name}.json" for name in (PREPROCESSOR, POSTPROCESSOR)}
        if other := sorted(set(foreign) - known):
            raise InvalidInputError(
                f"--out_dir {folder} holds {', '.join(other[:3])}; give an empty folder"
            )
        return
    if _exported_sha256(path) != checkpoint_sha256:
        raise InvalidInputError(
            f"--out_dir {folder} holds another policy; give another folder, or --overwrite"
        )


def _exported_sha256(path: Path) -> str | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))["record"]
        return str(record["checkpoint"]["sha256"]) if record["format"] == FORMAT else None
    except (ValueError, KeyError, TypeError):
        return None


def write_folder(folder: Path, config: dict[str, Any], parts: PolicyParts, card: str) -> None:
    """Write all files; the configuration comes last, and without it LeRobot loads nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).unlink(missing_ok=True)
    with replacing(folder / WEIGHTS_FILE) as partial:
        tensors = named_tensors(parts.weights, parts.arrays)
        # safetensors' own file could be read by its owner alone.
        partial.write_bytes(safetensors.torch.save(tensors, metadata={"format": "pt"}))
    for name, content in processor_configs().items():
        write_json(folder / f"{name}.json", content)
    with replacing(folder / CARD_FILE) as partial:
        partial.write_text(card, encoding="utf-8")
    write_json(folder / CONFIG_FILE, config)
