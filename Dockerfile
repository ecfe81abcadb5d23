# prefixcap with all that captioning, training, evaluating and serving need, for CPUs and for NVIDIA GPUs: torch brings its
# CUDA libraries, the host only its driver and the NVIDIA container toolkit.
#
#   docker build -t prefixcap .
#   docker run --rm -v "$PWD":/work prefixcap caption photos --out captions.csv
#   docker run --rm --gpus all -v "$PWD":/work prefixcap train data=folder data.root=photos
#   docker run --rm -p 8000:8000 prefixcap serve --host 0.0.0.0
#
# Without CUDA the image is a third as large: --build-arg TORCH_INDEX=… with the address of torch's index of CPU wheels.
ARG BASE=python:3.11-slim
FROM ${BASE}

# Java: for METEOR and SPICE
RUN apt-get update \
 && apt-get install -y --no-install-recommends default-jre-headless \
 && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/prefixcap
ENV PATH=/opt/prefixcap/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1

WORKDIR /source
COPY constraints.txt ./
ARG TORCH_INDEX=
RUN if [ -n "$TORCH_INDEX" ]; then pip install torch torchvision --index-url "$TORCH_INDEX"; \
    else pip install torch torchvision --constraint constraints.txt; fi
COPY pyproject.toml README.md LICENSE ./
COPY conf conf
COPY data_prep data_prep
COPY prefixcap prefixcap
ARG EXTRAS=photos,serve,lora,quantized,open-clip,timm,parquet,faiss,plot
RUN if [ -n "$TORCH_INDEX" ]; then sed -i -E '/^torch(vision)?==/d' constraints.txt; fi \
 && pip install ".[$EXTRAS]" --constraint constraints.txt

# What is read and written is in /work; models that are downloaded stay in /cache, to be mounted as well. Any user may write
# there: docker run --user "$(id -u):$(id -g)".
RUN mkdir -m 777 /work /cache
ENV HOME=/cache
WORKDIR /work
ENTRYPOINT ["prefixcap"]
CMD ["--help"]
