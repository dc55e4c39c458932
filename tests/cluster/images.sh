#!/usr/bin/env bash
# images.sh operator|trainer [OUT_TAR]: build ktrdr.io/{operator,trainer}:built as a user would, and
# write it as an archive that `cluster.sh load` takes. With docker where an engine answers, else with
# buildah. Where no base image can be pulled, the base is made from Debian packages and the wheels are
# fetched beforehand, so that the build itself needs no network. BASE names another base image.
set -euo pipefail

UV_VERSION=0.13.9
STORED_BASE=localhost/ktrdr-base:latest
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
kind=${1:-} archive=${2:+$(realpath -m "$2")}
case $kind in
  operator) file=Dockerfile ;;
  trainer) file=trainer_image/Dockerfile ;;
  *) echo "usage: ${0##*/} operator|trainer [OUT_TAR]" >&2; exit 2 ;;
esac
name=ktrdr.io/$kind:built
wheelhouse=$root/build/wheelhouse
PATH=$PATH:$root/.tools/uv/bin
cd "$root"
[ -z "$archive" ] || mkdir -p "$(dirname "$archive")"

say() { printf '%s\n' "$*"; }

need() { # need PROGRAM WHY: a Debian package of the same name
  command -v "$1" > /dev/null && return
  say "installing $1 (Debian package): $2"
  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y "$1" > /dev/null \
    || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y "$1" > /dev/null; }
}

default_base() { sed -n 's/^ARG BASE=//p' "$file"; }

make_base() { # a slim Debian with Python, kept in buildah's storage for the next build
  buildah inspect --type=image "$STORED_BASE" > /dev/null 2>&1 && return
  need mmdebstrap "makes a base image where none can be pulled"
  say "making a base image from Debian packages (about 20 s)"
  local folder container codename
  # shellcheck source=/dev/null
  codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
  folder=$(mktemp -d)
  mmdebstrap --quiet --variant=minbase --include=python3,python3-venv,ca-certificates \
    "$codename" "$folder/base.tar"
  container=$(buildah from scratch)
  buildah add --quiet "$container" "$folder/base.tar" / > /dev/null
  buildah commit --quiet --rm "$container" "$STORED_BASE" > /dev/null
  rm -r "$folder"
}

fill_wheelhouse() { # every wheel that the build in $STORED_BASE will ask for
  local container version
  container=$(buildah from "$STORED_BASE")
  version=$(buildah run "$container" -- python3 -c 'import platform; print(platform.python_version())')
  buildah rm "$container" > /dev/null
  say "fetching the wheels for Python $version"
  rm -rf "$wheelhouse"
  mkdir -p "$wheelhouse"
  # The build backend is one of the pins, too.
  echo hatchling | uv pip compile --quiet pyproject.toml - --extra "$kind" \
    --constraints .ci/constraints.txt \
    --python-version "$version" --generate-hashes --no-header -o "$wheelhouse/requirements.txt"
  local download=(uv tool run --quiet pip download --quiet --dest "$wheelhouse"
    --only-binary=:all: --python-version "$version")
  "${download[@]}" --no-deps --require-hashes -r "$wheelhouse/requirements.txt"
  "${download[@]}" --no-deps "uv==$UV_VERSION"
}

build_with_docker() {
  local options=(-f "$file" -t "$name")
  [ -z "${BASE:-}" ] || options+=(--build-arg "BASE=$BASE")
  say "building $name with docker"
  docker build "${options[@]}" .
  [ -z "$archive" ] || docker save -o "$archive" "$name"
}

build_with_buildah() {
  need buildah "builds images without a Docker engine"
  export STORAGE_DRIVER=${STORAGE_DRIVER:-overlay} BUILDAH_ISOLATION=${BUILDAH_ISOLATION:-chroot}
  local base=${BASE:-$(default_base)}
  if ! buildah inspect --type=image "$base" > /dev/null 2>&1 \
    && ! timeout 120 buildah pull --quiet "$base" > /dev/null 2>&1; then
    [ -z "${BASE:-}" ] || { echo "cannot pull BASE=$BASE" >&2; exit 1; }
    make_base
    trap 'rm -rf "$wheelhouse"' EXIT
    fill_wheelhouse
    base=$STORED_BASE
  fi
  say "building $name with buildah on $base"
  buildah build --layers=false -f "$file" --build-arg "BASE=$base" -t "$name" .
  [ -n "$archive" ] || return 0
  say "writing $archive"
  rm -f "$archive"
  buildah push --quiet "$name" "oci-archive:$archive:$name"
}

if docker info > /dev/null 2>&1; then build_with_docker; else build_with_buildah; fi
say "built $name${archive:+, in $archive ($(du -h "$archive" | cut -f1))}"
