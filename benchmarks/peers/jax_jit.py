"""JAX: one jitted function for a training step, its state donated; lax.scan over an epoch.

A hand-written Adam, since that is the shortest way. Batches are device arrays made ahead, which
is quicker than passing NumPy arrays. On a CPU every call is waited for, on a GPU the last one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nnbackend.benchmark.cases import EPOCH_BATCHES, Case
from nnbackend.benchmark.operations import Trial, driven_batches
from peers.system import CHECKED_ROWS, CHECKED_STEPS, PREDICT_BLOCK, Material, System, trial

LR, BETA1, BETA2, EPS = 1e-3, 0.9, 0.999, 1e-7
SGD_LR, MOMENTUM = 0.01, 0.9
NORM_EPS, NORM_MOMENTUM = 1e-5, 0.1
#: Where the epochs are scanned over as well: so much arithmetic in one call, and so many epochs.
SCANNED_FLOPS, MOST_SCANNED = 2e9, 64
ACTIVATIONS: dict[str, Callable[[Any], Any]] = {"relu": jax.nn.relu, "tanh": jnp.tanh}


class State(NamedTuple):
    """What a step changes. ``m`` and ``v`` are Adam's moments; SGD has its velocity in ``m``."""

    parameters: Any
    m: Any
    v: Any
    statistics: Any
    key: Any
    count: Any


def state_of(case: Case, material: Material, random: str) -> State:
    """The beginning, with the weights that everybody gets; ``random`` names JAX's generator."""
    parameters = [{"w": jnp.array(w), "b": jnp.array(b)} for w, b in material.weights]
    statistics = []
    if case.batch_norm:
        for layer in parameters[:-1]:
            layer["gamma"], layer["beta"] = jnp.ones_like(layer["b"]), jnp.zeros_like(layer["b"])
            statistics.append((jnp.zeros_like(layer["b"]), jnp.ones_like(layer["b"])))
    m, v = (jax.tree.map(jnp.zeros_like, parameters) for _ in range(2))
    if case.optimizer == "momentum":
        v = []
    return State(parameters, m, v, statistics, jax.random.key(0, impl=random), jnp.zeros((), int))


def forward(case: Case, parameters: Any, statistics: Any, key: Any, x: Any, training: bool) -> Any:
    """The network's outputs, and the running statistics after it."""
    moved = []
    for k, layer in enumerate(parameters):
        x = x @ layer["w"] + layer["b"]
        if k == len(parameters) - 1:
            break
        if case.batch_norm:
            mean, variance = statistics[k]
            if training:
                batch_mean, batch_variance = x.mean(axis=0), x.var(axis=0)
                unbiased = batch_variance * (len(x) / (len(x) - 1))
                moved.append(
                    (
                        mean + NORM_MOMENTUM * (batch_mean - mean),
                        variance + NORM_MOMENTUM * (unbiased - variance),
                    )
                )
                mean, variance = batch_mean, batch_variance
            scale = jax.lax.rsqrt(variance + NORM_EPS) * layer["gamma"]
            x = (x - mean) * scale + layer["beta"]
        x = ACTIVATIONS[case.activation](x)
        if training and case.dropout:
            keep = jax.random.bernoulli(jax.random.fold_in(key, k), 1 - case.dropout, x.shape)
            x = jnp.where(keep, x / (1 - case.dropout), 0)
    return x, moved


def loss_of(case: Case, outputs: Any, y: Any) -> Any:
    """The mean loss of a batch."""
    if case.loss == "softmax_cross_entropy":
        logs = jax.nn.log_softmax(outputs)
        return -jnp.take_along_axis(logs, y[:, None], axis=1).mean()
    if case.loss == "sigmoid_cross_entropy":
        return (jax.nn.softplus(outputs) - y * outputs).mean()
    return jnp.square(outputs - y).mean()


def update(case: Case, state: State, gradients: Any) -> tuple[Any, Any, Any]:
    """Parameters and moments after a step; ``state.count`` counts this step already."""
    tree_map, parameters = jax.tree.map, state.parameters
    if case.optimizer == "momentum":
        m = tree_map(lambda m, g: MOMENTUM * m - SGD_LR * g, state.m, gradients)
        return tree_map(jnp.add, parameters, m), m, state.v
    m = tree_map(lambda m, g: BETA1 * m + (1 - BETA1) * g, state.m, gradients)
    v = tree_map(lambda v, g: BETA2 * v + (1 - BETA2) * g * g, state.v, gradients)
    steps = state.count.astype(jnp.float32)
    first, second = 1 - BETA1**steps, 1 - BETA2**steps
    parameters = tree_map(
        lambda p, m, v: p - LR * (m / first) / (jnp.sqrt(v / second) + EPS), parameters, m, v
    )
    return parameters, m, v


def make_step(case: Case) -> Callable[[State, Any, Any], tuple[State, Any]]:
    """(state, x, y) -> (state, loss before the update)."""

    def step(state: State, x: Any, y: Any) -> tuple[State, Any]:
        key = state.key
        if case.dropout:
            key = jax.random.fold_in(state.key, state.count)

        def loss(parameters: Any) -> Any:
            outputs, moved = forward(case, parameters, state.statistics, key, x, training=True)
            return loss_of(case, outputs, y), moved

        (value, moved), gradients = jax.value_and_grad(loss, has_aux=True)(state.parameters)
        state = state._replace(count=state.count + 1, statistics=moved)
        parameters, m, v = update(case, state, gradients)
        return state._replace(parameters=parameters, m=m, v=v), value

    return step


def device_targets(y: np.ndarray) -> Any:
    """Labels as int32, JAX's usual integer."""
    return jnp.asarray(y.astype(np.int32) if y.dtype.kind == "i" else y)


class Stepper:
    """A state and a jitted function that takes and returns it."""

    def __init__(
        self, function: Callable[..., Any], make_state: Callable[[], State], waits: bool
    ) -> None:
        self.function = jax.jit(function, donate_argnums=0)
        self.make_state, self.waits = make_state, waits
        self.reset()

    def reset(self) -> None:
        self.state = jax.block_until_ready(self.make_state())

    def __call__(self, *arguments: Any) -> Any:
        self.state, loss = self.function(self.state, *arguments)
        return loss.block_until_ready() if self.waits else loss

    def finish(self) -> None:
        jax.block_until_ready(self.state)


class Driven:
    """Two jitted calls, between which the caller has the outputs: forward, then back with the
    update. What the way back needs is kept, or computed again."""

    def __init__(self, case: Case, material: Material, random: str, keeps: bool = True) -> None:
        self.keeps = keeps
        self.make_state = lambda: state_of(case, material, random)

        def outputs_of(state: State, x: Any) -> tuple[Any, Any, Any]:
            key = jax.random.fold_in(state.key, state.count) if case.dropout else state.key

            def network(parameters: Any) -> Any:
                return forward(case, parameters, state.statistics, key, x, training=True)

            y, back, moved = jax.vjp(network, state.parameters, has_aux=True)
            return y, back, moved

        def there(state: State, x: Any) -> Any:
            return outputs_of(state, x) if keeps else outputs_of(state, x)[0]

        def back(state: State, x: Any, kept: Any, dy: Any) -> State:
            (pull, moved) = kept if keeps else outputs_of(state, x)[1:]
            (gradients,) = pull(dy)
            state = state._replace(count=state.count + 1, statistics=moved)
            parameters, m, v = update(case, state, gradients)
            return state._replace(parameters=parameters, m=m, v=v)

        self.there, self.back = jax.jit(there), jax.jit(back)
        self.reset()

    def reset(self) -> None:
        self.state = jax.block_until_ready(self.make_state())

    def __call__(self, x: Any, dy: Any) -> Any:
        found = self.there(self.state, x)
        y, kept = (found[0], found[1:]) if self.keeps else (found, None)
        y.block_until_ready()
        self.state = self.back(self.state, x, kept, dy)
        return y

    def finish(self) -> None:
        jax.block_until_ready(self.state)


class Jax(System):
    packages = ("jax", "jaxlib")

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        self.device = device
        precision = "highest" if self.precision == "fp32" else "tensorfloat32"
        jax.config.update("jax_default_matmul_precision", precision)
        try:
            self.name = jax.devices(device)[0].device_kind
        except (RuntimeError, AssertionError) as error:  # whichever, by version
            raise ImportError(f"JAX finds no {device} device: {error}") from error

    def gpu(self) -> str:
        return self.name if self.device == "cuda" else ""

    def steppers(
        self, case: Case, material: Material, function: Callable[..., Any]
    ) -> dict[str, Stepper]:
        """One for each random generator that is worth trying, by name."""
        kinds = ("threefry2x32", "rbg") if case.dropout else ("threefry2x32",)
        return {
            kind: Stepper(
                function, lambda kind=kind: state_of(case, material, kind), self.device == "cpu"
            )
            for kind in kinds
        }

    def losses(self, case: Case, material: Material) -> list[float]:
        still = Case(**{**vars(case), "dropout": 0.0})
        (stepper,) = self.steppers(still, material, make_step(still)).values()
        batches = material.batches(case)[:CHECKED_STEPS]
        return [float(stepper(jnp.asarray(x), device_targets(y))) for x, y in batches]

    def outputs(self, case: Case, material: Material) -> np.ndarray:
        return np.asarray(self._network(case, material)(material.x[:CHECKED_ROWS]))

    def step(self, case: Case, material: Material) -> Trial:
        batches = [(jnp.asarray(x), device_targets(y)) for x, y in material.batches(case)]
        steppers = self.steppers(case, material, make_step(case))
        return self.fastest({k: trial(v, batches, v.reset, v.finish) for k, v in steppers.items()})

    def epoch(self, case: Case, material: Material) -> Trial:
        """The order of the rows comes from NumPy, which permutes faster than JAX does here."""
        rows, targets = material.epoch(case)
        x, y = jnp.asarray(rows), device_targets(targets)
        step = make_step(case)
        rng = np.random.default_rng(0)

        def gathered_by_batch(state: State, x: Any, y: Any, order: Any) -> Any:
            def one(state: State, batch: Any) -> Any:
                return step(state, x[batch], y[batch])

            return jax.lax.scan(one, state, order.reshape(EPOCH_BATCHES, -1))

        def gathered_ahead(state: State, x: Any, y: Any, order: Any) -> Any:
            def one(state: State, batch: Any) -> Any:
                return step(state, *batch)

            shuffled = [a[order].reshape(EPOCH_BATCHES, case.batch, *a.shape[1:]) for a in (x, y)]
            return jax.lax.scan(one, state, tuple(shuffled))

        def many(state: State, x: Any, y: Any, orders: Any) -> Any:
            return jax.lax.scan(lambda s, order: gathered_by_batch(s, x, y, order), state, orders)

        def repeater(stepper: Stepper, epochs: int) -> Callable[[int], None]:
            def repeat(count: int) -> None:
                for _ in range(count):
                    orders = [rng.permutation(len(x)) for _ in range(epochs)]
                    stepper(x, y, np.stack(orders) if epochs > 1 else orders[0])
                stepper.finish()

            return repeat

        ways = [
            ("a scan for each epoch", gathered_by_batch, 1),
            ("a scan for each epoch, rows gathered ahead", gathered_ahead, 1),
        ]
        scanned = min(MOST_SCANNED, int(SCANNED_FLOPS / (EPOCH_BATCHES * case.step_flops())))
        if scanned > 1:
            ways.append((f"a scan over {scanned} epochs' scans", many, scanned))
        candidates = {}
        for name, function, epochs in ways:
            for kind, stepper in self.steppers(case, material, function).items():
                label = f"{name}, {kind}" if case.dropout else name
                repeat = repeater(stepper, epochs)
                steps = epochs * EPOCH_BATCHES
                candidates[label] = Trial(repeat, 0, 0, steps, stepper.reset)
        return self.fastest(candidates)

    def driven_values(self, case: Case, material: Material) -> list[float]:
        still = Case(**{**vars(case), "dropout": 0.0})
        way = Driven(still, material, "threefry2x32")
        batches = driven_batches(case)[:CHECKED_STEPS]
        return [float((dy * np.asarray(way(jnp.asarray(x), dy))).sum()) for x, dy in batches]

    def driven(self, case: Case, material: Material) -> Trial:
        batches = [(jnp.asarray(x), jnp.asarray(dy)) for x, dy in driven_batches(case)]
        kinds = ("threefry2x32", "rbg") if case.dropout else ("threefry2x32",)
        ways = {
            f"{name}, {kind}" if case.dropout else name: Driven(case, material, kind, keeps)
            for kind in kinds
            for name, keeps in (("vjp kept between two calls", True), ("forward again", False))
        }
        return self.fastest({k: trial(v, batches, v.reset, v.finish) for k, v in ways.items()})

    def own_loss_values(self, case: Case, material: Material) -> list[float]:
        return self.losses(case, material)  # compiled in, it is what the built-in would be

    def own_loss(self, case: Case, material: Material) -> Trial:
        return self.step(case, material)

    def _gradient(self, case: Case, material: Material) -> Callable[..., Any]:
        state = state_of(case, material, "threefry2x32")

        def loss(parameters: Any, x: Any, y: Any) -> Any:
            outputs, _ = forward(case, parameters, state.statistics, state.key, x, training=True)
            return loss_of(case, outputs, y)

        both = jax.jit(jax.value_and_grad(loss))
        return lambda x, y: jax.block_until_ready(both(state.parameters, x, y))

    def gradient_values(self, case: Case, material: Material) -> list[float]:
        both, values = self._gradient(case, material), []
        for x, y in material.batches(case)[:2]:
            loss, gradients = both(jnp.asarray(x), device_targets(y))
            leaves = [np.asarray(leaf).ravel() for leaf in jax.tree.leaves(gradients)]
            values += [float(loss), float(np.linalg.norm(np.concatenate(leaves)))]
        return values

    def gradient(self, case: Case, material: Material) -> Trial:
        batches = [(jnp.asarray(x), device_targets(y)) for x, y in material.batches(case)]
        return trial(self._gradient(case, material), batches)

    def inference(self, case: Case, material: Material) -> Trial:
        network = self._network(case, material)
        rows = [(jnp.asarray(x),) for x in material.single_rows()]
        return trial(lambda x: network(x).block_until_ready(), rows)

    def predict(self, case: Case, material: Material) -> Trial:
        network = self._network(case, material)
        x = jnp.asarray(material.x)

        @jax.jit
        def in_blocks(x: Any) -> Any:
            blocks = x.reshape(-1, PREDICT_BLOCK, x.shape[1])
            return jax.lax.map(network, blocks).reshape(len(x), -1)

        return self.fastest(
            {
                "whole": trial(lambda x: network(x).block_until_ready(), [(x,)]),
                "in blocks": trial(lambda x: in_blocks(x).block_until_ready(), [(x,)]),
            }
        )

    def _network(self, case: Case, material: Material) -> Callable[[Any], Any]:
        state = state_of(case, material, "threefry2x32")

        def network(x: Any) -> Any:
            return forward(case, state.parameters, state.statistics, None, x, training=False)[0]

        return jax.jit(network)
