# syntax=docker/dockerfile:1
# The image of heads, workers, submitters and single pods. From the root of a clone:
#
#   docker build --build-arg VARIANT=cuda -t sparsight:cuda .
#   docker build --build-arg VARIANT=cpu -t sparsight:cpu .
#
# Versions are those of constraints.txt. The default index gives torch with CUDA (on x86), which needs no CUDA image below
# it: its wheels bring the libraries, and the node brings the driver. It computes on processors just as well, but takes
# some GB more than torch without CUDA, which comes from another index: TORCH_INDEX_URL, see k8s/README.md.
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
      cuda | cpu) ;; \
      *) echo "VARIANT is '$VARIANT'; wanted cpu or cuda" >&2; exit 1 ;; \
    esac \
 && pip install torch -c constraints.txt ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} \
 && python -c "import torch; print('torch', torch.__version__, 'CUDA', torch.version.cuda); torch.ones(2) @ torch.ones(2)" \
 && if [ "$VARIANT" = cuda ]; then python -c "import torch; assert torch.version.cuda, 'torch has no CUDA'"; fi \
 && if [ "$VARIANT" = cpu ] && python -c "import torch; raise SystemExit(torch.version.cuda is None)"; then \
      echo "sparsight:cpu has torch with CUDA, which is larger by some GB; TORCH_INDEX_URL names torch without" >&2; \
    fi
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
