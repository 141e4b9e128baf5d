"""An append in a process of its own that stops between two commits, where a test kills it."""

from __future__ import annotations

import subprocess
import sys

from tests.support.processes import ROOT

KILLED = """
import sys, time
from index.delta.table import StoreTable
from tests.support.records import PAIR, make_records, make_segment
from index.store import Store
url, stop = sys.argv[1:]
append = StoreTable.append_if_new
def halting(self, *args, **kwargs):
    if self.name == stop:
        print("in the middle", flush=True)
        time.sleep(600)
    return append(self, *args, **kwargs)
StoreTable.append_if_new = halting
records = make_records()
Store.open(url, encoders=PAIR).append(make_segment(records), records)
"""


def start(code: str, *args: str) -> subprocess.Popen[str]:
    """Run Python `code` with these arguments in a process of its own; its standard output is a pipe."""
    return subprocess.Popen([sys.executable, "-c", code, *args], cwd=ROOT, stdout=subprocess.PIPE, text=True)
