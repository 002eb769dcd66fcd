"""`fully_shard` (FSDP2): `torchrun --nproc-per-node 2 fully_shard.py --run-dir RUN`. What recording needs is marked."""

import torch
import torch.distributed as dist
from lockstep_record import Recorder  # record
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import task


def main():
    arguments = task.arguments()
    dist.init_process_group("gloo")
    model = task.build(arguments.dropout)
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=task.CONFIG["lr"])
    record = Recorder(arguments.run_dir, model, optimizer, config=task.CONFIG, seed=task.CONFIG["seed"])  # record
    with record:  # record
        for step in range(1, task.STEPS + 1):
            ids = task.micro_batches(step, arguments.micro_batches, dist.get_rank(), dist.get_world_size())
            losses = []
            optimizer.zero_grad()
            for index, micro_batch in enumerate(ids):
                model.set_requires_gradient_sync(index == len(ids) - 1)
                loss = task.loss(model, micro_batch)
                (loss / len(ids)).backward()
                losses.append(loss.item())
            optimizer.step()
            record.step(step, loss=losses, samples=ids)  # record
        record.save_checkpoint()  # record
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
