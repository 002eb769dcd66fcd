"""The trainer's ResNet in PyTorch: torchvision's names, GroupNorm, basic blocks (He et al. 2016)."""

import torch.nn.functional as F

from named import Named

NORM_EPS = 1e-5
GROUPS = 8


class Resnet(Named):
    """Basic blocks in stages of twice the width and half the size."""

    def __init__(self, config, weights):
        super().__init__(weights)
        self.stages, self.layers = config["stages"], config["layers"]

    def conv_norm(self, conv, norm, x, stride=1):
        weight = self.parameter(f"{conv}.weight")
        x = F.conv2d(x, weight, stride=stride, padding=weight.size(3) // 2)
        return F.group_norm(x, GROUPS, self.parameter(f"{norm}.weight"), self.parameter(f"{norm}.bias"), NORM_EPS)

    def block(self, name, x, stride):
        y = F.relu(self.conv_norm(f"{name}.conv1", f"{name}.bn1", x, stride))
        y = self.conv_norm(f"{name}.conv2", f"{name}.bn2", y)
        if self.has(f"{name}.downsample.0.weight"):
            x = self.conv_norm(f"{name}.downsample.0", f"{name}.downsample.1", x, stride)
        return F.relu(y + x)

    def forward(self, inputs, targets):
        """Cross-entropy summed over the micro-batch's images."""
        x = F.relu(self.conv_norm("conv1", "bn1", inputs))
        for stage in range(self.stages):
            for index in range(self.layers):
                x = self.block(f"layer{stage + 1}.{index}", x, 2 if stage > 0 and index == 0 else 1)
        x = F.linear(x.mean(dim=(2, 3)), self.parameter("fc.weight"), self.parameter("fc.bias"))
        return (F.cross_entropy(x, targets, reduction="sum"),)
