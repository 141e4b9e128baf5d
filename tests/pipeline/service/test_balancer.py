"""A load balancer before the service that finds no replica."""

from __future__ import annotations

import httpx
import pytest

from index.errors import ServiceUnavailable
from pipeline.service.client import ServiceClient


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_balancer_without_a_replica_is_an_error_that_says_so(status: int) -> None:
    """What HAProxy and nginx reply when no server is up is a page, not the JSON of the service."""

    def reply(_: httpx.Request) -> httpx.Response:
        return httpx.Response(status, html="<html><body><h1>Service Unavailable</h1></body></html>")

    with pytest.raises(ServiceUnavailable, match=rf"answered {status}: no replica .* ask again"):
        ServiceClient("http://balancer.example", transport=httpx.MockTransport(reply))
