#!/usr/bin/env bash
# all.sh: every check of the project in order, with the wall time of each; called by `make test`.
# Brings a cluster up when none runs, and leaves things as it found them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
began_all=$SECONDS
times=()

step() { # NAME COMMAND...
  local name=$1 began=$SECONDS
  shift
  echo "== $name"
  "$@" || { times+=("$(printf '%-12s %5d s  FAILED' "$name" $((SECONDS - began)))"); exit 1; }
  times+=("$(printf '%-12s %5d s' "$name" $((SECONDS - began)))")
}

started_cluster=
finish() {
  local status=$?
  if [[ -n $started_cluster ]]; then
    make --no-print-directory cluster-down || status=1
  fi
  echo
  printf '%s\n' "${times[@]}"
  printf '%-12s %5d s  %s\n' total $((SECONDS - began_all)) "$([[ $status == 0 ]] && echo passed || echo FAILED)"
  exit "$status"
}
trap finish EXIT

is_up() { # a cluster of one's own is always there: what counts is whether we are on it
  [[ -e $(tests/cluster/cluster.sh kubeconfig) ]] || return
  [[ -z ${KTRDR_KUBECONFIG:-} ]] || PATH=$(tests/cluster/cluster.sh bin):$PATH \
    kubectl --kubeconfig="$KTRDR_KUBECONFIG" get namespace ktrdr-demo > /dev/null 2>&1
}

target() { step "$1" make --no-print-directory "$1"; }

target bootstrap
target lint
target types
target imports
target verify
target unit
is_up || started_cluster=yes
target cluster-up
target contract
target integration
target e2e
