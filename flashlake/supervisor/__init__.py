"""supervisor: starts, watches, restarts and stops the processes of `flashlake up`; one file per process says what runs.

control.py    what the command line calls: start, stop
supervise.py  the loop of the one supervising process
services.py   which services there are, and how each is started
probes.py     how each shows that it is healthy
status.py     what `flashlake status` prints
records.py    the files under data/run; process.py: a process by pid and start time
"""

from flashlake.supervisor.control import start_services, stay_in_foreground, stop_services
from flashlake.supervisor.services import SERVICE_NAMES
from flashlake.supervisor.status import status_table

__all__ = ["SERVICE_NAMES", "start_services", "status_table", "stay_in_foreground", "stop_services"]
