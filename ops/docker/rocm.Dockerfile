# The environment of the README with ROCm: the torch of the base image, all else in the versions of the lock files.
#
#   docker build --file ops/docker/rocm.Dockerfile --tag world-modality:rocm .
#   docker run --rm --device /dev/kfd --device /dev/dri --group-add video --group-add render world-modality:rocm
#
# Another image with Python 3.11 or 3.12 and a torch for ROCm does, too: --build-arg BASE=…
ARG BASE=rocm/pytorch:rocm7.1.1_ubuntu24.04_py3.12_pytorch_release_2.10.0
FROM ${BASE}

# What MuJoCo renders with, and venv, which Ubuntu's Python lacks. Ubuntu keeps one version of each.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        ffmpeg gcc git libc6-dev libegl-mesa0 libegl1 libgl1 libgl1-mesa-dri make python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /workspace
ENV ENV_DIR=/opt/world-modality MUJOCO_GL=egl UV_NO_CACHE=1 PIP_NO_CACHE_DIR=1

# Before the sources, so that a change of these installs nothing again. Beside a kept torch `make env` resolves
# requirements.txt; the lock as a constraint gives everything but torch its exact version.
COPY Makefile requirements.txt requirements-keep-torch.txt requirements-3.11.lock requirements-3.12.lock ./
COPY ops/environment.sh ops/uv_from_pip.py ops/
RUN UV_CONSTRAINT="/workspace/requirements-$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])').lock" \
    make env KEEP_TORCH=1 PYTHON=python3
ENV PATH=/opt/world-modality/bin:$PATH

COPY . .
CMD ["python", "-m", "world_modality.doctor"]
