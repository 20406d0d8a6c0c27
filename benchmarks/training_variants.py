"""LightGlue without one of its ideas, for the ablation: the paper's table 4, at the size that is trained here."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import torch
from torch import nn

from isinglass.kernels.rotary import Rotation
from isinglass.matchers.lightglue import Assignment, CrossAttention, Layer, LightGlue, LightGlueConfig
from isinglass.matchers.superglue import MLP
from isinglass.runtime.layouts import Dense
from isinglass.train.config import MATCHERS

SURE = 20.0  # logit of a probability of 1, to float32


class AlwaysMatchable(Assignment):
    """Double softmax alone: nothing says that a point has no match."""

    def forward(self, x0_BMD, x1_BND, padding_BMN=None):
        """See Assignment; the logits are constants, so the loss of unmatchable points has no gradient."""
        with torch.no_grad():
            self.matchability.weight.zero_()
            self.matchability.bias.fill_(SURE)
        return super().forward(x0_BMD, x1_BND, padding_BMN)


class TwoWayCrossAttention(CrossAttention):
    """Keys and queries of their own, and so a similarity for each direction."""

    def __init__(self, width, heads):
        super().__init__(width, heads)
        self.key = nn.Linear(width, width)

    def forward(self, x, layout):
        """See CrossAttention."""
        q, k, v = (project(x).unflatten(-1, (self.heads, -1)) for project in (self.qk, self.key, self.v))
        return self.update(x, layout.attend(q, k, v, cross=True))


@dataclass(frozen=True, kw_only=True)
class NoMatchabilityConfig(LightGlueConfig):
    """Of NoMatchability."""


@dataclass(frozen=True, kw_only=True)
class AbsoluteConfig(LightGlueConfig):
    """Of Absolute."""


@dataclass(frozen=True, kw_only=True)
class TwoWayConfig(LightGlueConfig):
    """Of TwoWay."""


class NoMatchability(LightGlue):
    """Without eq. 7."""

    Config = NoMatchabilityConfig

    def __init__(self, config=None):
        super().__init__(config)
        width = self.config.width
        self.assignments = nn.ModuleList(AlwaysMatchable(width) for _ in range(self.config.layers))


class Absolute(LightGlue):
    """Positions are encoded once and added to the descriptors, as SuperGlue's; nothing is turned."""

    Config = AbsoluteConfig

    def __init__(self, config=None):
        super().__init__(config)
        channels = 4 if self.config.scale_orientation else 2
        self.encoder = MLP(channels, 32, 64, self.config.width)

    def forward(self, keypoints_B2N2, descriptors_B2ND, image_size_B22, scale_orientation_B2N2=None, mask_B2N=None,
                every_layer=False):  # fmt: skip
        """See LightGlue."""
        size = image_size_B22.to(keypoints_B2N2)[:, :, None]
        position = (keypoints_B2N2 - size / 2) / (size.amax(dim=-1, keepdim=True) / 2)
        if scale_orientation_B2N2 is not None:
            position = torch.cat([position, scale_orientation_B2N2.to(position)], dim=-1)
        sample = None
        if self.training:
            sample = slice(None) if mask_B2N is None else mask_B2N.flatten().nonzero().squeeze(1)
        x_B2ND = self.input_projection(descriptors_B2ND) + self.encoder(position, sample)
        nowhere = Rotation(position.new_ones(()), position.new_zeros(()))
        predictions, last = [], len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            x_B2ND = layer(x_B2ND, nowhere, Dense(mask_B2N))
            if every_layer or i == last:
                predictions.append(self._predict(i, x_B2ND, mask_B2N))
        return predictions


class TwoWay(LightGlue):
    """With the standard cross attention."""

    Config = TwoWayConfig

    def __init__(self, config=None):
        super().__init__(config)
        for layer in self.layers:
            assert isinstance(layer, Layer)
            layer.cross_attention = TwoWayCrossAttention(self.config.width, self.config.heads)


MATCHERS |= {NoMatchabilityConfig: NoMatchability, AbsoluteConfig: Absolute, TwoWayConfig: TwoWay}
VARIANTS = {
    "no-matchability": NoMatchabilityConfig,
    "absolute-positions": AbsoluteConfig,
    "two-way-attention": TwoWayConfig,
    "no-deep-supervision": None,
}


def variant(config, name):
    """The training of a variant: the same but for the model, or for the loss."""
    if VARIANTS[name] is None:
        return replace(config, deep_supervision=False)
    return replace(config, model=VARIANTS[name](**asdict(config.model)))
