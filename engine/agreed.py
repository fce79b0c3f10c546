"""What all processes of a run take from rank 0: the fingerprint of the oracle, and the date of the run.

An oracle of the user may hold what differs between processes, such as a list made of a set, and the processes find each
other's verdicts by its fingerprint. A chat template may hold today's date. Both come from a file in the run folder,
before a base is built or a store opened.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from datetime import datetime

from dinado.errors import OracleError
from dinado.oracles import Oracle
from dinado.ranks import is_launched, rank_and_size
from workbench.plain_files import write_text
from workbench.run_folder import RunFolder

FILE = "agreed.json"
LIMIT_SECONDS = 600.0
LAUNCH = "MASTER_ADDR MASTER_PORT TORCHELASTIC_RUN_ID TORCHELASTIC_RESTART_COUNT SLURM_JOB_ID SLURM_STEP_ID"
"""Environment variables that are equal in all processes of a launch, and differ from one launch to the next."""


def agree(oracle: Oracle, folder: RunFolder, limit_seconds: float = LIMIT_SECONDS) -> datetime:
    """Give the oracle of every rank the fingerprint of rank 0's, and return when the run was created.

    Raises:
        OracleError: rank 0 has written nothing for ``limit_seconds``.
    """
    if not is_launched() or rank_and_size()[1] == 1:
        return folder.started()
    file, launch = folder.path / FILE, _launch()
    if rank_and_size()[0] == 0:
        started = folder.started()
        values = {"launch": launch, "oracle": oracle.fingerprint, "started": started.isoformat()}
        write_text(file, json.dumps(values) + "\n")
        return started
    end = time.monotonic() + limit_seconds
    while True:
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = {}
        if found.get("launch") == launch:
            oracle.adopt(found["oracle"])
            return datetime.fromisoformat(found["started"])
        if time.monotonic() > end:
            raise OracleError(f"{file}: process 0 has written no fingerprint of the oracle; is it alive?")
        time.sleep(0.1)


def _launch() -> str:
    values = [os.environ.get(name) for name in (*LAUNCH.split(), "SLURM_RESTART_COUNT")]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]
