# The environment of the README with CUDA: torch and all else in the versions of requirements-3.12.lock.
#
#   docker build --file ops/docker/cuda.Dockerfile --tag world-modality:cuda .
#   docker run --rm --gpus all world-modality:cuda
#
# torch brings CUDA's libraries along, so that the machine gives the driver alone.
FROM python:3.12-slim-bookworm

# What MuJoCo renders with, and a compiler for what torch compiles. Debian keeps one version of each.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        ffmpeg gcc git libc6-dev libegl-mesa0 libegl1 libgl1 libgl1-mesa-dri make \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /workspace
ENV ENV_DIR=/opt/world-modality MUJOCO_GL=egl UV_NO_CACHE=1 PIP_NO_CACHE_DIR=1 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility,graphics
ENV PATH=/opt/world-modality/bin:$PATH

# Before the sources, so that a change of these installs nothing again.
COPY Makefile requirements.txt requirements-keep-torch.txt requirements-3.12.lock ./
COPY ops/environment.sh ops/uv_from_pip.py ops/
RUN make env

COPY . .
CMD ["python", "-m", "world_modality.doctor"]
