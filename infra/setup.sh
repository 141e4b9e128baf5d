#!/usr/bin/env bash
# Makes .venv at the root of the project: `bash infra/setup.sh`. With --uv it only says where uv is.
#
# Needs Python 3.11 or newer with pip. uv is taken from the PATH, else installed from pip into .tools. Packages come from
# requirements.txt, each checked against its hash; the project itself is installed editable and without dependencies.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    echo "setup: $*" >&2
    exit 1
}

python=""
for candidate in "${PYTHON:-}" python3.11 python3 python; do
    if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$("$candidate" -c 'import sys; print(sys.executable)')
        break
    fi
done
[ -n "$python" ] || fail "Python 3.11 or newer is needed; install it, or name it: PYTHON=/path/to/python make setup"

if uv --version >/dev/null 2>&1; then
    uv=uv
else
    uv=.tools/bin/uv
    if [ ! -x "$uv" ]; then
        "$python" -m pip --version >/dev/null 2>&1 || fail "neither uv nor pip is there; install python3-pip or uv"
        "$python" -m pip install --quiet --target .tools uv >&2
    fi
fi
if [ "${1:-}" = --uv ]; then
    echo "$uv"
    exit 0
fi

export UV_PYTHON_DOWNLOADS=never UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-300}"
[ -x .venv/bin/python ] || "$uv" venv --quiet --python "$python" .venv
"$uv" pip sync --quiet --require-hashes --compile-bytecode --python .venv/bin/python requirements.txt
"$uv" pip install --quiet --no-deps --no-build-isolation --python .venv/bin/python --editable .
