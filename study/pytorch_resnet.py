"""ResNet-20 v1 and its training step in plain PyTorch, for comparison."""

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    def __init__(self, before, filters, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(before, filters, 3, stride, padding=1)
        self.bn1 = nn.BatchNorm2d(filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(filters)
        self.projection = nn.Conv2d(before, filters, 1, stride) if before != filters else None

    def forward(self, x):
        y = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        return functional.relu(y + (self.projection(x) if self.projection else x), inplace=True)


def resnet20():
    """The network of `resnet_v1.resnet_v1((32, 32, 3), 20)`, without the softmax."""
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True)]
    before = 16
    for filters in (16, 32, 64):
        for _ in range(3):
            layers.append(Block(before, filters, stride=filters // before))
            before = filters
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    return nn.Sequential(*layers, *head)


class Trainer:
    """Trains as `main.py` does: Adam, L2 1e-4 on the kernels, images normalised on the device."""

    def __init__(self, images, labels, batch_size, compiled=False):
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.images = torch.from_numpy(images).permute(0, 3, 1, 2).to(self.device)
        self.labels = torch.from_numpy(labels).long().to(self.device)
        self.batch_size = batch_size
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")  # TF32, which JAX takes by default as well
        self.model = resnet20().to(self.device, memory_format=torch.channels_last)
        self.call = torch.compile(self.model) if compiled else self.model
        kernels = [p for p in self.model.parameters() if p.dim() == 4]
        others = [p for p in self.model.parameters() if p.dim() != 4]
        groups = [{"params": kernels, "weight_decay": 2e-4}, {"params": others}]
        self.optimizer = torch.optim.Adam(groups, lr=1e-3, eps=1e-7, fused=True)
        self.mean = (self.images.float() / 255).mean(dim=0)

    def train(self, steps):
        """Takes some steps over shuffled images, and returns the last one's loss."""
        order = torch.randperm(len(self.images), device=self.device)
        for step in range(steps):
            start = step * self.batch_size % len(order)
            batch = order[start : start + self.batch_size]
            x = self.images[batch].float() / 255 - self.mean
            x = x.contiguous(memory_format=torch.channels_last)
            loss = functional.cross_entropy(self.call(x), self.labels[batch])
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
        return loss.item()  # waits for the device
