"""The processors around the policy; standardising is part of the network."""

from typing import Any

from lerobot.processor import (
    AddBatchDimensionProcessorStep,
    DeviceProcessorStep,
    PolicyProcessorPipeline,
    RenameObservationsProcessorStep,
)
from lerobot.processor.converters import policy_action_to_transition, transition_to_policy_action

from lerobot_policy_world_modality.configuration_world_modality import WorldModalityConfig
from world_modality.export.policy_folder import POSTPROCESSOR, PREPROCESSOR


def make_world_modality_pre_post_processors(
    config: WorldModalityConfig, dataset_stats: Any = None
) -> tuple[Any, Any]:
    """Return the pre- and the postprocessor, as the exported files describe them.

    Args:
        config: of the policy.
        dataset_stats: not used; the statistics of the training episodes are with the weights.
    """
    device = DeviceProcessorStep(device=config.device or "cpu")
    steps = [RenameObservationsProcessorStep(rename_map={}), AddBatchDimensionProcessorStep()]
    return (
        PolicyProcessorPipeline(steps=[*steps, device], name=PREPROCESSOR),
        PolicyProcessorPipeline(
            steps=[DeviceProcessorStep(device="cpu")],
            name=POSTPROCESSOR,
            to_transition=policy_action_to_transition,
            to_output=transition_to_policy_action,
        ),
    )
