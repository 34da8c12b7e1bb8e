# The tests' environment, and a shell to train in. The sandbox needs user namespaces or Landlock,
# which the default seccomp profile of Docker denies in part:
#
#   docker build -t metaagent . && docker run --security-opt seccomp=unconfined metaagent
FROM python:3.11-slim
RUN apt-get update && apt-get install -y --no-install-recommends git chromium \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /metaagent
COPY requirements.txt ./
COPY tests/requirements.txt tests/
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu \
    -r requirements.txt -r tests/requirements.txt
COPY . .
CMD ["bash", "-c", "python -m pytest -q -n 2 --dist worksteal -m 'not alone' tests && python -m pytest -q -m alone tests"]
