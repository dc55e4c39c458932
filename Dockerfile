# The operator's image: Python, the extra [operator] at the pinned versions, a user that is not root.
#
#   docker build -t ktrdr.io/operator:0.1.0 .
#
# BASE must offer python3 (3.11 or newer) with venv. Where the build can reach no package index, put
# wheels into build/wheelhouse (tests/cluster/images.sh does so) and none is asked.
ARG BASE=docker.io/library/python:3.13-slim

FROM ${BASE} AS source
WORKDIR /src
COPY . .
RUN mkdir -p build/wheelhouse

# Packages and our own code are two layers: after a change of the code docker builds, pushes and pulls
# kilobytes. Nothing but packages goes below /opt/ktrdr, or its layer would change with the code.
FROM ${BASE} AS build
ARG UV_VERSION=0.13.9
WORKDIR /src
COPY --from=source /src/pyproject.toml pyproject.toml
COPY --from=source /src/.ci/constraints.txt constraints.txt
# uv checks the hashes in the constraints; pip would refuse them beside a local project.
# Bytecode is compiled here: the root file system is read-only where the image runs.
RUN --mount=type=bind,from=source,source=/src/build/wheelhouse,target=/wheelhouse \
    if [ -n "$(ls /wheelhouse)" ]; then from="--no-index --find-links=/wheelhouse"; fi \
    && python3 -m venv /uv && /uv/bin/pip install --quiet $from "uv==${UV_VERSION}" \
    && python3 -m venv --without-pip /opt/ktrdr \
    && /uv/bin/uv pip install $from --no-cache --compile-bytecode --python /opt/ktrdr/bin/python \
       --constraints constraints.txt -r pyproject.toml --extra operator \
    && packages=$(/opt/ktrdr/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') \
    && echo /opt/code > "$packages/ktrdr.pth"
RUN --mount=type=bind,from=source,source=/src,target=/src,rw \
    if [ -n "$(ls build/wheelhouse)" ]; then from="--no-index --find-links=build/wheelhouse"; fi \
    && /uv/bin/uv pip install $from --no-cache --compile-bytecode --python /opt/ktrdr/bin/python \
       --build-constraints .ci/constraints.txt --no-deps --target /opt/code .

FROM ${BASE}
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="ktrdr operator" \
      org.opencontainers.image.description="Runs TrainingJobs on Kubernetes" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
# Programs that ask who they are (getpass, for one) fail for a user without an entry.
RUN echo "ktrdr:x:10001:10001::/tmp:/usr/sbin/nologin" >> /etc/passwd
COPY --from=build /opt/ktrdr /opt/ktrdr
COPY --from=build /opt/code /opt/code
ENV PATH=/opt/ktrdr/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
ENTRYPOINT ["python", "-m", "ktrdr_operator"]
