# Ray and neuron-serve in AWS's vLLM image of one Neuron SDK. Built by scripts/build_images.sh, which
# takes BASE from serve_app/neuron/stacks.json.
#
# What those images hold, read in aws-neuron/deep-learning-containers, tags 2.28.0, 2.31.1 and
# 2.32.0, vllm/inference/*/Dockerfile.neuronx (not looked at from inside):
# - Ubuntu 24.04; Python 3.12 (2.32: 3.13) of conda in /opt/conda, first on PATH; no USER, so root;
#   wget, curl, jq; Neuron's tools in /opt/aws/neuron/bin; EFA in /opt/amazon/efa; git clone of the
#   plugin in /opt/vllm.
# - The plugin wants vllm==0.13.0 (0.16.0) and names no extra (its requirements/core.txt), so this
#   is the wheel that asks for ray[cgraph], too: an older Ray may be there, and is replaced.
# - nixl is in the native image: a requirement of the plugin (seen in a fork at 0.24.0.1.1.0).
# - ENTRYPOINT `python /usr/local/bin/vllm_entrypoint.py`, which runs its arguments as a command,
#   hands no signal on, and is left as it is. Kubernetes: set `command`, which replaces it.
# - HEALTHCHECK on :8080/ping, where nothing of ours listens.
ARG BASE
FROM ${BASE} AS build

COPY pyproject.toml README.md LICENSE /src/
COPY serve_app /src/serve_app
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /src

FROM ${BASE}

RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    --mount=type=bind,source=requirements/neuron.txt,target=/build/neuron.txt \
    --mount=type=bind,source=kuberay/images/extend.sh,target=/build/extend.sh \
    bash /build/extend.sh /build/neuron.txt /wheels/*.whl \
 && ln -s "$(command -v neuron-serve-haproxy)" /usr/local/bin/neuron-serve-haproxy

# The fast data plane, before Ray starts (serve_app/cli/run.py); Ray wants the program's full path.
# PATH and LD_LIBRARY_PATH are the base's.
ENV HF_HOME=/var/lib/neuron-serve/hub \
    XDG_CACHE_HOME=/var/lib/neuron-serve/cache \
    RAY_SERVE_ENABLE_HA_PROXY=1 \
    RAY_SERVE_ENABLE_DIRECT_INGRESS=1 \
    RAY_SERVE_HAPROXY_BINARY_PATH=/usr/local/bin/neuron-serve-haproxy

ARG BASE
ARG VERSION
LABEL org.opencontainers.image.title="neuron-serve" \
      org.opencontainers.image.description="vLLM on AWS Neuron under Ray Serve" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="https://github.com/neuron-serve/neuron-serve" \
      org.opencontainers.image.base.name="${BASE}"

# Root, as in the base: whether /dev/neuron* and the compile caches in /var/tmp open for another user
# has not been seen on an instance.
WORKDIR /var/lib/neuron-serve
HEALTHCHECK NONE
CMD ["neuron-serve", "--help"]
