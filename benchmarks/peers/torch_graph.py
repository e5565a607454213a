"""PyTorch with the whole step, its fused optimizer included, captured by hand in a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nnbackend.benchmark.cases import Case
from peers.system import Material
from peers.torch_eager import HOW, OPTIMIZERS, Learner, TorchEager

#: Steps before the capture, as PyTorch's documentation asks for.
WARM_UP = 3


class GraphLearner(Learner):
    """Batches are copied into the graph's own tensors; the loss is a tensor of the graph."""

    def __init__(self, case: Case, material: Material, dropout: bool = True) -> None:
        self.example = case.data(case.batch)
        self.adam = case.optimizer == "adam"
        self.case = case
        super().__init__(case, material, dropout=dropout, device="cuda")

    def make_step(self) -> Callable[[Tensor, Tensor], Tensor]:
        how = {**HOW["fused"], **({"capturable": True} if self.adam else {})}
        self.optimizer = OPTIMIZERS[self.case.optimizer](self.network.parameters(), **how)
        own_x, own_y = (torch.from_numpy(array).to("cuda") for array in self.example)
        one_step = super().make_step()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                one_step(own_x, own_y)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad()
        with torch.cuda.graph(graph):
            loss = one_step(own_x, own_y)
        self.graph = graph
        self.reset()

        def step(x: Tensor, y: Tensor) -> Tensor:
            own_x.copy_(x)
            own_y.copy_(y)
            graph.replay()
            return loss

        return step


class TorchGraph(TorchEager):
    def __init__(self) -> None:
        super().__init__("cuda")

    def learners(self, case: Case, material: Material) -> dict[str, Learner]:
        return {"graph": GraphLearner(case, material)}

    def checked_learner(self, case: Case, material: Material) -> Learner:
        return GraphLearner(case, material, dropout=False)
