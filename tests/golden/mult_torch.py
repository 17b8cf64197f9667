"""MulT's published architecture in PyTorch, written for comparison alone (evaluation mode).

Time is the first axis, as in the published code. Weights are drawn at random, biases and
LayerNorms included, so that no part of the layout can hide.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

NAMES = ("text", "audio", "vision")


class CrossAttention(nn.Module):
    """One projection matrix for query, key and value; heads cut along channels."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.d, self.heads = d, heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * d, d))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * d))
        self.out_proj = nn.Linear(d, d)

    def forward(self, query, key, value, mask):
        d, heads = self.d, self.heads
        steps_q, batch, _ = query.shape
        w, b = self.in_proj_weight, self.in_proj_bias
        q = F.linear(query, w[:d], b[:d]) * (d // heads) ** -0.5
        k = F.linear(key, w[d:2 * d], b[d:2 * d])
        v = F.linear(value, w[2 * d:], b[2 * d:])
        q, k, v = (x.reshape(x.shape[0], batch * heads, d // heads).transpose(0, 1)
                   for x in (q, k, v))
        weights = torch.bmm(q, k.transpose(1, 2))
        if mask is not None:
            weights = weights + mask
        mixed = torch.bmm(torch.softmax(weights, -1), v)
        return self.out_proj(mixed.transpose(0, 1).reshape(steps_q, batch, d))


class EncoderLayer(nn.Module):
    def __init__(self, d: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.attention = CrossAttention(d, heads)
        self.fc1, self.fc2 = nn.Linear(d, ratio * d), nn.Linear(ratio * d, d)
        self.norms = nn.ModuleList([nn.LayerNorm(d), nn.LayerNorm(d)])

    def forward(self, x, source=None):
        normed = self.norms[0](x)
        other = normed if source is None else self.norms[0](source)
        rows, columns = len(normed), len(other)
        mask = torch.triu(torch.full((rows, columns), -math.inf), 1 + abs(rows - columns))
        x = x + self.attention(normed, other, other, mask)
        return x + self.fc2(F.relu(self.fc1(self.norms[1](x))))


def sinusoid_rows(count: int, d: int) -> torch.Tensor:
    """Row 0 (padding) is zero; row p has the sines, then the cosines, of position p."""
    half = d // 2
    rates = torch.exp(torch.arange(half, dtype=torch.float) * -(math.log(10000) / (half - 1)))
    angles = torch.arange(count, dtype=torch.float)[:, None] * rates[None]
    table = torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)
    table[0] = 0
    return table


class Encoder(nn.Module):
    def __init__(self, d: int, heads: int, layers: int, ratio: int) -> None:
        super().__init__()
        self.d = d
        self.layers = nn.ModuleList([EncoderLayer(d, heads, ratio) for _ in range(layers)])
        self.norm = nn.LayerNorm(d)

    def embed(self, x):
        places = torch.arange(1, len(x) + 1)[:, None] * (x[:, :, 0] != 0)
        return math.sqrt(self.d) * x + sinusoid_rows(len(x) + 1, self.d)[places]

    def forward(self, x, source=None):
        x = self.embed(x)
        source = None if source is None else self.embed(source)
        for layer in self.layers:
            x = layer(x, source)
        return self.norm(x)


class MulT(nn.Module):
    """The whole model; ``widths`` and ``kernels`` by modality, ``targets`` as in the ablation."""

    def __init__(self, widths, kernels, d, heads, layers, ratio, targets=NAMES) -> None:
        super().__init__()
        self.targets = targets
        self.project = nn.ModuleDict({
            name: nn.Conv1d(width, d, size, bias=False)
            for name, width, size in zip(NAMES, widths, kernels, strict=True) if width != d})
        self.cross = nn.ModuleDict({
            f"{target}_with_{source}": Encoder(d, heads, layers, ratio)
            for target in targets for source in NAMES if source != target})
        self.memory = nn.ModuleDict({target: Encoder(2 * d, heads, max(layers, 3), ratio)
                                     for target in targets})
        whole = 2 * d * len(targets)
        self.head_in, self.head_out = nn.Linear(whole, whole), nn.Linear(whole, whole)
        self.head = nn.Linear(whole, 1)

    def forward(self, inputs):
        streams = {}
        for name, x in inputs.items():
            x = x.transpose(1, 2)
            if name in self.project:
                x = self.project[name](x)
            streams[name] = x.permute(2, 0, 1)
        lasts = []
        for target in self.targets:
            read = [self.cross[f"{target}_with_{source}"](streams[target], streams[source])
                    for source in NAMES if source != target]
            lasts.append(self.memory[target](torch.cat(read, dim=2))[-1])
        h = torch.cat(lasts, dim=1)
        return self.head(self.head_out(F.relu(self.head_in(h))) + h)[:, 0]


def randomised(model: MulT, seed: int) -> MulT:
    """Every weight drawn anew, at a size that keeps activations near one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            scale = 0.3 if p.ndim == 1 else p[0].numel() ** -0.5
            p.copy_(scale * torch.randn(p.shape, generator=generator)
                    + ("norm" in name and name.endswith("weight")))
    return model.eval()
