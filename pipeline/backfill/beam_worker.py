"""One Python worker process of Beam on a cluster.

It asks the runner for the addresses of its services and starts Beam's worker. It replaces Beam's boot program, which is
written in Go for containers, takes the same arguments, and also stages files; here Sightline is installed where the
workers run. This module knows nothing of backfills.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

import grpc
from apache_beam.portability.api import beam_provision_api_pb2 as api
from apache_beam.portability.api import beam_provision_api_pb2_grpc as services
from apache_beam.runners.worker import sdk_worker_main
from google.protobuf import json_format, text_format

__all__ = ["main"]

_SECONDS = 60


def environment(worker: str, provision: str) -> dict[str, str]:
    """Ask the runner for the worker's environment: options, and the addresses of its services as protobuf text.

    Args:
        worker: the name that the runner gave this worker.
        provision: host and port of the runner's provision service.

    Raises:
        grpc.RpcError: the service does not answer within a minute.
    """

    with grpc.insecure_channel(provision) as channel:
        answer = services.ProvisionServiceStub(channel).GetProvisionInfo(
            api.GetProvisionInfoRequest(), metadata=[("worker_id", worker)], timeout=_SECONDS, wait_for_ready=True
        )
    info = answer.info
    found = {
        "WORKER_ID": worker,
        "PIPELINE_OPTIONS": json_format.MessageToJson(info.pipeline_options),
        "RUNNER_CAPABILITIES": " ".join(info.runner_capabilities),
    }
    for name in ("control", "logging", "status"):
        if info.HasField(f"{name}_endpoint"):
            place = getattr(info, f"{name}_endpoint")
            found[f"{name.upper()}_API_SERVICE_DESCRIPTOR"] = text_format.MessageToString(place)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Run until the runner has no more work or has ended."""

    parser = argparse.ArgumentParser(description="One Python worker process of Beam, started by a runner.")
    parser.add_argument("--id", required=True, help="the name that the runner gives")
    parser.add_argument("--provision_endpoint", required=True, help="host and port of its provision service")
    given, _ = parser.parse_known_args(arguments)  # a runner may pass arguments that are not needed here
    os.environ.update(environment(given.id, given.provision_endpoint))
    sdk_worker_main.main([])


if __name__ == "__main__":
    main()
