"""Programs that a test needs and that are not Python packages."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from tests.support.processes import ROOT

_RTSP = ROOT / "infra" / "rtsp" / "server.sh"

_PACKAGES = {
    "curl": "curl",
    "ffmpeg": "ffmpeg",
    "helm": "Helm's engine, by `infra/helm/tools.sh fetch`",
    "java": "a Java runtime, version 17",
    "haproxy": "HAProxy",
    "mvn": "Maven",
    "openssl": "OpenSSL's command",
    "promtool": "Prometheus, which includes promtool",
    "rtsp": "GStreamer's RTSP server, by `infra/rtsp/server.sh install` as root",
}
"""What to install for each tool; `rtsp` stands for `infra/rtsp/server.sh`, `helm` for `infra/helm/tools.sh`."""


def _installed(tool: str) -> bool:
    if tool == "rtsp":
        return subprocess.run([str(_RTSP), "ready"], check=False).returncode == 0
    if tool == "helm":
        return (ROOT / ".tools" / "helm" / "tools.txt").is_file()
    return shutil.which(tool) is not None


def need(*tools: str) -> None:
    """Skip the test if a tool is not installed; with CI set in the environment, fail it.

    Args:
        tools: keys of the table above.
    """
    missing = [tool for tool in tools if not _installed(tool)]
    if not missing:
        return
    why = f"not installed: {', '.join(missing)}; install {' and '.join(_PACKAGES[tool] for tool in missing)}"
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)
