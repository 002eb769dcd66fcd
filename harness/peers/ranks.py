"""Starts one process a rank on this machine and ends all of them when one fails or time is up."""

import os
import subprocess
import sys
import tempfile
import time

from world import SPAWNED_RANK, SPAWNED_RENDEZVOUS, SPAWNED_SIZE, WATCHDOG

POLL_S = 0.1


def run_ranks(argv, world_size, timeout_s):
    """Runs `argv` once a rank; returns 0, the first failing rank's exit code, or 90 at the limit."""
    with tempfile.TemporaryDirectory(prefix="torch-golden-") as folder:
        # A file as meeting point: there is no port that another program could have taken.
        common = {SPAWNED_SIZE: str(world_size), SPAWNED_RENDEZVOUS: os.path.join(folder, "rendezvous")}
        processes = [
            subprocess.Popen([sys.executable, *argv], env=os.environ | common | {SPAWNED_RANK: str(rank)})
            for rank in range(world_size)
        ]
        try:
            return wait(processes, time.monotonic() + timeout_s, timeout_s)
        finally:
            end_all(processes)


def wait(processes, deadline, timeout_s):
    while True:
        codes = [process.poll() for process in processes]
        for rank, code in enumerate(codes):
            if code not in (None, 0):
                print(f"torch_golden: rank {rank} ended with {code}: ending all ranks", file=sys.stderr)
                return code if code > 0 else 128 - code
        if all(code == 0 for code in codes):
            return 0
        if time.monotonic() > deadline:
            waiting = [rank for rank, code in enumerate(codes) if code is None]
            print(f"torch_golden: ranks {waiting} are not done after {timeout_s} s (--timeout-s)", file=sys.stderr)
            return WATCHDOG
        time.sleep(POLL_S)


def end_all(processes):
    for process in processes:
        process.kill()
    for process in processes:
        process.wait()
