"""DeepSpeed's ZeRO-1 on the CPU, over gloo (Rajbhandari et al. 2020)."""

import logging
import os
import sys
import time
from pathlib import Path

from golden import Refused
from optimizers import STATE_NAMES, groups, recipe
from record import link_states, versions


def load():
    """Imports DeepSpeed for the CPU. It compiles an op at first use, with ninja from this Python's environment."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ["PATH"] = f"{Path(sys.prefix, 'bin')}{os.pathsep}{os.environ.get('PATH', '')}"
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix, "torch_extensions")))
    try:
        import deepspeed
    except ImportError as error:
        raise Refused(f"--engine deepspeed: {error}; run ci/setup --peers, and .toolchain/bin/python-peers") from error
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    return deepspeed


def build_op():
    """Compiles the op that DeepSpeed's communication loads at its first use: minutes that no run should spend."""
    load()
    from deepspeed.accelerator import get_accelerator

    get_accelerator().create_op_builder("ShareMemCommBuilder").load()


class DeepSpeed:
    """As engines.Single, by deepspeed.initialize: it accumulates, reduces, shards, updates and all-gathers."""

    def __init__(self, model, config, world):
        self.deepspeed = load()
        self.named, self.settings, self.world = model.named(), config["optim"], world
        batch = config["batch"]
        self.micro_batches = batch["micro_batches"]
        optimizer, options = recipe(self.settings)
        self.engine, self.optimizer, _, _ = self.deepspeed.initialize(
            model=model,
            optimizer=optimizer(groups(self.named, self.settings), lr=self.settings["lr"], **options),
            config={
                "train_micro_batch_size_per_gpu": batch["micro_batch_size"],
                "gradient_accumulation_steps": self.micro_batches // world.size,
                "zero_optimization": {"stage": 1},
                # Its default is to clip at 1.
                "gradient_clipping": 0.0,
                # The optimizer is torch's fused one, not an op of DeepSpeed's own.
                "zero_force_ds_cpu_optimizer": False,
                "steps_per_print": sys.maxsize,
            },
        )

    def gradient(self, batches, objective, seconds):
        shares = []
        for index, batch in enumerate(batches):
            begin = time.perf_counter()
            share = objective.share(self.engine(**batch))
            middle = time.perf_counter()
            # DeepSpeed takes the mean over micro-batches and ranks.
            self.engine.backward(share.total * self.micro_batches)
            if index < len(batches) - 1:
                self.engine.step()
            seconds["forward"] += middle - begin
            seconds["backward"] += time.perf_counter() - middle
            shares.append(share.numbers())
        return shares

    def update(self, lr):
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.engine.step()

    def local_gradients(self):
        return []

    def gradients(self):
        return [(name, self.deepspeed.utils.safe_get_full_grad(parameter)) for name, parameter in self.named]

    def gradient_norm(self):
        return float(self.engine.get_global_grad_norm())

    def state(self):
        link_states(self.optimizer)
        for name, key in STATE_NAMES[self.settings["kind"]].items():
            for parameter_name, parameter in self.named:
                yield f"{name}/{parameter_name}", self.deepspeed.utils.safe_get_full_optimizer_state(parameter, key)

    def owned_elements(self):
        """Of its flat partitions, padding included."""
        return sum(partition.numel() for partition in self.optimizer.single_partition_of_fp32_groups)

    def versions(self):
        return versions() | {"deepspeed": self.deepspeed.__version__}
