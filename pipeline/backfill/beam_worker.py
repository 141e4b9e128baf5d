"""One Python worker process of Beam on a cluster: asks the runner where its services are, then does as it is told.

What Beam's own boot program (written in Go, made for containers) does with the same arguments, less the staging of
files: sightline is installed where the workers run. Knows nothing of backfills.
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
    """What the worker is started with: options, and the addresses of the runner's services, as protobuf text.

    Args:
        worker: the name that the runner gave. provision: host and port of its provision service.

    Raises:
        grpc.RpcError: nobody answers there within a minute.
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
    """Run until the runner has no more work, or is gone."""

    parser = argparse.ArgumentParser(description="One Python worker process of Beam, started by a runner.")
    parser.add_argument("--id", required=True, help="the name that the runner gives")
    parser.add_argument("--provision_endpoint", required=True, help="host and port of its provision service")
    given, _ = parser.parse_known_args(arguments)  # a runner may say more than is needed here
    os.environ.update(environment(given.id, given.provision_endpoint))
    sdk_worker_main.main([])


if __name__ == "__main__":
    main()
