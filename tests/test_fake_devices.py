"""The pretended devices refuse what real ones refuse, and compute what the CPU computes."""

import numpy as np
import pytest
import torch

from fake_devices import DeviceError, pretend

ones = torch.ones(2, 3)


@pytest.fixture(params=["mps", "cuda"])
def device(request):
    with pretend(request.param) as device:
        yield device


@pytest.mark.parametrize(
    "act",
    [
        lambda x: x.double(),
        lambda x: x.to(torch.float64),
        lambda x: torch.zeros(2, dtype=torch.float64, device=x.device),
        lambda x: torch.tensor(np.ones(2), device=x.device),
        lambda x: torch.from_numpy(np.ones(2)).to(x.device),
        lambda x: torch.nn.Linear(2, 2, dtype=torch.float64).to(x.device),
    ],
)
def test_float64_is_refused(device, act):
    with pytest.raises(TypeError, match="float64"):
        act(ones.to(device))


@pytest.mark.parametrize(
    "act",
    [
        lambda x: x + ones,
        lambda x: torch.cat([x, ones]),
        lambda x: x[torch.tensor([0])],
        lambda x: x @ ones.T,
        torch.nn.Linear(3, 2),
        lambda x: x * torch.tensor(2.0, dtype=torch.float64),
        lambda x: x.pin_memory(),
        lambda x: ones.to("xpu"),
        lambda x: torch.ones(2, device=f"{x.device.type}:1"),
    ],
)
def test_mixed_and_unknown_devices_are_refused(device, act):
    with pytest.raises(DeviceError):
        act(ones.to(device))


@pytest.mark.parametrize("act", [lambda x: x.numpy(), np.asarray, lambda x: np.add(x, 1)])
def test_numpy_needs_a_copy_on_the_cpu(device, act):
    with pytest.raises(TypeError, match=r"cpu\(\)"):
        act(ones.to(device))


def test_kernels_of_cpus_are_refused(device):
    x = ones.to(device)
    with pytest.raises(NotImplementedError):
        torch.ops.mkldnn._linear_pointwise(x, x, None, "none", [], "")


def test_a_kernel_that_mps_lacks_is_refused():
    with pretend("cuda"):
        torch.geqrf(torch.ones(3, 3, device="cuda"))
    with pretend("mps"), pytest.raises(NotImplementedError, match="geqrf"):
        torch.geqrf(torch.ones(3, 3, device="mps"))


def test_mps_has_no_complex_numbers():
    with pretend("mps"), pytest.raises(TypeError, match="complex"):
        torch.view_as_complex(torch.ones(3, 2, device="mps"))


def test_values_are_those_of_the_cpu(device):
    x = torch.arange(6, device=device).float().view(2, 3)
    x[0, 0], x[:, 1] = 5, x.new_tensor([7, 8])
    x[1].add_(torch.tensor(1.0))  # a 0-d tensor of the CPU may join
    assert (x.device, x.is_cuda, x.is_cpu) == (torch.device(device.type, 0), device.type == "cuda", False)
    assert x.tolist() == x.cpu().tolist() == [[5, 7, 2], [4, 9, 6]]
    assert float(x.max()) == 9 and bool((x > 3).any()) and x.nonzero().device.type == device.type
    back = torch.zeros(2, 3)
    assert back.copy_(x) is back and back.tolist() == x.tolist()
    with torch.inference_mode():
        assert torch.nn.functional.normalize(x, dim=1).square().sum().item() == pytest.approx(2)


def test_networks_learn_on_the_device_as_on_the_cpu(device):
    def trained(place):
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1)).to(place)
        optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            network(ones.to(place)).square().mean().backward()
            optimizer.step()
        return torch.cat([one.detach().flatten().cpu() for one in network.parameters()])

    assert torch.allclose(trained(device), trained("cpu"), atol=1e-6)


def test_the_device_is_gone_afterwards():
    with pretend("cuda"):
        assert torch.cuda.is_available()
    assert not torch.cuda.is_available() or torch.version.cuda
    with pretend("mps"):
        assert torch.backends.mps.is_available() and not torch.cuda.is_available()
