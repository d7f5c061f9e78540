# One image for server, worker and migration; docs/kubernetes.md builds and uses it.
# llama.cpp is left out: a cluster's models are served elsewhere, and it is 100 MB.
FROM python:3.13-slim-bookworm AS build
ENV UV_PROJECT_ENVIRONMENT=/opt/stigmer UV_PYTHON_DOWNLOADS=never UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1
RUN pip install --no-cache-dir uv==0.13.9
WORKDIR /src
COPY pyproject.toml uv.lock ./
COPY packages packages
RUN uv sync --frozen --no-cache --no-dev --no-editable --package stigmer --extra cluster --no-install-package xllamacpp

FROM python:3.13-slim-bookworm
# The state is a folder of its own below the home: a volume that is mounted there may belong to root.
RUN useradd --uid 10001 --create-home --home-dir /var/lib/stigmer --shell /usr/sbin/nologin stigmer \
    && install --directory --owner=stigmer --group=stigmer /workspace
COPY --from=build /opt/stigmer /opt/stigmer
COPY LICENSE /usr/share/doc/stigmer/LICENSE
ENV PATH=/opt/stigmer/bin:$PATH STIGMER_HOME=/var/lib/stigmer/home STIGMER_WORKSPACE_DIR=/workspace PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
# Calls; health of a server; health of a worker.
EXPOSE 7244 7245 7246
ENTRYPOINT ["stigmer"]
CMD ["--help"]
