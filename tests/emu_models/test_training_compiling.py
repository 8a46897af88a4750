"""Compiled blocks: what is compiled, that it computes the same, and what happens without a compiler."""

from typing import Any

import pytest
import torch
from torch import nn
from torch._inductor import config

from emu_models.latent.building import build_denoiser
from emu_models.latent.denoiser import denoise
from emu_models.latent.jobs import DenoiserConfig
from emu_models.text import TextFeatures
from emu_models.training import compiling

CPU = torch.device("cpu")


def build() -> Any:
    torch.manual_seed(0)
    network = build_denoiser(DenoiserConfig((32, 64), (False, True), 1, "full"), 4, 16, 16)
    with torch.no_grad():
        for parameter in network.parameters():  # the last layer may begin as zeros
            parameter.add_(0.01 * torch.randn_like(parameter))
    return network


def compiled_in(network: nn.Module) -> set[str]:
    return {type(module).__name__ for module in network.modules() if module._compiled_call_impl is not None}


def test_without_a_compiler_one_sentence_says_so_and_nothing_is_compiled(caplog):
    torch._dynamo.reset()  # forget what was compiled in this process
    network = build()
    with config.patch({"cpp.cxx": (None, "no-such-compiler")}):
        assert not compiling.compile_blocks(network, CPU)
    assert compiled_in(network) == set()
    assert "cannot be compiled here and runs as it is" in caplog.text and "no-such-compiler" in caplog.text
    torch._dynamo.reset()


def test_the_repeated_blocks_are_compiled_and_a_network_without_them_says_so(monkeypatch, caplog):
    monkeypatch.setattr(compiling, "find_fault", lambda device: "")
    network = build()
    names = list(network.state_dict())
    assert compiling.compile_blocks(network, CPU)
    assert compiled_in(network) == set(compiling.BLOCKS)
    assert list(network.state_dict()) == names
    assert not compiling.compile_blocks(nn.Linear(1, 1), CPU) and "has no ResnetBlock2D" in caplog.text


@pytest.mark.campaign
def test_a_compiled_network_computes_the_same():
    """Compiles for some minutes."""
    if fault := compiling.find_fault(CPU):
        pytest.skip(f"no compiler: {fault}")
    plain, compiled = build(), build()
    assert compiling.compile_blocks(compiled, CPU)
    z, t = torch.randn(2, 4, 8, 8), torch.tensor([10, 500])
    text = TextFeatures(torch.randn(2, 5, 16), torch.ones(2, 5, dtype=torch.bool), torch.randn(2, 16))
    found = []
    for network in (plain, compiled):
        out = denoise(network, z, t, text)
        out.square().mean().backward()
        found.append((out, [parameter.grad for parameter in network.parameters() if parameter.grad is not None]))
    assert len(found[0][1]) == len(found[1][1]) > 50
    for mine, theirs in zip((found[0][0], *found[0][1]), (found[1][0], *found[1][1]), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5, rtol=1e-3)
