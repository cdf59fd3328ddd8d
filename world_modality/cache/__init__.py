"""The disk contract, its writer, and frames as tensors."""
