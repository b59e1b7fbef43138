# `genre serve` in a container; docs/scale.md says how to build, mount and check it.
ARG PYTHON=3.12
FROM python:${PYTHON}-slim

# Which torch, and from which index. Empty: pip's default index. An index with CPU wheels makes an image without CUDA's libraries;
# one with CUDA wheels serves on a GPU (docker run --gpus 1).
ARG TORCH=torch==2.13.0
ARG TORCH_INDEX=

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    GENRE_CACHE=/srv/cache

# The heavy layer first: it stays when the library changes.
# hadolint ignore=DL3013
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$TORCH"

WORKDIR /opt/genre
COPY pyproject.toml README.md LICENSE ./
COPY adapters ./adapters
# hadolint ignore=DL3013
RUN pip install ".[serve]"

RUN useradd --uid 10001 --user-group --no-create-home --home-dir /srv genre \
    && mkdir -p /srv/registry /srv/cache \
    && chown -R genre:genre /srv
USER 10001:10001
WORKDIR /srv
VOLUME ["/srv/registry", "/srv/cache"]
EXPOSE 8000

# Ready when the base is loaded and its adapters are resident; a first start that prepares a base takes longest.
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/readyz', timeout=2)"]

# SIGTERM drains: what was accepted is answered before the process ends.
STOPSIGNAL SIGTERM
ENTRYPOINT ["genre", "serve", "--registry", "/srv/registry", "--host", "0.0.0.0", "--port", "8000"]
