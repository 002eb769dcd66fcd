#!/usr/bin/env python3
"""Repeats a golden run in PyTorch or DeepSpeed and writes the same run record, for `lockstep-harness compare`.

Initial weights, sample ids, text and configuration come from the golden run's directory; schedule, gradient
accumulation, optimizer and data parallelism are the library's own. Ranks are started by this program (--ranks), by
torchrun, or by mpirun over any hosts that share the run directories. Exit codes: 0 done, 1 internal error, 2 wrong
command line or a configuration that cannot be repeated here, 72 no initial state, 90 a rank outlasted the limit.
"""

import argparse
import os
import sys
from pathlib import Path

from device import DEVICES, prepare_environment
from golden import USAGE, Refused, load
from ranks import run_ranks
from world import ALONE, limit, world_of


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--golden", required=True, type=Path, help="run directory of the golden run")
    parser.add_argument("--run-dir", required=True, type=Path, help="where to write this run: new or empty")
    parser.add_argument(
        "--engine",
        choices=["single", "ddp", "zero_redundancy", "deepspeed"],
        help="what trains (default: single, or ddp on more than one rank)",
    )
    parser.add_argument(
        "--accumulate",
        default="sequential",
        choices=["sequential", "tree"],
        help="add micro-batches one after the other as PyTorch does, or along the tree of the ordered sum",
    )
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="what computes: cuda takes a GPU for each rank")
    parser.add_argument("--ranks", type=int, help="ranks to start here (default: 1, or those of torchrun or mpirun)")
    parser.add_argument("--master", metavar="HOST[:PORT]", help="under mpirun: where rank 0 is (default: MASTER_ADDR)")
    parser.add_argument("--steps", type=int, help="steps to repeat (default: all of the golden run)")
    parser.add_argument("--no-checkpoint", action="store_true", help="save nothing at the end: for measurements")
    parser.add_argument("--timeout-s", type=float, default=900, help="seconds until all ranks are ended")
    return parser.parse_args()


def complete(arguments, world):
    """Fills in what depends on who started this process."""
    if world and arguments.ranks not in (None, world.size):
        raise Refused(f"--ranks {arguments.ranks}: the launcher started {world.size}; leave --ranks out")
    arguments.ranks = world.size if world else 1 if arguments.ranks is None else arguments.ranks
    arguments.engine = arguments.engine or ("ddp" if arguments.ranks > 1 else "single")


def check(arguments, golden, world):
    micro_batches, steps = golden.config["batch"]["micro_batches"], len(golden.samples)
    if not 1 <= arguments.ranks <= micro_batches:
        raise Refused(f"--ranks {arguments.ranks}: from 1 to {micro_batches}, the golden run's batch.micro_batches")
    check_engine(arguments, golden.config)
    if arguments.steps is not None and not 1 <= arguments.steps <= steps:
        raise Refused(f"--steps {arguments.steps}: from 1 to {steps}, the golden run's steps")
    if not 0 < arguments.timeout_s < float("inf"):
        raise Refused(f"--timeout-s {arguments.timeout_s}: a number of seconds above 0")
    # Started by run_ranks, other ranks may see what rank 0 has written already.
    if (world is None or world.rank == 0) and arguments.run_dir.exists() and any(arguments.run_dir.iterdir()):
        raise Refused(f"--run-dir {arguments.run_dir} is not empty: give another one, or remove it")


def check_engine(arguments, config):
    engine, ranks, micro_batches = arguments.engine, arguments.ranks, config["batch"]["micro_batches"]
    if arguments.accumulate == "tree" and engine != "single":
        raise Refused("--accumulate tree is for one rank: data-parallel engines add in their own order")
    if engine == "single" and ranks > 1:
        raise Refused(f"--engine single is for one rank, not {ranks}: take ddp, zero_redundancy or deepspeed")
    if engine == "deepspeed" and arguments.device != "cpu":
        raise Refused("--device cuda: --engine deepspeed is set up for the CPU here; take ddp or zero_redundancy")
    if engine == "deepspeed" and config["optim"]["kind"] != "adamw":
        raise Refused("--engine deepspeed: it shards optim.kind adamw only")
    if engine == "deepspeed" and micro_batches % ranks != 0:
        raise Refused(f"--engine deepspeed: batch.micro_batches {micro_batches} is no multiple of {ranks} ranks")


def main():
    arguments = parse_arguments()
    try:
        world = world_of(os.environ, arguments.master)
        complete(arguments, world)
        golden = load(arguments.golden)
        check(arguments, golden, world)
        threads = str(golden.config["run"]["threads_per_rank"])
        # Thread counts change bits, and these libraries read them once, when torch is imported.
        os.environ.update(OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads)
        prepare_environment(arguments.device, os.environ)
        if arguments.engine != "single" and world is None:
            return run_ranks(sys.argv, arguments.ranks, arguments.timeout_s)
        world = world if world and arguments.engine != "single" else ALONE
        limit(arguments.timeout_s, world.rank)
        import train

        train.run(golden, arguments, world)
        return 0
    except Refused as refused:
        print(f"torch_golden: {refused}", file=sys.stderr)
        return refused.exit_code
    except OSError as error:
        print(f"torch_golden: {error}", file=sys.stderr)
        return USAGE if isinstance(error, FileExistsError) else 1


if __name__ == "__main__":
    sys.exit(main())
