# vLLM 0.29 on x86-64 processors, Ray and neuron-serve. Built by scripts/build_images.sh.
FROM public.ecr.aws/docker/library/python:3.11.14-slim-bookworm AS build

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PATH=/opt/neuron-serve/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/neuron-serve \
 && pip install --no-deps torch==2.13.0+cpu --index-url "${TORCH_INDEX}"
# No resolver: image.txt is whole, and vLLM's CUDA builds of torchvision and torchaudio stay out.
COPY requirements/image.txt /src/requirements/
RUN pip install --no-deps -r /src/requirements/image.txt
COPY requirements/vllm-name /src/requirements/vllm-name
COPY pyproject.toml README.md LICENSE /src/
COPY serve_app /src/serve_app
RUN pip install --no-deps --no-build-isolation /src/requirements/vllm-name /src

FROM public.ecr.aws/docker/library/python:3.11.14-slim-bookworm

# wget: KubeRay's probes run `bash -c "wget ... | grep ..."`. libnuma1: vLLM's library links it.
# g++: torch's Inductor compiles the model's kernels at start.
RUN apt-get update \
 && apt-get install -y --no-install-recommends g++ libnuma1 wget \
 && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 1000 --user-group --create-home --home-dir /var/lib/neuron-serve neuron-serve
COPY --from=build /opt/neuron-serve /opt/neuron-serve
RUN ln -s /opt/neuron-serve/bin/neuron-serve-haproxy /usr/local/bin/neuron-serve-haproxy

# The fast data plane, before Ray starts (serve_app/cli/run.py); Ray wants the program's full path.
ENV PATH=/opt/neuron-serve/bin:$PATH \
    HF_HOME=/var/lib/neuron-serve/hub \
    XDG_CACHE_HOME=/var/lib/neuron-serve/cache \
    RAY_SERVE_ENABLE_HA_PROXY=1 \
    RAY_SERVE_ENABLE_DIRECT_INGRESS=1 \
    RAY_SERVE_HAPROXY_BINARY_PATH=/usr/local/bin/neuron-serve-haproxy

ARG VERSION
LABEL org.opencontainers.image.title="neuron-serve" \
      org.opencontainers.image.description="vLLM on a processor under Ray Serve" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="https://github.com/neuron-serve/neuron-serve"

USER 1000
WORKDIR /var/lib/neuron-serve
CMD ["neuron-serve", "--help"]
