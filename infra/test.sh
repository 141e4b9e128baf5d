#!/usr/bin/env bash
# Runs the tests: `infra/test.sh [PATH...] [OPTIONS OF PYTEST...]`, everything in tests/ if no path is given.
#
# First in WORKERS (2) processes side by side, a file at a time, so that a server that a file starts is started once;
# then, one after another, the tests marked `alone`, which measure time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Two processes that both compute with all cores must not spin while they wait for a core.
export OMP_WAIT_POLICY=passive

NO_TESTS=5 # exit code of pytest if the selection is empty
ran=0

run() {
    local code=0
    .venv/bin/python -m pytest "$@" || code=$?
    case $code in
    0) ran=1 ;;
    "$NO_TESTS") ;;
    *) exit "$code" ;;
    esac
}

run -n "${WORKERS:-2}" --dist loadfile --no-loadscope-reorder -m "not alone" "$@"
run -m alone "$@"
if [ "$ran" = 0 ]; then
    echo "infra/test.sh: no test was selected" >&2
    exit "$NO_TESTS"
fi
