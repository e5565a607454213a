"""PyTorch as one usually writes it: zero_grad, forward, loss, backward, optimizer.step.

Of the settings that people use (fused or foreach optimizer, all threads or one) the fastest is
taken for each case. Batches are tensors made ahead; on a CPU they share the NumPy arrays' memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from nnbackend.benchmark.cases import EPOCH_BATCHES, Batches, Case
from nnbackend.benchmark.operations import Trial, driven_batches
from peers.system import (
    CHECKED_ROWS,
    CHECKED_STEPS,
    PREDICT_BLOCK,
    Material,
    System,
    trial,
)

Loss = Callable[[Tensor, Tensor], Tensor]
ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}
LOSSES: dict[str, Loss] = {
    "softmax_cross_entropy": functional.cross_entropy,
    "sigmoid_cross_entropy": functional.binary_cross_entropy_with_logits,
    "mean_squared_error": functional.mse_loss,
}
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": lambda parameters, **how: torch.optim.Adam(parameters, lr=1e-3, eps=1e-7, **how),
    "momentum": lambda parameters, **how: torch.optim.SGD(parameters, lr=0.01, momentum=0.9, **how),
}
HOW = {"fused": {"fused": True}, "foreach": {"foreach": True}}
ALL_THREADS = torch.get_num_threads()
THREADS = {"all threads": ALL_THREADS, "1 thread": 1}


def network_of(
    case: Case, material: Material, dropout: bool = True, device: str = "cpu"
) -> nn.Sequential:
    """The case's network with the weights that everybody gets."""
    layers: list[nn.Module] = []
    last = len(material.weights) - 1
    for k, (weight, bias) in enumerate(material.weights):
        linear = nn.Linear(*weight.shape)
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(weight.T))
            linear.bias.copy_(torch.from_numpy(bias))
        layers.append(linear)
        if k == last:
            break
        if case.batch_norm:
            layers.append(nn.BatchNorm1d(weight.shape[1]))
        layers.append(ACTIVATIONS[case.activation]())
        if case.dropout and dropout:
            layers.append(nn.Dropout(case.dropout))
    return nn.Sequential(*layers).to(device)


class Learner:
    """A network with its optimizer. ``step(x, y)`` makes an update and returns the loss before
    it; ``reset`` goes back to the beginning and sets the number of threads."""

    def __init__(
        self,
        case: Case,
        material: Material,
        how: str = "fused",
        threads: int = ALL_THREADS,
        dropout: bool = True,
        device: str = "cpu",
        loss: Loss | None = None,
    ) -> None:
        self.network = network_of(case, material, dropout, device)
        self.threads = threads
        self.start = {k: v.clone() for k, v in self.network.state_dict().items()}
        parameters = self.network.parameters()
        self.optimizer = OPTIMIZERS[case.optimizer](parameters, **HOW[how])
        self.loss = loss or LOSSES[case.loss]
        self.step = self.make_step()

    def make_step(self) -> Callable[[Tensor, Tensor], Tensor]:
        network, loss_function, optimizer = self.network, self.loss, self.optimizer

        def step(x: Tensor, y: Tensor) -> Tensor:
            optimizer.zero_grad()
            loss = loss_function(network(x), y)
            loss.backward()
            optimizer.step()
            return loss

        return step

    def reset(self) -> None:
        torch.set_num_threads(self.threads)
        self.network.load_state_dict(self.start)
        for state in self.optimizer.state.values():
            for value in state.values():
                if isinstance(value, Tensor):
                    value.zero_()


class DrivenLearner(Learner):
    """``step(x, dy)`` goes forward, back from dy, and updates; it returns the outputs."""

    def make_forward(self) -> Callable[[Tensor], Tensor]:
        return self.network

    def make_step(self) -> Callable[[Tensor, Tensor], Tensor]:
        forward, optimizer = self.make_forward(), self.optimizer

        def step(x: Tensor, dy: Tensor) -> Tensor:
            optimizer.zero_grad()
            outputs = forward(x)
            outputs.backward(dy)
            optimizer.step()
            return outputs

        return step


class GradientLearner(Learner):
    """``step(x, y)`` takes the gradient, and updates nothing."""

    def make_step(self) -> Callable[[Tensor, Tensor], Tensor]:
        network, loss_function, optimizer = self.network, self.loss, self.optimizer

        def step(x: Tensor, y: Tensor) -> Tensor:
            optimizer.zero_grad()
            loss = loss_function(network(x), y)
            loss.backward()
            return loss

        return step


def own_squared_error(y_pred: Tensor, y: Tensor) -> Tensor:
    error = y_pred - y
    return (error * error).mean()


class TorchEager(System):
    packages = ("torch",)

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        self.device = device
        torch.backends.cuda.matmul.allow_tf32 = self.precision == "tf32"
        if device == "cuda" and not torch.cuda.is_available():
            raise ImportError("PyTorch finds no GPU")

    def gpu(self) -> str:
        return torch.cuda.get_device_name() if self.device == "cuda" else ""

    def tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def finish(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def learners(
        self,
        case: Case,
        material: Material,
        kind: type[Learner] = Learner,
        loss: Loss | None = None,
    ) -> dict[str, Learner]:
        """The ways worth trying, by name."""
        threads = THREADS if self.device == "cpu" else {"on the GPU": ALL_THREADS}
        return {
            f"{how} optimizer, {name}": kind(
                case, material, how, count, device=self.device, loss=loss
            )
            for how in HOW
            for name, count in threads.items()
        }

    def checked_learner(self, case: Case, material: Material) -> Learner:
        """What the losses are compared of."""
        return Learner(case, material, dropout=False, device=self.device)

    def callables(self, case: Case, material: Material) -> dict[str, tuple[int, Any]]:
        """The ways of inference worth trying: name -> (threads, network)."""
        network = network_of(case, material).eval()
        return {name: (threads, network) for name, threads in THREADS.items()}

    def losses(self, case: Case, material: Material) -> list[float]:
        learner = self.checked_learner(case, material)
        batches = material.batches(case)[:CHECKED_STEPS]
        return [float(learner.step(self.tensor(x), self.tensor(y))) for x, y in batches]

    def outputs(self, case: Case, material: Material) -> np.ndarray:
        ((_, network), *_) = self.callables(case, material).values()
        with torch.inference_mode():
            return network(torch.from_numpy(material.x[:CHECKED_ROWS])).numpy()

    def step(self, case: Case, material: Material) -> Trial:
        return self._steps(self.learners(case, material), material.batches(case))

    def _steps(self, learners: dict[str, Learner], batches: Batches) -> Trial:
        tensors = [(self.tensor(x), self.tensor(y)) for x, y in batches]
        return self.fastest(
            {k: trial(v.step, tensors, v.reset, self.finish) for k, v in learners.items()}
        )

    def driven_values(self, case: Case, material: Material) -> list[float]:
        learner = DrivenLearner(case, material, dropout=False, device=self.device)
        batches = driven_batches(case)[:CHECKED_STEPS]
        tensors = [(self.tensor(x), self.tensor(dy)) for x, dy in batches]
        return [float((dy * learner.step(x, dy)).sum()) for x, dy in tensors]

    def driven(self, case: Case, material: Material) -> Trial:
        learners = self.learners(case, material, DrivenLearner)
        return self._steps(learners, driven_batches(case))

    def own_loss_values(self, case: Case, material: Material) -> list[float]:
        learner = Learner(case, material, device=self.device, loss=own_squared_error)
        batches = material.batches(case)[:CHECKED_STEPS]
        return [float(learner.step(self.tensor(x), self.tensor(y))) for x, y in batches]

    def own_loss(self, case: Case, material: Material) -> Trial:
        learners = self.learners(case, material, loss=own_squared_error)
        return self._steps(learners, material.batches(case))

    def gradient_values(self, case: Case, material: Material) -> list[float]:
        learner, values = GradientLearner(case, material, device=self.device), []
        for x, y in material.batches(case)[:2]:
            values.append(float(learner.step(self.tensor(x), self.tensor(y))))
            gradients = [p.grad.flatten() for p in learner.network.parameters()]
            values.append(float(torch.cat(gradients).norm()))
        return values

    def gradient(self, case: Case, material: Material) -> Trial:
        learners = self.learners(case, material, GradientLearner)
        return self._steps(learners, material.batches(case))

    def epoch(self, case: Case, material: Material) -> Trial:
        x, y = (self.tensor(array) for array in material.epoch(case))

        def epochs(learner: Learner) -> Trial:
            step = learner.step

            def repeat(count: int) -> None:
                for _ in range(count):
                    for rows in torch.randperm(len(x), device=self.device).split(case.batch):
                        step(x[rows], y[rows])
                self.finish()

            return Trial(repeat, 0, 0, EPOCH_BATCHES, learner.reset)

        return self.fastest({k: epochs(v) for k, v in self.learners(case, material).items()})

    def inference(self, case: Case, material: Material) -> Trial:
        rows = [(torch.from_numpy(x),) for x in material.single_rows()]
        ways = self.callables(case, material)
        return self.fastest({k: _inferring(*way, rows) for k, way in ways.items()})

    def predict(self, case: Case, material: Material) -> Trial:
        x = torch.from_numpy(material.x)
        candidates = {}
        for name, (threads, network) in self.callables(case, material).items():

            def in_blocks(x: Tensor, network: Any = network) -> Tensor:
                return torch.cat([network(block) for block in x.split(PREDICT_BLOCK)])

            candidates[f"whole, {name}"] = _inferring(threads, network, [(x,)])
            candidates[f"in blocks, {name}"] = _inferring(threads, in_blocks, [(x,)])
        return self.fastest(candidates)


def _inferring(threads: int, call: Callable[..., Any], arguments: list[tuple[Any, ...]]) -> Trial:
    inner = trial(call, arguments)

    def repeat(count: int) -> None:
        with torch.inference_mode():
            inner.repeat(count)

    return Trial(repeat, 0, 0, reset=lambda: torch.set_num_threads(threads))
