"""A real RTSP server (GStreamer's) that plays files as cameras: `python3 server.py PORT < orders`.

Orders, one a line on stdin, each answered by a line `ok` or `error WHY` on stdout:
    mount /PATH CODEC FILE    a camera at rtsp://127.0.0.1:PORT/PATH; of MP4 with h264, hevc or mpeg4
    unmount /PATH             the camera is gone, and its connections are closed
Each mount plays in real time from its first connection on, for all who watch it, by TCP or UDP. The server ends with
its stdin. Debian's python3-gi, gir1.2-gst-rtsp-server-1.0 and gstreamer1.0-plugins-good are needed: see `server.sh`.
"""

import sys
import threading

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

PAYLOADERS = {
    "h264": "rtph264pay config-interval=-1",
    "hevc": "rtph265pay config-interval=-1",
    "mpeg4": "rtpmp4vpay config-interval=1",
}


class Server:
    """The server and who plays what."""

    def __init__(self, port):
        self.server = GstRtspServer.RTSPServer()
        self.server.set_address("127.0.0.1")
        self.server.set_service(str(port))
        self.server.connect("client-connected", self._came)
        self.playing = {}
        if not self.server.attach(None):
            raise SystemExit(f"port {port} is taken")

    def mount(self, path, codec, file):
        factory = GstRtspServer.RTSPMediaFactory()
        factory.set_launch(f'( filesrc location="{file}" ! qtdemux ! {PAYLOADERS[codec]} name=pay0 pt=96 )')
        factory.set_shared(True)
        self.server.get_mount_points().add_factory(path, factory)

    def unmount(self, path):
        self.server.get_mount_points().remove_factory(path)
        for client in [client for client, played in self.playing.items() if played == path]:
            client.close()

    def _came(self, _, client):
        client.connect("play-request", lambda client, context: self.playing.update({client: context.uri.abspath}))
        client.connect("closed", lambda client: self.playing.pop(client, None))


def follow(server, loop):
    """Carry out the orders, in the main loop's thread."""

    def act(order, *arguments):
        try:
            {"mount": server.mount, "unmount": server.unmount}[order](*arguments)
            answer = "ok"
        except Exception as error:
            answer = f"error {type(error).__name__} {error}"
        print(answer, flush=True)  # noqa: T201
        return False

    for line in sys.stdin:
        if line.strip():
            GLib.idle_add(act, *line.strip().split(maxsplit=3))
    GLib.idle_add(loop.quit)


def main():
    Gst.init(None)
    server, loop = Server(int(sys.argv[1])), GLib.MainLoop()
    threading.Thread(target=follow, args=(server, loop), daemon=True).start()
    loop.run()


if __name__ == "__main__":
    main()
