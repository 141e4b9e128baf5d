#!/usr/bin/env bash
# Pins the images of compose.yaml and the Dockerfile by digest: `infra/image/pin.sh [check]`.
#
# A tag can be moved to another image; a digest cannot. `NAME:TAG` becomes `NAME:TAG@sha256:…`, with the digest that the
# registry gives for the tag now (of the list of all platforms). `check` changes nothing, and fails where a tag has moved
# since, or an image has no digest. Needed: docker with buildx, and the network.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
files=(compose.yaml image/Dockerfile)
code=0
while read -r image; do
    tag="${image%@*}"
    digest="$(docker buildx imagetools inspect --format '{{.Manifest.Digest}}' "$tag")"
    [[ $digest =~ ^sha256:[0-9a-f]{64}$ ]] || { echo "pin.sh: $tag: no digest" >&2; exit 69; }
    [ "$image" = "$tag@$digest" ] && continue
    if [ "${1:-}" = check ]; then
        echo "pin.sh: $image is $tag@$digest now" >&2
        code=1
    else
        escaped="${image//./\\.}"
        sed -i -E "s|((image:\|FROM) *)$escaped( .*)?\$|\\1$tag@$digest\\3|" "${files[@]}"
        echo "$tag@$digest"
    fi
done < <(sed -nE 's/^ *(image:|FROM) *([^ #]+).*/\2/p' "${files[@]}" | grep -v '^sightline:' | sort -u)
exit "$code"
