"""Gradients and ten training steps of 200 random networks against PyTorch, in float64.

Slow, and left out where PyTorch is not installed. Networks, losses, optimizers, penalties, weights
of rows and clipping are those of ``random_models``; PyTorch differentiates formulas written here.
"""

import numpy as np
import pytest
from random_models import Drawn, draw

import nnbackend as nn

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow
SEEDS, STEPS = 200, 10
#: Networks in one test, so that a failure says roughly where.
EACH = 20
F = torch.nn.functional
ACTIVATIONS = {
    "linear": lambda z, a: z,
    "relu": lambda z, a: F.relu(z),
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "gelu": lambda z, a: F.gelu(z),
    "gelu_tanh": lambda z, a: F.gelu(z, approximate="tanh"),
    "silu": lambda z, a: F.silu(z),
    "mish": lambda z, a: F.mish(z),
    "sigmoid": lambda z, a: torch.sigmoid(z),
    "tanh": lambda z, a: torch.tanh(z),
    "softplus": lambda z, a: F.softplus(z, threshold=1e9),
    "softmax": lambda z, a: F.softmax(z, dim=1),
}


class Reference:
    """A model's parameters as tensors, and its formulas in PyTorch."""

    def __init__(self, model: nn.Sequential) -> None:
        self.model = model
        self.tensors = {
            name: torch.tensor(array, requires_grad=self.is_trained(name))
            for name, array in model.arrays().items()
        }
        self.trained = [name for name in self.tensors if self.is_trained(name)]

    def is_trained(self, name: str) -> bool:
        _, number, own = name.split(".")
        layer = self.model.layers[int(number)]
        return layer.trainable and own in layer.parameter_names

    def outputs(self, x):
        for k, layer in enumerate(self.model.layers):
            own = {name: self.tensors.get(f"layers.{k}.{name}") for name in layer.saved_names}
            if isinstance(layer, nn.Dense):
                x = x @ own["weight"]
                x = x if own.get("bias") is None else x + own["bias"]
                x = ACTIVATIONS[layer.activation.name](x, layer.activation.parameter)
            elif isinstance(layer, nn.BatchNorm):
                x = F.batch_norm(x, None, None, own["gamma"], own["beta"], True, 0.0, layer.eps)
            elif isinstance(layer, nn.LayerNorm):
                x = F.layer_norm(x, x.shape[1:], own["gamma"], own["beta"], layer.eps)
            elif isinstance(layer, nn.Standardize):
                x = (x - own["mean"]) * own["scale"]
            elif not isinstance(layer, nn.Dropout):  # which is given a rate of 0
                x = ACTIVATIONS[layer.activation.name](x, layer.activation.parameter)
        return x

    def loss(self, x, y, weight):
        p = self.outputs(torch.tensor(x))
        name, t = self.model.loss.name, torch.tensor(y)
        if name == "softmax_cross_entropy":
            rows = F.cross_entropy(p, t, reduction="none")
        elif name == "categorical_cross_entropy":
            rows = -torch.log(p.clip(1e-7, 1 - 1e-7))[torch.arange(len(t)), t]
        elif name == "sigmoid_cross_entropy":
            rows = F.binary_cross_entropy_with_logits(p, t, reduction="none").mean(dim=1)
        elif name == "binary_cross_entropy":
            q = p.clip(1e-7, 1 - 1e-7)
            rows = -(t * torch.log(q) + (1 - t) * torch.log(1 - q)).mean(dim=1)
        elif name == "mean_squared_error":
            rows = ((p - t) ** 2).mean(dim=1)
        elif name == "mean_absolute_error":
            rows = (p - t).abs().mean(dim=1)
        elif name == "huber":
            rows = F.huber_loss(p, t, reduction="none", delta=1.0).mean(dim=1)
        elif name == "poisson":
            rows = (p - t * torch.log(p.clip(min=1e-7))).mean(dim=1)
        else:
            assert name == "sum_squared_error"
            rows = ((p - t) ** 2).sum(dim=1)
        w = torch.ones(len(rows), dtype=rows.dtype) if weight is None else torch.tensor(weight)
        total = (w * rows).sum()
        if name != "sum_squared_error":
            total = total / w.sum()
        for k, layer in enumerate(self.model.layers):
            for own, (l1, l2) in layer.penalties.items():
                tensor = self.tensors.get(f"layers.{k}.{own}")
                if tensor is not None and (l1 or l2):
                    total = total + l1 * tensor.abs().sum() + l2 * (tensor**2).sum()
        return total

    def optimizer(self):
        own, rule = self.model.optimizer, self.model.optimizer.rule
        kinds = {name: self.kind(name) for name in self.trained}
        decay = [self.tensors[n] for n in self.trained if kinds[n] == "weight"]
        rest = [self.tensors[n] for n in self.trained if kinds[n] != "weight"]
        lr = own.lr if isinstance(own.lr, float) else float(own.rates(0, 1)[0])
        if rule.name in ("sgd", "momentum"):
            return torch.optim.SGD([*decay, *rest], lr, rule.momentum, nesterov=bool(rule.nesterov))
        if rule.name == "adagrad":
            return torch.optim.Adagrad([*decay, *rest], lr, eps=rule.eps)
        if rule.name == "rmsprop":
            return torch.optim.RMSprop([*decay, *rest], lr, alpha=rule.rho, eps=rule.eps)
        groups = [{"params": decay, "weight_decay": own.decay}, {"params": rest, "weight_decay": 0}]
        groups = [group for group in groups if group["params"]]
        return torch.optim.AdamW(groups, lr, (rule.beta1, rule.beta2), eps=rule.eps)

    def kind(self, name: str) -> str:
        _, number, own = name.split(".")
        return self.model.layers[int(number)].specs[own].kind

    def gradients(self, x, y, weight):
        loss = self.loss(x, y, weight)
        grads = torch.autograd.grad(loss, [self.tensors[name] for name in self.trained])
        return float(loss.detach()), dict(zip(self.trained, grads, strict=True))


def prepared(seed: int, backend: nn.Backend) -> tuple[Drawn, nn.Sequential]:
    """A random model without what PyTorch draws or schedules in another way."""
    drawn = draw(seed, 60)
    model = drawn.model("float64", backend)
    for layer in model.layers:
        if isinstance(layer, nn.Standardize):
            layer.adapt(drawn.x)
    layers = [layer for layer in model.layers if not isinstance(layer, nn.Dropout)]
    rebuilt = nn.Sequential(
        [type(layer)(**layer.config()) for layer in layers], seed=seed, dtype="float64",
        backend=backend,
    )  # fmt: skip
    for own, layer in zip(rebuilt.layers, layers, strict=True):
        for name in layer.saved_names:
            own.assign(name, backend.to_numpy(layer.array(name)))
        if isinstance(own, nn.Standardize):
            own.adapt(drawn.x)
    optimizer = model.optimizer
    if not isinstance(optimizer.lr, float):
        optimizer.lr = 1e-3
    rebuilt.compile(model.loss, optimizer)
    return drawn, rebuilt


@pytest.mark.parametrize("first", range(0, SEEDS, EACH))
def test_gradients_and_steps_are_those_of_torch(backend: nn.Backend, first: int) -> None:
    torch.set_num_threads(1)
    compared = values = 0
    for seed in range(first, first + EACH):
        drawn, model = prepared(seed, backend)
        reference = Reference(model)
        if not reference.trained:
            continue
        x, y, weight = drawn.x, drawn.y, drawn.weight
        loss = model.gradient(x, y, weight)
        expected, gradients = reference.gradients(x, y, weight)
        assert loss == pytest.approx(expected, rel=1e-10), seed
        scale = max(1.0, *(float(g.abs().max()) for g in gradients.values()))
        for name, gradient in gradients.items():
            _, number, own = name.split(".")
            found = backend.to_numpy(model.layers[int(number)].gradient(own))
            error = np.abs(found - gradient.numpy()).max()
            assert error <= 1e-10 * scale, (seed, name, error)
        optimizer, clip = reference.optimizer(), model.optimizer.clip_norm
        # where a gradient is rounding alone, as that of a bias below a norm, Adam makes it large
        decided = {name: np.ones(gradient.shape, bool) for name, gradient in gradients.items()}
        for _ in range(STEPS):
            model.train_step(x, y, weight)
            _, gradients = reference.gradients(x, y, weight)
            for name, gradient in gradients.items():
                decided[name] &= np.abs(gradient.numpy()) > 1e-10 * scale
            for name, gradient in gradients.items():
                reference.tensors[name].grad = gradient
            if clip is not None:
                norm = torch.sqrt(sum((g**2).sum() for g in gradients.values()))
                for gradient in gradients.values():
                    gradient *= min(1.0, clip / float(norm))
            optimizer.step()
        for name in reference.trained:
            found, expected = model.arrays()[name], reference.tensors[name].detach().numpy()
            own = decided[name]
            error = f"{seed} {name}"
            np.testing.assert_allclose(found[own], expected[own], 1e-6, 1e-8, err_msg=error)
            values += int(own.sum())
        compared += 1
    assert compared >= EACH // 2
    assert values > 1000
