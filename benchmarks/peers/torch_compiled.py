"""PyTorch with torch.compile: the network with its loss, or the whole step with the optimizer,
whichever is faster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nnbackend.bench import Case
from peers.system import Material
from peers.torch_eager import ALL_THREADS, Learner, TorchEager, network_of


class CompiledLoss(Learner):
    """Network and loss compiled, backward pass included; the optimizer is PyTorch's fused one."""

    def make_step(self) -> Callable[[Tensor, Tensor], Tensor]:
        network, loss_function, optimizer = self.network, self.loss, self.optimizer

        def loss_of(x: Tensor, y: Tensor) -> Tensor:
            return loss_function(network(x), y)

        compiled = torch.compile(loss_of)

        def step(x: Tensor, y: Tensor) -> Tensor:
            optimizer.zero_grad()
            loss: Tensor = compiled(x, y)
            loss.backward()
            optimizer.step()
            return loss

        return step


class CompiledStep(Learner):
    """Everything in one compiled function."""

    def make_step(self) -> Callable[[Tensor, Tensor], Tensor]:
        return torch.compile(super().make_step())


class TorchCompiled(TorchEager):
    def learners(self, case: Case, material: Material) -> dict[str, Learner]:
        torch.compiler.reset()  # it gives up on functions that were compiled too often
        return {
            "compiled loss, fused optimizer": CompiledLoss(case, material),
            "compiled step": CompiledStep(case, material, "foreach"),
        }

    def checked_learner(self, case: Case, material: Material) -> Learner:
        torch.compiler.reset()
        return CompiledLoss(case, material, dropout=False)

    def callables(self, case: Case, material: Material) -> dict[str, tuple[int, Any]]:
        torch.compiler.reset()
        network = network_of(case, material).eval()
        return {"compiled": (ALL_THREADS, torch.compile(network))}
