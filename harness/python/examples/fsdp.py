"""FullyShardedDataParallel (FSDP1): `torchrun --nproc-per-node 2 fsdp.py --run-dir RUN`. What recording needs is marked."""

import contextlib

import torch
import torch.distributed as dist
from lockstep_record import Recorder  # record
from torch.distributed.fsdp import FullyShardedDataParallel

import task


def main():
    arguments = task.arguments()
    dist.init_process_group("gloo")
    model = FullyShardedDataParallel(task.build(arguments.dropout), use_orig_params=True, device_id=torch.device("cpu"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=task.CONFIG["lr"])
    record = Recorder(arguments.run_dir, model, optimizer, config=task.CONFIG, seed=task.CONFIG["seed"])  # record
    with record:  # record
        for step in range(1, task.STEPS + 1):
            ids = task.micro_batches(step, arguments.micro_batches, dist.get_rank(), dist.get_world_size())
            losses = []
            optimizer.zero_grad()
            for index, micro_batch in enumerate(ids):
                with contextlib.nullcontext() if index == len(ids) - 1 else model.no_sync():
                    loss = task.loss(model, micro_batch)
                    (loss / len(ids)).backward()
                losses.append(loss.item())
            optimizer.step()
            record.step(step, loss=losses, samples=ids)  # record
        record.save_checkpoint()  # record
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
