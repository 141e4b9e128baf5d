"""The boot program of Beam's Python workers, against a provision service like that of a runner."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from apache_beam.portability.api import beam_provision_api_pb2 as api
from apache_beam.portability.api import beam_provision_api_pb2_grpc as services

from pipeline.backfill.beam_worker import environment


class _Provision(services.ProvisionServiceServicer):  # type: ignore[misc]
    def GetProvisionInfo(self, request: Any, context: Any) -> Any:  # noqa: N802
        worker = dict(context.invocation_metadata())["worker_id"]
        answer = api.GetProvisionInfoResponse()
        answer.info.control_endpoint.url = f"localhost:1{worker}"
        answer.info.logging_endpoint.url = "localhost:2"
        answer.info.pipeline_options.update({"beam:option:job_name:v1": "backfill"})
        answer.info.runner_capabilities.extend(["one", "two"])
        return answer


@pytest.fixture
def runner() -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(2))
    services.add_ProvisionServiceServicer_to_server(_Provision(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(0).wait()


def test_a_worker_learns_where_its_runner_is(runner: str) -> None:
    found = environment("7", runner)
    assert found["WORKER_ID"] == "7"
    assert found["CONTROL_API_SERVICE_DESCRIPTOR"].strip() == 'url: "localhost:17"'
    assert found["LOGGING_API_SERVICE_DESCRIPTOR"].strip() == 'url: "localhost:2"'
    assert "STATUS_API_SERVICE_DESCRIPTOR" not in found  # this runner has none
    assert json.loads(found["PIPELINE_OPTIONS"]) == {"beam:option:job_name:v1": "backfill"}
    assert found["RUNNER_CAPABILITIES"] == "one two"
