"""Settings that every test runs under, and the run-time check of shapes and types in signatures."""

import os

os.environ.setdefault("MUJOCO_GL", "egl")
os.environ["HF_HUB_OFFLINE"] = "1"
# Help and errors of command lines are wrapped at the terminal's width.
os.environ["COLUMNS"] = "120"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Also what limits torch, which reads it when it is imported.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

from jaxtyping import install_import_hook

from tests import fixtures

# Before the first import of a module that it is to check.
packages = ["world_modality", "benchmarks", "coc_vla", "lerobot_policy_world_modality"]
install_import_hook(packages, f"{fixtures.__name__}.check_signature")
