"""Low-rank additions to linear layers (LoRA, Hu et al. 2022): few numbers to learn, and none left when merged."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn.utils import parametrize

from isinglass.matchers.lightglue import LightGlue
from isinglass.matchers.superglue import SuperGlue

Matcher = LightGlue | SuperGlue


class LowRank(nn.Module):
    """W + B A, of `rank`; B begins at 0, so that nothing changes at first (section 4.1)."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.a = nn.Parameter(weight.new_empty(rank, columns))
        self.b = nn.Parameter(weight.new_zeros(rows, rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with the addition."""
        return weight + self.b @ self.a


def add_low_rank(model: nn.Module, rank: int) -> None:
    """To all linear layers inside `model.layers` (attention and MLPs), in place. Only the additions are learnt then."""
    model.requires_grad_(False)
    for layer in model.get_submodule("layers").modules():
        if isinstance(layer, nn.Linear):
            parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank))


def merged(model: Matcher) -> Matcher:
    """A matcher of the same config, in which additions are part of the weights; the same if it has none."""
    linear = {name: one for name, one in model.named_modules() if isinstance(one, nn.Linear)}
    additions = {name: one for name, one in linear.items() if parametrize.is_parametrized(one, "weight")}
    if not additions:
        return model
    state = {name: value for name, value in model.state_dict().items() if ".parametrizations." not in name}
    state |= {f"{name}.weight": one.weight.detach() for name, one in additions.items()}
    plain = type(model)(model.config)  # pyright: ignore[reportArgumentType]
    plain.load_state_dict(state)
    return plain.to(next(iter(state.values())).device)
