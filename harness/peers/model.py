"""The model of a golden run, chosen by `model.kind`: the only place that knows which there are.

A model is a `torch.nn.Module` made from (the configuration's `model` section, initial weights by name). Its
`forward` takes the tensors of a micro-batch (data.py) and returns its losses, each summed over its own targets; `terms`
are their names and weights, and `named()` lists its parameters under the run record's names, in the model's order.
"""


def gpt(config, weights):
    from gpt import Gpt

    return Gpt(config, weights)


def transformer_unsupported(config):
    model = config["model"]
    yield model["dropout"] != 0, "model.dropout is not 0: the generators of its masks differ"
    yield model["positions"] != "learned", "model.positions is not learned"
    yield model.get("layer_drop", 0) != 0, "model.layer_drop is not 0: the generators of its choices differ"


def gpt_unsupported(config):
    yield from transformer_unsupported(config)
    yield config["data"]["tokenizer"] != "bytes", "data.tokenizer is not bytes"


def resnet(config, weights):
    from resnet import Resnet

    return Resnet(config, weights)


def resnet_unsupported(config):
    data = config["data"]
    yield data.get("augment", False), "data.augment is not false"
    yield data["path"] != "embedded:shapes", "data.path is not embedded:shapes"


def vla(config, weights):
    from vla import Vla

    return Vla(config, weights)


def vla_unsupported(config):
    yield from transformer_unsupported(config)
    yield config["data"]["path"] != "embedded:reach", "data.path is not embedded:reach"


# model.kind: (how it is built, what of its configuration has no counterpart here).
MODELS = {"gpt": (gpt, gpt_unsupported), "resnet": (resnet, resnet_unsupported), "vla": (vla, vla_unsupported)}


def build(config, weights, device="cpu"):
    """The module for the resolved configuration, with these initial weights, on a device."""
    builder, _ = MODELS[config["model"]["kind"]]
    module = builder(config["model"], weights).to(device)
    if config["precision"] == "bf16":
        import torch

        module.forward = torch.autocast(torch.device(device).type, dtype=torch.bfloat16)(module.forward)
    return module


def unsupported(config):
    """Pairs (whether it is so, what): where PyTorch would not repeat this configuration's model."""
    kind = config["model"]["kind"]
    if kind not in MODELS:
        yield True, f"model.kind {kind} is none of {', '.join(MODELS)}"
        return
    yield config["model"].get("freeze", []) != [], "model.freeze is not empty"
    yield from MODELS[kind][1](config)
