#!/usr/bin/env bash
# tools.sh: make .venv, in which everything of this project runs. A no-op when it is current.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
stamp=.venv/.installed
wanted=$(cat .ci/constraints.txt pyproject.toml tests/tools.sh | sha256sum | cut -d' ' -f1)
if [[ -x .venv/bin/python && -f $stamp && $(<"$stamp") == "$wanted" ]]; then exit 0; fi

say() { echo "bootstrap: $*"; }

find_python() {
  local name
  for name in python3 python3.14 python3.13 python3.12 python3.11; do
    if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      "$name" -c 'import sys; print(sys.executable)'
      return
    fi
  done
  echo "bootstrap: no Python 3.11 or newer on PATH; install one (Debian: apt-get install python3)" >&2
  return 1
}

apt_install() { # PACKAGE WHY
  if [[ $EUID -ne 0 ]] || ! command -v apt-get >/dev/null; then
    echo "bootstrap: $1 is missing ($2); install it and run this again" >&2
    return 1
  fi
  say "installing $1: $2"
  DEBIAN_FRONTEND=noninteractive apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$1" >/dev/null
}

find_uv() {
  if uv --version >/dev/null 2>&1; then echo uv; return; fi
  if [[ ! -x .tools/uv/bin/uv ]]; then
    # ensurepip comes with python3-venv on Debian; without it `python -m venv` has no pip.
    "$python" -c 'import ensurepip' 2>/dev/null || apt_install python3-venv "makes the environment that holds uv" >&2
    say "installing uv into .tools: installs Python packages, checks their hashes, caches them" >&2
    "$python" -m venv .tools/uv
    .tools/uv/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9'
  fi
  echo .tools/uv/bin/uv
}

python=$(find_python)
uv=$(find_uv)
say "creating .venv with $("$python" --version): everything of this project runs in it"
# 5 GB with the CUDA build of torch, the only one on PyPI for x86-64.
say "installing the pinned packages of .ci/constraints.txt (about 5 GB the first time, then cached)"
if [[ ! -x .venv/bin/python ]]; then
  rm -rf .venv # one whose Python is gone is in the way
  "$uv" venv --quiet --python "$python" .venv
fi
export VIRTUAL_ENV=$PWD/.venv
# A cached index may be older than the pins: then look again before giving up.
"$uv" pip sync --quiet --require-hashes .ci/constraints.txt 2>/dev/null ||
  "$uv" pip sync --quiet --require-hashes --refresh .ci/constraints.txt
# The build backend is one of the pins, so that nothing unpinned is fetched here.
"$uv" pip install --quiet --no-deps --no-build-isolation --editable .
echo "$wanted" >"$stamp"
say "done"
