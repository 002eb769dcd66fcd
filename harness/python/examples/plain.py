"""One process, gradients accumulated over micro-batches. What recording needs is marked `# record`."""

import torch
from lockstep_record import Recorder  # record

import task


def main():
    arguments = task.arguments()
    model = task.build(arguments.dropout)
    optimizer = torch.optim.AdamW(model.parameters(), lr=task.CONFIG["lr"])
    record = Recorder(arguments.run_dir, model, optimizer, config=task.CONFIG, seed=task.CONFIG["seed"])  # record
    with record:  # record
        for step in range(1, task.STEPS + 1):
            ids = task.micro_batches(step, arguments.micro_batches)
            losses = []
            optimizer.zero_grad()
            for micro_batch in ids:
                loss = task.loss(model, micro_batch)
                (loss / len(ids)).backward()
                losses.append(loss.item())
            optimizer.step()
            record.step(step, loss=losses, samples=ids)  # record
        record.save_checkpoint()  # record


if __name__ == "__main__":
    main()
