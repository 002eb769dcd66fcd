"""Which rank of which world this process is, whoever started it; and what ranks say to each other."""

import os
import sys
import threading
import zlib
from dataclasses import dataclass
from datetime import timedelta

from golden import Refused

# Set by ranks.py for the processes that it starts itself.
SPAWNED_RANK, SPAWNED_SIZE = "TORCH_GOLDEN_RANK", "TORCH_GOLDEN_WORLD_SIZE"
SPAWNED_RENDEZVOUS = "TORCH_GOLDEN_RENDEZVOUS"
WATCHDOG = 90
# Ports that neither the kernel (from 32768) nor common services hand out.
FIRST_PORT, PORTS = 20000, 12000


@dataclass(frozen=True)
class World:
    """A rank's place. `init_method` is None where a process trains alone."""

    rank: int
    size: int
    init_method: str | None
    # Whether all ranks are known to be on one machine, whose own name need not resolve.
    is_local: bool


ALONE = World(0, 1, None, True)


def number(environment, name):
    try:
        return int(environment[name])
    except ValueError as error:
        raise Refused(f"{name}={environment[name]} in the environment is no number: start with a launcher") from error


def world_of(environment, master=None):
    """The world that the environment speaks of, or None in a process that was started by hand.

    `master` is HOST or HOST:PORT of rank 0; ranks of one torchrun already know it, those of mpirun find it in
    MASTER_ADDR and MASTER_PORT, or are all on one machine.
    """
    if SPAWNED_RANK in environment:
        rank, size = number(environment, SPAWNED_RANK), number(environment, SPAWNED_SIZE)
        return World(rank, size, f"file://{environment[SPAWNED_RENDEZVOUS]}", True)
    if all(name in environment for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")):
        rank, size = number(environment, "RANK"), number(environment, "WORLD_SIZE")
        # torchrun's own store is at that address already: only env:// joins it as a client.
        return World(rank, size, "env://", environment.get("LOCAL_WORLD_SIZE") == str(size))
    if "OMPI_COMM_WORLD_RANK" in environment:
        return world_of_mpirun(environment, master)
    return None


def world_of_mpirun(environment, master):
    rank, size = number(environment, "OMPI_COMM_WORLD_RANK"), number(environment, "OMPI_COMM_WORLD_SIZE")
    is_local = environment.get("OMPI_COMM_WORLD_LOCAL_SIZE") == str(size)
    host, _, port = (master or environment.get("MASTER_ADDR") or ("127.0.0.1" if is_local else "")).partition(":")
    if not host:
        raise Refused("ranks on several hosts: give rank 0's address with --master HOST or in MASTER_ADDR")
    port = port or environment.get("MASTER_PORT") or port_of_job(environment)
    if not str(port).isdigit() or not 1 <= int(port) <= 65535:
        raise Refused(f"--master or MASTER_PORT: port `{port}` is not a number from 1 to 65535")
    return World(rank, size, f"tcp://{host}:{port}", is_local)


def port_of_job(environment):
    """A port that all ranks of one mpirun agree on, and two mpiruns at once hardly share."""
    job = environment.get("PMIX_NAMESPACE") or environment.get("OMPI_MCA_ess_base_jobid") or ""
    return FIRST_PORT + zlib.crc32(job.encode()) % PORTS


def join(world, timeout_s, backend="gloo"):
    """Joins the world; `backend` as torch.distributed names it."""
    if world.init_method is None:
        return
    import torch.distributed as dist

    # DeepSpeed asks for it.
    os.environ.setdefault("LOCAL_RANK", os.environ.get("OMPI_COMM_WORLD_LOCAL_RANK", str(world.rank)))
    if world.is_local:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    timeout = timedelta(seconds=timeout_s)
    if world.init_method == "env://":
        dist.init_process_group(backend, timeout=timeout)
        return
    dist.init_process_group(
        backend, init_method=world.init_method, rank=world.rank, world_size=world.size, timeout=timeout
    )


def limit(timeout_s, rank):
    """Ends this process with exit code 90 after `timeout_s`, wherever it waits: collectives of gloo have limits of
    their own, but joining, compiling and tearing down do not."""

    def end():
        print(f"torch_golden: rank {rank} is not done after {timeout_s} s (--timeout-s)", file=sys.stderr, flush=True)
        os._exit(WATCHDOG)

    timer = threading.Timer(timeout_s, end)
    timer.daemon = True
    timer.start()


def gather(value, world):
    """Every rank's value, in the order of ranks, on every rank."""
    if world.size == 1:
        return [value]
    import torch.distributed as dist

    values = [None] * world.size
    dist.all_gather_object(values, value)
    return values


def gather_numbers(numbers, length, world):
    """As gather, for at most `length` numbers a rank: one small collective, without pickling."""
    if world.size == 1:
        return [numbers]
    import torch
    import torch.distributed as dist

    padded = torch.full((length + 1,), float(len(numbers)), dtype=torch.float64)
    padded[1 : 1 + len(numbers)] = torch.tensor(numbers, dtype=torch.float64)
    everyone = [torch.empty_like(padded) for _ in range(world.size)]
    dist.all_gather(everyone, padded)
    return [one[1 : 1 + int(one[0])].tolist() for one in everyone]


def leave(world):
    """Ends this rank once all ranks are done, without tearing gloo down: see README.md."""
    if world.init_method is None:
        return
    import torch.distributed as dist

    dist.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
