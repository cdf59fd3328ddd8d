"""Chain-of-Causality (CoC): label generation with a vision-language model, two-head model."""
