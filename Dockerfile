# One image for the control plane, the region agent and the Ray nodes: all three must hold the same code and Ray.
#   docker build --build-arg TORCH_INDEX=<index with CPU or CUDA builds of PyTorch> --tag suanli:0.1.0 .
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
# The chart's region.rayVersion must be the same.
ARG RAY_VERSION=2.60.0
ARG TORCH_INDEX=""
RUN python -m venv /opt/suanli
ENV PATH=/opt/suanli/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} 'torch==2.13.0'
WORKDIR /src
COPY . .
RUN pip install "ray==${RAY_VERSION}" '.[algorithms,torch,postgres,s3,kubernetes,gpu]'
# The machine code is kept beside the installed sources; from another folder, so that those are the ones imported.
RUN cd / && python -m scheduler.planning.warming

FROM python:${PYTHON}-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends bubblewrap libseccomp2 tini \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 suanli \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/suanli --shell /usr/sbin/nologin suanli \
    && install --directory --owner 10001 --group 10001 --mode 0750 /var/lib/suanli
COPY --from=build /opt/suanli /opt/suanli
ENV PATH=/opt/suanli/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
WORKDIR /var/lib/suanli
EXPOSE 50051 9464
ENTRYPOINT ["tini", "--", "suanli"]
