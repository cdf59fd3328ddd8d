"""Export a checkpoint as a folder that LeRobot loads, and upload it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from world_modality.system.cli import run_cli, write_config
from world_modality.system.errors import InvalidInputError
from world_modality.system.output_lock import OutputLock

if TYPE_CHECKING:
    from world_modality.export.policy_parts import PolicyParts
    from world_modality.export.policy_record import PolicyRecord
    from world_modality.export.reported_results import ReportedResults

FLAGS_FILE = "export_policy_config.json"


@dataclass(frozen=True)
class ExportPolicyConfig:
    """Write a checkpoint as a folder for LeRobot's tools; the plugin runs it there."""

    checkpoint: Path
    """A `model_<TYPE>_epoch<n>.pt` of the trainer."""
    out_dir: Path
    """Receives config.json, model.safetensors, the two processors and the model card."""
    push_to_hub: str | None = None
    """Upload the folder to this repository, such as user/name."""
    private: bool = False
    """Make a new repository of the hub a private one."""
    eval_offline: Path | None = None
    """The eval_offline.json that the card reports; the one beside the checkpoint where left out."""
    rollouts: tuple[Path, ...] = ()
    """Each summary.json of rollouts that the card reports; those beside the checkpoint where left
    out."""
    action_range: tuple[float, float] | None = None
    """Actions are clipped to this range. Where left out: -1 1 for recordings of MetaWorld and
    LIBERO, and no clipping for other datasets."""
    text_model_name: str | None = None
    """The text model's folder or hub name where it has moved since the instructions were
    embedded."""
    license: str | None = None
    """Licence of the weights in the card, as the hub spells it; without it the card names none."""
    overwrite: bool = False
    """Replace another policy that out_dir holds."""

    def __post_init__(self) -> None:
        if self.action_range is not None and self.action_range[0] >= self.action_range[1]:
            raise InvalidInputError(
                f"--action_range {self.action_range[0]:g} {self.action_range[1]:g}: give the "
                "smaller number first"
            )


@dataclass(frozen=True)
class ExportResult:
    """What was exported.

    Attributes:
        folder: that LeRobot loads.
        record: what its config.json says of the policy.
        action_range: what actions are clipped to; None leaves them as they are.
        address: on the hub; None where it was not uploaded.
    """

    folder: Path
    record: "PolicyRecord"
    action_range: tuple[float, float] | None
    address: str | None


def run(config: ExportPolicyConfig) -> ExportResult:
    """Check the checkpoint, write the folder, upload it where asked to.

    Raises:
        UserError: the checkpoint or a report is missing, damaged, or not exportable; the folder
            holds something else; or the hub does not take it.
    """
    from world_modality.export.hub import push_folder
    from world_modality.export.model_card import model_card
    from world_modality.export.policy_folder import policy_config, require_free, write_folder
    from world_modality.export.policy_parts import PolicyParts
    from world_modality.export.reported_results import CheckpointIdentity, ReportedResults

    parts = PolicyParts.of(config.checkpoint, config.text_model_name)
    record = parts.record
    identity = CheckpointIdentity.of(config.checkpoint, parts.checkpoint)
    results = ReportedResults.of(identity, parts.rendering, config.eval_offline, config.rollouts)
    action_range = config.action_range or parts.recorded_action_range
    recorded = parts.recording.get("config") or {}
    content = policy_config(record, action_range, recorded.get("image_size"))
    card = model_card(
        parts, results, action_range, repo_id=config.push_to_hub, license_name=config.license
    )
    require_free(config.out_dir, record.checkpoint["sha256"], config.overwrite)
    with OutputLock(config.out_dir, "--out_dir"):
        write_folder(config.out_dir, content, parts, card)
        write_config(config, config.out_dir / FLAGS_FILE)
        _print(config, parts, results, action_range)
        address = None
        if config.push_to_hub is not None:
            address = push_folder(config.out_dir, config.push_to_hub, private=config.private)
            print(f"uploaded to {address}")
    return ExportResult(config.out_dir, record, action_range, address)


def _print(
    config: ExportPolicyConfig,
    parts: "PolicyParts",
    results: "ReportedResults",
    action_range: tuple[float, float] | None,
) -> None:
    record = parts.record
    print(f"{config.checkpoint} (arm {record.policy.model_type}) is exported to {config.out_dir}")
    cameras, states = record.observed_images, record.observed_states
    print(f"  camera {' and '.join(cameras)}, state {' + '.join(states)}")
    if action_range is None:
        print("  actions are not clipped: the dataset says no range (--action_range gives one)")
    else:
        print(f"  actions are clipped to [{action_range[0]:g}, {action_range[1]:g}]")
    if record.instructions:
        print(f"  {len(record.instructions)} instructions are embedded inside")
    for what, model in (("vision_model_name", record.encoder), ("text_model_name", record.text)):
        if model is not None and Path(model["name"]).exists():
            print(
                f"note: {model['name']} is a folder of this machine; elsewhere, "
                f"--policy.{what}=FOLDER says where the same model lies"
            )
    offline = "its errors on held-out episodes" if results.offline else "no offline evaluation"
    print(f"  the card reports {offline} and {len(results.rollouts)} rollouts")
    if record.encoder.get("note"):
        print(f"note: {record.encoder['note']}")
    print(f"run it: lerobot-eval --policy.path={config.out_dir} … (docs/lerobot.md)")


def main() -> None:
    """Run the stage from the command line."""
    run_cli(ExportPolicyConfig, run)


if __name__ == "__main__":
    main()
