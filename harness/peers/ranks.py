"""Starts one process a rank on this machine and ends all of them when one fails or time is up."""

import os
import subprocess
import sys
import tempfile
import time

RANK, WORLD_SIZE, RENDEZVOUS = "TORCH_GOLDEN_RANK", "TORCH_GOLDEN_WORLD_SIZE", "TORCH_GOLDEN_RENDEZVOUS"
WATCHDOG = 90
POLL_S = 0.1


def rank_of_this_process():
    """This process's rank, or None in the one that was started by hand."""
    rank = os.environ.get(RANK)
    return None if rank is None else int(rank)


def run_ranks(argv, world_size, timeout_s):
    """Runs `argv` once a rank; returns 0, the first failing rank's exit code, or 90 at the limit."""
    with tempfile.TemporaryDirectory(prefix="torch-golden-") as folder:
        # A file as meeting point: there is no port that another program could have taken.
        common = {WORLD_SIZE: str(world_size), RENDEZVOUS: os.path.join(folder, "rendezvous")}
        # All ranks are on this machine, whose own name need not resolve.
        environment = {"GLOO_SOCKET_IFNAME": "lo"} | os.environ | common
        processes = [
            subprocess.Popen([sys.executable, *argv], env=environment | {RANK: str(rank)}) for rank in range(world_size)
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


def join_world(timeout_s):
    """Joins the gloo world; returns (rank, world size), (0, 1) without one."""
    rank = rank_of_this_process()
    if rank is None:
        return 0, 1
    from datetime import timedelta

    import torch.distributed as dist

    world_size = int(os.environ[WORLD_SIZE])
    dist.init_process_group(
        "gloo",
        init_method=f"file://{os.environ[RENDEZVOUS]}",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=timeout_s),
    )
    return rank, world_size


def gather(value, world_size):
    """Every rank's value, in the order of ranks, on every rank."""
    if world_size == 1:
        return [value]
    import torch.distributed as dist

    values = [None] * world_size
    dist.all_gather_object(values, value)
    return values
