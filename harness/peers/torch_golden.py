#!/usr/bin/env python3
"""Repeats a golden run in PyTorch and writes the same run record, for `lockstep-harness compare`.

Initial weights, sample ids, text and configuration come from the golden run's directory; model, schedule, gradient
accumulation, optimizer and DistributedDataParallel are PyTorch's own. Exit codes: 0 done, 1 internal error, 2 wrong
command line or a configuration that cannot be repeated here, 72 no initial state, 90 a rank outlasted the limit.
"""

import argparse
import os
import sys
from pathlib import Path

from golden import USAGE, Refused, load
from ranks import rank_of_this_process, run_ranks


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--golden", required=True, type=Path, help="run directory of the golden run")
    parser.add_argument("--run-dir", required=True, type=Path, help="where to write this run: new or empty")
    parser.add_argument(
        "--accumulate",
        required=True,
        choices=["sequential", "tree"],
        help="add micro-batches one after the other as PyTorch does, or along the tree of the ordered sum",
    )
    parser.add_argument("--ranks", type=int, default=1, help="with more than 1: DistributedDataParallel over gloo")
    parser.add_argument("--steps", type=int, help="steps to repeat (default: all of the golden run)")
    parser.add_argument("--timeout-s", type=float, default=900, help="seconds until all ranks are ended")
    return parser.parse_args()


def check(arguments, golden):
    micro_batches, steps = golden.config["batch"]["micro_batches"], len(golden.samples)
    if not 1 <= arguments.ranks <= micro_batches:
        raise Refused(f"--ranks {arguments.ranks}: from 1 to {micro_batches}, the golden run's batch.micro_batches")
    if arguments.ranks > 1 and arguments.accumulate == "tree":
        raise Refused("--accumulate tree is for one rank: DistributedDataParallel adds in its own order")
    if arguments.steps is not None and not 1 <= arguments.steps <= steps:
        raise Refused(f"--steps {arguments.steps}: from 1 to {steps}, the golden run's steps")
    if rank_of_this_process() is None and arguments.run_dir.exists() and any(arguments.run_dir.iterdir()):
        raise Refused(f"--run-dir {arguments.run_dir} is not empty: give another one, or remove it")


def main():
    arguments = parse_arguments()
    try:
        golden = load(arguments.golden)
        check(arguments, golden)
        threads = str(golden.config["run"]["threads_per_rank"])
        # Thread counts change bits, and these libraries read them once, when torch is imported.
        os.environ.update(OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads)
        if arguments.ranks > 1 and rank_of_this_process() is None:
            return run_ranks(sys.argv, arguments.ranks, arguments.timeout_s)
        import train

        train.run(golden, arguments)
        return 0
    except Refused as refused:
        print(f"torch_golden: {refused}", file=sys.stderr)
        return refused.exit_code
    except OSError as error:
        print(f"torch_golden: {error}", file=sys.stderr)
        return USAGE if isinstance(error, FileExistsError) else 1


if __name__ == "__main__":
    sys.exit(main())
