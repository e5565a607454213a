"""PyTorch with torch.compile: the network with its loss, or the whole step with the optimizer,
whichever is faster. On a GPU with mode="reduce-overhead", which makes CUDA graphs of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nnbackend.benchmark.cases import Case
from peers.system import Material, UnsupportedError
from peers.torch_eager import (
    ALL_THREADS,
    DrivenLearner,
    Learner,
    Loss,
    TorchEager,
    network_of,
)


def compiled(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    mode = "reduce-overhead" if device.type == "cuda" else "default"
    return torch.compile(function, mode=mode)


class CompiledLoss(Learner):
    """Network and loss compiled, backward pass included; the optimizer is PyTorch's fused one."""

    def make_step(self) -> Callable[[Tensor, Tensor], Tensor]:
        network, loss_function, optimizer = self.network, self.loss, self.optimizer

        def loss_of(x: Tensor, y: Tensor) -> Tensor:
            return loss_function(network(x), y)

        function = compiled(loss_of, next(network.parameters()).device)

        def step(x: Tensor, y: Tensor) -> Tensor:
            optimizer.zero_grad()
            loss: Tensor = function(x, y)
            loss.backward()
            optimizer.step()
            return loss

        return step


class CompiledStep(Learner):
    """Everything in one compiled function."""

    def make_step(self) -> Callable[[Tensor, Tensor], Tensor]:
        function = compiled(super().make_step(), next(self.network.parameters()).device)

        def step(x: Tensor, y: Tensor) -> Tensor:
            # what the last step's graph has returned may be overwritten
            torch.compiler.cudagraph_mark_step_begin()
            loss: Tensor = function(x, y)
            return loss

        return step


class CompiledDriven(DrivenLearner):
    """The network compiled, its way back included; the optimizer is PyTorch's fused one."""

    def make_forward(self) -> Callable[[Tensor], Tensor]:
        return compiled(self.network, next(self.network.parameters()).device)


class TorchCompiled(TorchEager):
    # on a GPU the first calls compile, warm up and record graphs
    warm_calls = 5

    def learners(
        self,
        case: Case,
        material: Material,
        kind: type[Learner] = Learner,
        loss: Loss | None = None,
    ) -> dict[str, Learner]:
        torch.compiler.reset()  # it gives up on functions that were compiled too often
        settings: dict[str, Any] = {"device": self.device, "loss": loss}
        if kind is DrivenLearner:
            driven = CompiledDriven(case, material, **settings)
            return {"compiled network, fused optimizer": driven}
        if kind is not Learner:
            raise UnsupportedError("measured without compiling only")
        return {
            "compiled loss, fused optimizer": CompiledLoss(case, material, **settings),
            "compiled step": CompiledStep(case, material, "foreach", **settings),
        }

    def checked_learner(self, case: Case, material: Material) -> Learner:
        torch.compiler.reset()
        return CompiledLoss(case, material, dropout=False, device=self.device)

    def callables(self, case: Case, material: Material) -> dict[str, tuple[int, Any]]:
        torch.compiler.reset()
        network = network_of(case, material).eval()
        return {"compiled": (ALL_THREADS, torch.compile(network))}
