#!/bin/sh
# Runs `sightline` with secrets from files: NAME_FILE=/run/secrets/x becomes NAME=<what the file holds>. Only these names:
set -eu
for name in AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY SIGHTLINE_KAFKA_PASSWORD; do
    eval "file=\${${name}_FILE:-}"
    if [ -n "$file" ]; then
        [ -r "$file" ] || { echo "entrypoint.sh: ${name}_FILE: $file cannot be read" >&2; exit 66; }
        eval "export $name=\"\$(cat \"\$file\")\""
        unset "${name}_FILE"
    fi
done
exec sightline "$@"
