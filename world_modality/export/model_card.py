"""The model card: what the policy is, what it was trained on, how well it does, where it ends."""

from pathlib import Path
from typing import Any

from world_modality.arms import ARMS
from world_modality.export.policy_parts import PolicyParts
from world_modality.export.policy_record import POLICY_TYPE
from world_modality.export.reported_results import PREDICTORS, ReportedResults
from world_modality.policy.config import PolicyConfig
from world_modality.system.card import render_card

_TEMPLATE = Path(__file__).with_name("card.md.j2")
# The one camera of LeRobot's own MetaWorld.
METAWORLD_IMAGE = "observation.image"
# Of more, the card lists these many.
_MAX_INSTRUCTIONS = 30


def model_card(
    parts: PolicyParts,
    results: ReportedResults,
    action_range: tuple[float, float] | None,
    *,
    repo_id: str | None,
    license_name: str | None,
) -> str:
    """Return the card as Markdown, with the hub's metadata on top.

    Args:
        parts: the policy.
        results: what its reports say.
        action_range: what its actions are clipped to.
        repo_id: where it is uploaded to.
        license_name: of the weights, as the hub spells it; None states none.
    """
    checkpoint, record = parts.checkpoint, parts.record
    return render_card(
        _TEMPLATE,
        _metadata(parts, license_name),
        record=record,
        policy=record.policy,
        train=checkpoint.train_config,
        arm=ARMS[record.policy.model_type],
        predicted=_predicted(record.policy),
        arms={name: ARMS[name] for name in ("A", "B", "C", "C_no_world_input")},
        split={part: len(checkpoint.manifest["split"][part]) for part in ("train", "val")},
        suite=parts.suite,
        rendering=parts.rendering,
        action_range=action_range,
        instructions=record.instructions[:_MAX_INSTRUCTIONS],
        num_instructions=len(record.instructions),
        results=results,
        predictors=PREDICTORS,
        repo=repo_id or "PATH/TO/THIS/FOLDER",
        metaworld_task=_metaworld_task(parts),
        has_further_head=checkpoint.auxiliary_head is not None,
    )


def _predicted(policy: PolicyConfig) -> str:
    """Say what is predicted of the world ahead."""
    num_steps, targets = policy.window.future_offset, policy.target.world_target
    if targets == ("token",):
        return f"the next {num_steps} world tokens"
    return f"{' and '.join(targets)} of the next {num_steps} steps"


def _metaworld_task(parts: PolicyParts) -> str | None:
    """Return the first task that LeRobot's MetaWorld shows the policy as it was recorded.

    None for any other dataset, and for several cameras, of which that environment has one.
    """
    tasks = list(parts.recording.get("tasks") or {})
    is_shown = parts.suite == "metaworld" and parts.record.observed_images == (METAWORLD_IMAGE,)
    return tasks[0] if is_shown and tasks else None


def _metadata(parts: PolicyParts, license_name: str | None) -> dict[str, Any]:
    name = parts.record.dataset["name"]
    # A recording of one's own, or a folder that was given a name, is no dataset of the hub.
    is_of_hub = parts.record.dataset["revision"] is not None and not parts.recording
    return {
        "library_name": "lerobot",
        "pipeline_tag": "robotics",
        "tags": ["lerobot", "robotics", POLICY_TYPE],
        **({"license": license_name} if license_name else {}),
        **({"datasets": [name]} if is_of_hub else {}),
    }
