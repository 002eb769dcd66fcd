"""What each way of sharding must gather before whole tensors can be recorded, and when gradients are whole.

An adapter is made on every rank. Its generators yield (name, whole tensor) in the model's order, and all ranks must
exhaust them together: some gather from the other ranks.
"""

import math

import torch

# Parts of a parameter's name that wrappers add.
WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")
# Optimizer state whose name in the record is not torch's.
STATE_NAMES = {"momentum_buffer": "momentum"}
# A count of updates, not state of a parameter.
NOT_STATE = ("step",)


def adapt(model, optimizer):
    """The adapter that fits."""
    if is_a(model, "DeepSpeedEngine"):
        return DeepSpeed(model)
    if any(is_a(module, "FullyShardedDataParallel") for module in model.modules()):
        return Fsdp1(model, optimizer)
    if is_a(optimizer, "ZeroRedundancyOptimizer"):
        return ZeroRedundancy(model, optimizer)
    return Whole(model, optimizer)


def is_a(thing, name):
    """Whether an object's class or one of its bases has this name: its module need not be importable."""
    return any(base.__name__ == name for base in type(thing).__mro__)


def unwrapped(model):
    """The user's own module inside DistributedDataParallel, DataParallel or DeepSpeed's engine."""
    while any(is_a(model, name) for name in ("DistributedDataParallel", "DataParallel", "DeepSpeedEngine")):
        model = model.module
    return model


def named(model):
    """(name without wrappers, parameter) in the model's order."""
    for name, parameter in unwrapped(model).named_parameters():
        for wrapper in WRAPPERS:
            name = name.replace(wrapper, "")
        yield name, parameter


def whole(tensor):
    """A DTensor's elements from all ranks; any other tensor as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def local(tensor):
    """This rank's part of a DTensor; any other tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


class Whole:
    """Plain PyTorch, DistributedDataParallel, and DTensors (`fully_shard`, tensor parallelism)."""

    def __init__(self, model, optimizer):
        self.model, self.optimizer = model, optimizer
        self.named = list(named(model))
        is_sharded = any(hasattr(parameter, "full_tensor") for _, parameter in self.named)
        # Which phases' tensors ranks hold together rather than each its own copy.
        self.sharded = dict.fromkeys(("parameters", "reduced_gradient", "optimizer"), is_sharded)
        if is_sharded:
            self.strategy = "fsdp"
        else:
            self.strategy = "ddp" if is_a(model, "DistributedDataParallel") else "single"

    def before_update(self, action):
        """Calls `action` whenever an update begins; returns what takes that back."""
        return self.optimizer.register_step_pre_hook(lambda *_: action()).remove

    def learning_rate(self):
        return float(self.optimizer.param_groups[0]["lr"])

    def optimizer_name(self):
        return type(self.optimizer).__name__.lower()

    def shapes(self):
        """(name, whole shape, dtype), in the model's order."""
        return [(name, list(parameter.shape), parameter.dtype) for name, parameter in self.named]

    def parameters(self):
        for name, parameter in self.named:
            yield name, whole(parameter.detach())

    def gradients(self):
        for name, parameter in self.named:
            if parameter.grad is not None:
                yield name, whole(parameter.grad)

    def state(self):
        """Of parameters that have been updated: (exp_avg/NAME, tensor) and the like."""
        kinds = {}
        for name, parameter in self.named:
            for kind, tensor in self.optimizer.state.get(parameter, {}).items():
                if kind not in NOT_STATE and torch.is_tensor(tensor):
                    kinds.setdefault(kind, []).append((name, tensor))
        for kind, tensors in kinds.items():
            for name, tensor in tensors:
                yield f"{STATE_NAMES.get(kind, kind)}/{name}", whole(tensor)

    def owned_elements(self):
        """Elements that this rank updates."""
        return sum(local(parameter).numel() for _, parameter in self.named if parameter.requires_grad)

    def state_bytes(self):
        """Bytes of optimizer state that this rank holds."""
        tensors = (tensor for state in self.optimizer.state.values() for tensor in state.values())
        return sum(local(tensor).nbytes for tensor in tensors if torch.is_tensor(tensor))

    def versions(self):
        return {}


class ZeroRedundancy(Whole):
    """ZeroRedundancyOptimizer: gradients are whole on all ranks; a rank has the state of the parameters it updates."""

    def __init__(self, model, optimizer):
        super().__init__(model, optimizer)
        from .world import World

        self.world = World()
        self.sharded["optimizer"] = self.world.size > 1
        self.strategy = "zero_redundancy"

    def optimizer_name(self):
        return type(self.optimizer.optim).__name__.lower()

    def state(self):
        owned = self.optimizer.optim.state
        mine = [
            {k for k, t in owned.get(parameter, {}).items() if k not in NOT_STATE and torch.is_tensor(t)}
            for _, parameter in self.named
        ]
        kinds = set().union(*(kind for rank in self.world.gather(mine) for kind in rank))
        for kind in sorted(kinds):
            for name, parameter in self.named:
                tensor = self.world.from_owner(owned.get(parameter, {}).get(kind), parameter.detach())
                if tensor is not None:
                    yield f"{STATE_NAMES.get(kind, kind)}/{name}", tensor

    def owned_elements(self):
        return sum(parameter.numel() for group in self.optimizer.optim.param_groups for parameter in group["params"])

    def state_bytes(self):
        tensors = (tensor for state in self.optimizer.optim.state.values() for tensor in state.values())
        return sum(tensor.nbytes for tensor in tensors if torch.is_tensor(tensor))


class Fsdp1(Whole):
    """The wrapper FullyShardedDataParallel, with `use_orig_params=True`: its own functions make tensors whole."""

    def __init__(self, model, optimizer):
        super().__init__(model, optimizer)
        from .world import World

        self.world = World()
        self.sharded = dict.fromkeys(self.sharded, True)
        self.strategy = "fsdp"
        self.known_shapes = [(name, list(parameter.shape), parameter.dtype) for name, parameter in self.parameters()]

    def shapes(self):
        return self.known_shapes

    def parameters(self):
        with self._summoned():
            # Copies: it frees the storage afterwards, and numpy must not hold on to it.
            yield from ((name, parameter.detach().clone()) for name, parameter in named(self.model))

    def gradients(self):
        with self._summoned(with_grads=True):
            for name, parameter in named(self.model):
                if parameter.grad is not None:
                    yield name, parameter.grad.clone()

    def _summoned(self, **options):
        from torch.distributed.fsdp import FullyShardedDataParallel

        return FullyShardedDataParallel.summon_full_params(self.model, writeback=False, **options)

    def state(self):
        """Ranks hold consecutive pieces of each flattened parameter, and of its state."""
        states = [self.optimizer.state.get(parameter, {}) for _, parameter in self.named]
        mine = {kind for state in states for kind, tensor in state.items() if kind not in NOT_STATE and torch.is_tensor(tensor)}
        for kind in sorted(set().union(*self.world.gather(mine))):
            for (name, shape, dtype), state in zip(self.known_shapes, states, strict=True):
                piece = state[kind].detach().reshape(-1).cpu() if kind in state else torch.empty(0, dtype=dtype)
                flat = torch.cat(self.world.gather(piece))
                if flat.numel() != math.prod(shape):
                    raise NotImplementedError(f"{name}: {flat.numel()} elements of state on all ranks: only FULL_SHARD is known")
                yield f"{STATE_NAMES.get(kind, kind)}/{name}", flat.reshape(shape)


class DeepSpeed(Whole):
    """DeepSpeed's engine with ZeRO stage 0, 1 or 2: parameters are whole on all ranks, the rest is gathered from partitions."""

    def __init__(self, engine):
        self.engine, self.zero = engine, engine.optimizer
        stage = engine.zero_optimization_stage()
        if stage > 2:
            raise NotImplementedError(f"DeepSpeed ZeRO stage {stage}: the recorder knows stages 0 to 2")
        super().__init__(engine, engine.basic_optimizer)
        self.sharded = {"parameters": False, "reduced_gradient": stage > 0, "optimizer": stage > 0}
        self.strategy = f"deepspeed_zero{stage}"

    def before_update(self, action):
        """The partitions of gradients are gone when torch's own optimizer runs, so `engine.step` is preceded instead."""
        engine, step = self.engine, self.engine.step

        def step_with_record(*arguments, **options):
            if engine.is_gradient_accumulation_boundary():
                action()
            return step(*arguments, **options)

        engine.step = step_with_record
        return lambda: engine.__dict__.pop("step", None)

    def learning_rate(self):
        return float(self.zero.param_groups[0]["lr"])

    def gradients(self):
        from deepspeed.utils import safe_get_full_grad

        for name, parameter in self.named:
            gradient = safe_get_full_grad(parameter)
            if gradient is not None:
                yield name, gradient

    def state(self):
        if not self.sharded["optimizer"]:
            yield from super().state()
            return
        from deepspeed.utils import safe_get_full_optimizer_state

        link_states(self.zero)
        kinds = {kind for state in self.optimizer.state.values() for kind, t in state.items() if torch.is_tensor(t)}
        for kind in sorted(kinds - set(NOT_STATE)):
            for name, parameter in self.named:
                tensor = safe_get_full_optimizer_state(parameter, kind)
                if tensor is not None:
                    yield f"{STATE_NAMES.get(kind, kind)}/{name}", tensor

    def owned_elements(self):
        """Of its flat partitions, padding included."""
        partitions = getattr(self.zero, "single_partition_of_fp32_groups", None)
        return super().owned_elements() if partitions is None else sum(partition.numel() for partition in partitions)

    def versions(self):
        import deepspeed

        return {"deepspeed": deepspeed.__version__}


def link_states(optimizer):
    """DeepSpeed 0.19 links the moments of all parameter groups to their parameters after the first group's first update, when
    the other groups have none yet: so once more."""
    optimizer._hp_optimizer_states_linked = False
    optimizer._lazy_init_hp_params_optimizer_state()
