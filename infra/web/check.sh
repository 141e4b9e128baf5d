#!/usr/bin/env bash
# Checks the types of the desk's page with the TypeScript compiler, whose version infra/web/package-lock.json locks.
# Without Node.js the check is left out, unless CI is set: then it fails.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

if ! command -v npm >/dev/null; then
    echo "infra/web/check.sh: npm is missing, so the types of the page are not checked" >&2
    [ -z "${CI:-}" ]
    exit
fi
if [ ! node_modules/.package-lock.json -nt package-lock.json ]; then
    npm ci --silent --no-audit --no-fund
    touch node_modules/.package-lock.json
fi
npm run --silent check
