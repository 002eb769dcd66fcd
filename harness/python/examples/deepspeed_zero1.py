"""DeepSpeed's ZeRO-1 on the CPU: `DS_ACCELERATOR=cpu torchrun --nproc-per-node 2 deepspeed_zero1.py --run-dir RUN`. What
recording needs is marked."""

import deepspeed
import torch
import torch.distributed as dist
from lockstep_record import Recorder  # record

import task


def main():
    arguments = task.arguments()
    deepspeed.init_distributed("gloo")
    model = task.build(arguments.dropout)
    optimizer = torch.optim.AdamW(model.parameters(), lr=task.CONFIG["lr"])
    engine, _, _, _ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        config={
            "train_micro_batch_size_per_gpu": task.SIZE,
            "gradient_accumulation_steps": arguments.micro_batches // dist.get_world_size(),
            "zero_optimization": {"stage": 1},
            # Its default is to clip at 1, and to take its own optimizer.
            "gradient_clipping": 0.0,
            "zero_force_ds_cpu_optimizer": False,
        },
    )
    record = Recorder(arguments.run_dir, engine, config=task.CONFIG, seed=task.CONFIG["seed"])  # record
    with record:  # record
        for step in range(1, task.STEPS + 1):
            ids = task.micro_batches(step, arguments.micro_batches, dist.get_rank(), dist.get_world_size())
            losses = []
            for micro_batch in ids:
                loss = task.loss(engine, micro_batch)
                engine.backward(loss)
                engine.step()
                losses.append(loss.item())
            record.step(step, loss=losses, samples=ids)  # record
        record.save_checkpoint()  # record
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
