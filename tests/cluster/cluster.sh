#!/usr/bin/env bash
# cluster.sh VERB: the cluster that the demo and the tests run on; `cluster.sh --help` lists the verbs.
set -euo pipefail
tests=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PYTHONPATH=$tests PYTHONDONTWRITEBYTECODE=1 exec "${PYTHON:-python3}" -m cluster "$@"
