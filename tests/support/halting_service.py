"""A model service in a process of its own that stops in the middle of its answers, where a test kills it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.processes import environment

BEGUN = "a begun"
"""What is sent of each answer."""
_HALTING = """
import sys, time
from model.answerer import Answerer
from model.answers import AnswerPiece
from pipeline.service.limits import ServiceLimits
from pipeline.service.store_frames import serve
answer = Answerer.answer
def halting(self, request):
    if not len(request.captured_at):  # the question that loads the models
        yield from answer(self, request)
        return
    yield AnswerPiece(sys.argv[3])
    time.sleep(600)
Answerer.answer = halting
serve(sys.argv[1], "micro", "cpu", host="127.0.0.1", port=int(sys.argv[2]), token=None, limits=ServiceLimits(),
      on_listen=lambda url: print(url, flush=True))
"""


def start_service(home: Path, store: Path, port: int, *, halting: bool) -> subprocess.Popen[str]:
    """A model service over a store that listens.

    `halting`: each answer is `BEGUN` and then nothing more; otherwise it is the command `sightline model-service`.
    """
    command = [sys.executable, "-c", _HALTING, str(store), str(port), BEGUN]
    if not halting:
        command = [sys.executable, "-m", "sightline", "model-service", "--store", str(store), "--port", str(port)]
        command += ["--profile", "micro"]
    process = subprocess.Popen(
        command, cwd=home, env=environment(home), stdout=subprocess.PIPE, stderr=sys.stderr, text=True
    )
    assert process.stdout is not None
    assert "http://127.0.0.1" in process.stdout.readline()
    return process
