"""Low-rank additions: nothing at first, merged exactly, and all that learns."""

import torch

from isinglass.matchers.lightglue import LightGlue, LightGlueConfig
from isinglass.train.lora import add_low_rank, merged


def test_additions_begin_at_nothing_learn_alone_and_merge():
    torch.manual_seed(0)
    model = LightGlue(LightGlueConfig(input_size=32, width=32, heads=2, layers=2)).eval()
    inputs = torch.rand(1, 2, 9, 2) * 50, torch.randn(1, 2, 9, 32), torch.full((1, 2, 2), 50)
    before, plain = model(*inputs)[0].log_assignment_BNN, {name for name, _ in model.named_parameters()}
    add_low_rank(model, 3)
    torch.testing.assert_close(model(*inputs)[0].log_assignment_BNN, before)
    learnt = {name: value for name, value in model.named_parameters() if value.requires_grad}
    assert learnt and all(name.endswith((".a", ".b")) and ".layers." in f".{name}" for name in learnt)
    assert len(learnt) == 2 * 2 * (4 + 5)  # a and b, layers, linear layers of the self- and the cross-attention unit
    with torch.no_grad():
        for value in learnt.values():
            value.add_(torch.randn_like(value) * 0.1)
    after, one = model(*inputs)[0].log_assignment_BNN, merged(model)
    assert not torch.allclose(after, before)
    assert {name for name, _ in one.named_parameters()} == plain
    torch.testing.assert_close(one(*inputs)[0].log_assignment_BNN, after)
    torch.testing.assert_close(model(*inputs)[0].log_assignment_BNN, after)  # the original is left alone
