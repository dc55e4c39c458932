#!/usr/bin/env bash
# cluster.sh VERB: the cluster that the demo and the tests run on; `cluster.sh --help` lists the verbs.
set -euo pipefail
tests=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# The checkout's own Python where it has one; before that, and in a person's shell, any other will do.
python=$tests/../.venv/bin/python
[[ -x $python ]] || python=python3
PYTHONPATH=$tests PYTHONDONTWRITEBYTECODE=1 exec "$python" -m cluster "$@"
