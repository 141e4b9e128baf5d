#!/usr/bin/env bash
# A real RTSP server on loopback that plays files as cameras; for the system tests and for trials by hand.
#   server.sh install       Debian's packages it needs, as root
#   server.sh ready         exit code 0 when they are there
#   server.sh start PORT    serve until stdin ends; the orders on stdin are described in server.py
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
python=/usr/bin/python3 # Debian's own: its packages know no other

case "${1:-}" in
install)
    export DEBIAN_FRONTEND=noninteractive
    apt-get install -y -qq --no-install-recommends \
        python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-good >/dev/null
    ;;
ready)
    "$python" -c 'import gi; gi.require_version("GstRtspServer", "1.0")' 2>/dev/null
    ;;
start)
    exec env -u PYTHONPATH "$python" "$here/server.py" "${2:?server.sh start PORT}"
    ;;
*)
    echo "usage: server.sh install | ready | start PORT" >&2
    exit 2
    ;;
esac
