"""What errors, logs and the store show of a URL."""

from __future__ import annotations

import time

import pytest

from index.errors import mask_url


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("rtsp://10.0.0.5:554/live/main: no answer", "rtsp://10.0.0.5:554/live/main: no answer"),
        ("(rtsp://cam/live).", "(rtsp://cam/live)."),
        ("rtsp://a:hunter2@c@host/x", "rtsp://***@host/x"),
        ("rtsp://a:hun/ter2@host/x", "rtsp://***@host/x"),
        ("rtsp://a:hun#ter2@host/x", "rtsp://***@host/x"),
        ("rtsp://a:1234#hunter2@host/x gone", "rtsp://***@host/x gone"),
        ("rtsp://a:my hunter2@host/x gone", "rtsp://***@host/x gone"),
        ("rtsp://a:hunter2", "rtsp://***"),
        ("s3://KEY:hun/ter2@bucket/x", "s3://***@bucket/x"),
        ("rtsp://h/?name=hunter2&n=1", "rtsp://h/?***"),
        ("https://h/x#hunter2", "https://h/x?***"),
        ("https://h/x?mail=me@hunter2.org", "https://h/x?***"),
        ("https://a.blob.core.windows.net/c/x.mp4?sv=2022-11-02&sig=hunter2%3D", "https://a.blob.core.windows.net/c/x.mp4?***"),
        ("rtsp://h:554/user=admin_password=hunter2_channel=1.sdp?real_stream", "rtsp://h:554/***?***"),
        ("rtsp://h/user=admin&password=hunter2&channel=1", "rtsp://h/***"),
        ("rtsp://h/user%3Dadmin%26password%3Dhunter2/x", "rtsp://h/***/x"),
        ("rtsp://h/user%253Dadmin_password%253Dhunter2", "rtsp://h/***"),
        ("rtsp://h/live;pwd=hunter2;x", "rtsp://h/live;***"),
        ("rtmp://live.example/app/live_1_hunter2aBcDeFgHiJkLmNoP", "rtmp://live.example/app/live_1_***"),
        ("rtsp://h\\a:hunter2@x", "rtsp://***@x"),
        ("https://h/video-2024-03-01T08-00-00.000Z.mp4", "https://h/video-2024-03-01T08-00-00.000Z.mp4"),
        ("s3://b/date=2024-01-01/0123456789abcdef0123.mp4?versionId=hunter2", "s3://b/date=2024-01-01/0123456789abcdef0123.mp4?***"),
        ("file:///videos/a=b@c;d.mp4", "file:///videos/a=b@c;d.mp4"),
        ("file:///videos/user=admin_password=hunter2.mp4", "file:///videos/user=***"),
        ("user=admin_password=hunter2_channel=1", "user=***"),
        ("AccountKey=hunter2==;EndpointSuffix=x", "AccountKey=***;EndpointSuffix=x"),
        ("max_tokens=16, token = hunter2, width=3", "max_tokens=16, token = ***, width=3"),
        ("a://x:hunter2@y,b://z:hunter2@w", "a://***@***//***"),
        ("://hunter", "://hunter"),
        ("udp://239.1.1.1:5000 loop:x.mp4 kafka://t/3/100", "udp://239.1.1.1:5000 loop:x.mp4 kafka://t/3/100"),
    ],
)  # fmt: skip
def test_only_scheme_host_port_and_path_are_shown(text: str, shown: str) -> None:
    assert mask_url(text) == shown
    assert mask_url(shown) == shown


@pytest.mark.parametrize(
    "unit",
    ["x", "a=", "a://", "://", "rtsp://u:p ", "@", "/", "%3d", "%25", "password=", "a://b@", "a://b:c ", "a:", "=", ";", "a1"],
)  # fmt: skip
def test_time_is_linear_in_the_length(unit: str) -> None:
    def seconds(letters: int) -> float:
        text = unit * (letters // len(unit))
        began = time.process_time()
        mask_url(text)
        return time.process_time() - began

    fastest = [min(seconds(letters) for _ in range(3)) for letters in (100_000, 400_000)]
    assert fastest[1] < 0.2 + 8 * fastest[0]  # quadratic: 16 times, and minutes
    assert fastest[1] < 5
