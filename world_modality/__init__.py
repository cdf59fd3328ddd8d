"""Discrete world tokens as a modality that a vision-language-action policy reads and predicts."""
