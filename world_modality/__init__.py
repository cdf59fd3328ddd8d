"""Discrete world tokens as a modality that a vision-language-action policy reads and predicts."""

__version__ = "0.1.0"
