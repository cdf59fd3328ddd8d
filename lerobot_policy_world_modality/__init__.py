"""LeRobot's plugin for exported policies: importing it registers the policy `world_modality`."""

from lerobot_policy_world_modality.configuration_world_modality import WorldModalityConfig

__all__ = ["WorldModalityConfig"]
