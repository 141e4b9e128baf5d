#!/usr/bin/env bash
# The secrets of compose.yaml: `infra/secrets.sh [FOLDER]`, infra/secrets if no folder is given.
#
# Copies secrets.example, gives every password a random value, and makes the certificates and users of Kafka: a
# certificate authority (kafka_ca.pem; its key is not kept), the broker's certificate for the names of KAFKA_NAMES, and
# the users with their passwords (kafka_users). What is there already stays as it is; a certificate is made again where
# it or the authority is missing. Then edit alert_webhook and cameras.toml. Needed: openssl.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
folder="${1:-$here/secrets}"
names="${KAFKA_NAMES:-DNS:kafka,DNS:localhost,IP:127.0.0.1}"
days="${KAFKA_DAYS:-825}"
command -v openssl >/dev/null || { echo "secrets.sh: install openssl" >&2; exit 69; }

umask 077
mkdir -p "$folder"
for example in "$here"/secrets.example/*; do
    name="$(basename "$example")"
    [ -e "$folder/$name" ] && continue
    case "$name" in
        *password* | *token*) openssl rand -hex 24 >"$folder/$name" ;;
        kafka_*) ;; # below
        *) cp "$example" "$folder/$name" ;;
    esac
done

if [ ! -e "$folder/kafka_ca.pem" ] || [ ! -e "$folder/kafka_server.pem" ]; then
    work="$(mktemp -d)"
    trap 'rm -rf "$work"' EXIT
    key=(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes)
    openssl req -x509 "${key[@]}" -keyout "$work/ca.key" -out "$work/ca.pem" -days "$days" -subj "/CN=sightline kafka ca" 2>/dev/null
    openssl req "${key[@]}" -keyout "$work/server.key" -out "$work/server.csr" -subj "/CN=kafka" 2>/dev/null
    echo "subjectAltName=$names" >"$work/names.cnf"
    openssl x509 -req -in "$work/server.csr" -CA "$work/ca.pem" -CAkey "$work/ca.key" -CAcreateserial -days "$days" \
        -extfile "$work/names.cnf" -out "$work/server.crt" 2>/dev/null
    { openssl pkcs8 -topk8 -nocrypt -in "$work/server.key"; cat "$work/server.crt"; } >"$folder/kafka_server.pem"
    cp "$work/ca.pem" "$folder/kafka_ca.pem"
fi

{
    printf 'org.apache.kafka.common.security.plain.PlainLoginModule required'
    for file in "$folder"/kafka_password_*; do
        printf ' user_%s="%s"' "${file##*/kafka_password_}" "$(cat "$file")"
    done
    printf ';'
} >"$folder/kafka_users"

# Each container runs as a user of its own and must read its files; the folder keeps other users of this machine out.
chmod 0700 "$folder"
chmod 0644 "$folder"/*
echo "secrets.sh: $folder is complete; edit alert_webhook and cameras.toml"
