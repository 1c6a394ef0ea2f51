# syntax=docker/dockerfile:1
# The image of heads, workers, submitters and single pods. From the root of a clone:
#
#   docker build --build-arg VARIANT=cuda -t sparsight:cuda .
#   docker build --build-arg VARIANT=cpu --build-arg TORCH_INDEX_URL=<PyTorch's index of CPU wheels> -t sparsight:cpu .
#
# Versions are those of constraints.txt. The default index gives torch with CUDA, which needs no CUDA image below it:
# its wheels bring the libraries, and the node brings the driver.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
ARG VARIANT=cuda
ARG TORCH_INDEX_URL=
# The only stage with a compiler, for what has no wheel.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends build-essential \
 && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/sparsight
ENV PATH=/opt/sparsight/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
COPY constraints.txt ./
# torch first and apart: it is the largest layer, and changes least.
RUN case "$VARIANT" in \
      cuda) pip install torch -c constraints.txt ;; \
      cpu) test -n "$TORCH_INDEX_URL" \
             || { echo "VARIANT=cpu needs TORCH_INDEX_URL, PyTorch's index of CPU wheels" >&2; exit 1; }; \
           pip install torch -c constraints.txt --index-url "$TORCH_INDEX_URL" ;; \
      *) echo "VARIANT is '$VARIANT'; wanted cpu or cuda" >&2; exit 1 ;; \
    esac \
 && python -c "import sys, torch; has = torch.version.cuda is not None; sys.exit(has != ('$VARIANT' == 'cuda'))"
COPY pyproject.toml README.md ./
COPY interp ./interp
COPY cluster ./cluster
COPY jobs ./jobs
RUN pip install '.[search,minigrid]' -c constraints.txt

FROM python:${PYTHON}-slim AS run
ARG VARIANT=cuda
LABEL org.opencontainers.image.title=sparsight org.opencontainers.image.description="Sparsight on Ray, ${VARIANT}"
# wget: KubeRay's probes of health call it. tini is not needed: Ray and our verbs answer signals themselves.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends wget \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 1000 sparsight \
 && useradd --uid 1000 --gid 1000 --create-home --home-dir /home/sparsight --shell /bin/bash sparsight
COPY --from=build --chown=root:root /opt/sparsight /opt/sparsight
# A root that is read-only needs no bytecode written beside the code; compiled kernels and fonts go to HOME.
ENV PATH=/opt/sparsight/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    OMP_NUM_THREADS=1 \
    RAY_USAGE_STATS_ENABLED=0
WORKDIR /home/sparsight
USER 1000:1000
# No ENTRYPOINT: KubeRay starts Ray with a command of its own.
CMD ["sparsight", "--help"]
