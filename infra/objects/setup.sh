#!/bin/sh
# Makes the bucket, and for each policy of /policies a user of its name, who has that policy alone. Running it again is safe;
# it also sets a changed password or policy. Root's password is used here and by the object store itself, nowhere else.
set -eu
mc alias set objects http://objects:9000 root "$(cat /run/secrets/object_password_root)" >/dev/null
mc mb --ignore-existing objects/sightline
for policy in /policies/*.json; do
    name="$(basename "$policy" .json)"
    mc admin policy create objects "$name" "$policy"
    mc admin user add objects "$name" "$(cat "/run/secrets/object_password_$name")"
    mc admin policy attach objects "$name" --user "$name" || mc admin policy entities objects --user "$name" | grep -qw "$name"
done
