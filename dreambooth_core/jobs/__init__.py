"""Jobs: a run is a folder, and this is how to start, watch, ask and list them.

Standard library only: hosts import it in their own Python. ::

    run = RunFolder.create(runs, "my dog")
    run.config.write_text(...)
    start(run)
    for event in attach(run):
        ...
"""

from dreambooth_core.disk.locks import FileLock
from dreambooth_core.jobs.checkpoints import saved_steps
from dreambooth_core.jobs.client import attach, command, terminate
from dreambooth_core.jobs.control import STOPS, VERBS
from dreambooth_core.jobs.events import ENDINGS, Event
from dreambooth_core.jobs.folder import RunFolder, sanitise
from dreambooth_core.jobs.launch import start
from dreambooth_core.jobs.proposal import Proposal
from dreambooth_core.jobs.receipt import read_made, read_receipt, write_receipt
from dreambooth_core.jobs.status import RunSummary, find_run, list_runs, status

__all__ = [
    "ENDINGS",
    "STOPS",
    "VERBS",
    "Event",
    "FileLock",
    "Proposal",
    "RunFolder",
    "RunSummary",
    "attach",
    "command",
    "find_run",
    "list_runs",
    "read_made",
    "read_receipt",
    "sanitise",
    "saved_steps",
    "start",
    "status",
    "terminate",
    "write_receipt",
]
