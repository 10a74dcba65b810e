"""GStreamer's RTSP server with a moving test picture; run by the system's Python, which has its bindings.

/usr/bin/python3 tests/rtsp_server.py PORT      # rtsp://127.0.0.1:PORT/test, prints "ready"
"""

from __future__ import annotations

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

LAUNCH = (
    "( videotestsrc is-live=true pattern=ball ! video/x-raw,width=96,height=64,framerate=25/1 "
    "! vp8enc deadline=1 keyframe-max-dist=12 ! rtpvp8pay name=pay0 pt=96 )"
)


def main(port: str) -> None:
    """Serve until killed."""
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(port)
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(LAUNCH)
    factory.set_shared(True)
    server.get_mount_points().add_factory("/test", factory)
    if server.attach(None) == 0:
        sys.exit("the port is taken")
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    GLib.MainLoop().run()


main(sys.argv[1])
