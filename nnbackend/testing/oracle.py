"""The contract's formulas in plain float64, written for clarity alone: what backends must match.

Nothing here is shared with a backend, so that a mistake there cannot hide here.
"""

from __future__ import annotations

import math

import numpy as np

from nnbackend._types import HostArray
from nnbackend.backends.types import Activation, LossFormula, UpdateRule

CLIP = 1e-7


def philox_word(element: int, stream: int, seed: int) -> int:
    """Word ``element % 4`` of Philox4x32-10 at counter (element // 4, stream), in integers."""
    mask = 0xFFFFFFFF
    counter = [element // 4, stream & mask, (stream >> 32) & mask, (stream >> 64) & mask]
    key = [seed & mask, (seed >> 32) & mask]
    for _ in range(10):
        first, second = counter[0] * 0xD2511F53, counter[2] * 0xCD9E8D57
        counter = [
            (second >> 32) ^ counter[1] ^ key[0],
            second & mask,
            (first >> 32) ^ counter[3] ^ key[1],
            first & mask,
        ]
        key = [(key[0] + 0x9E3779B9) & mask, (key[1] + 0xBB67AE85) & mask]
    return counter[element % 4]


def philox_64_word(element: int, key: int) -> int:
    """Word ``element % 4`` of Philox4x64-10 at counter element // 4, in integers."""
    mask = (1 << 64) - 1
    counter, keys = [element // 4, 0, 0, 0], [key & mask, key >> 64]
    for _ in range(10):
        first, second = counter[0] * 0xD2E7470EE14C6C93, counter[2] * 0xCA5A826395121157
        counter = [
            (second >> 64) ^ counter[1] ^ keys[0],
            second & mask,
            (first >> 64) ^ counter[3] ^ keys[1],
            first & mask,
        ]
        keys = [(keys[0] + 0x9E3779B97F4A7C15) & mask, (keys[1] + 0xBB67AE8584CAA73B) & mask]
    return counter[element % 4]


def random_order(rows: int, key: int, block: int) -> list[int]:
    """The rows, sorted by random words without their lowest bits."""
    low = (rows - 1).bit_length()
    left_out = low + (12 if low <= 20 else 0)
    words = [philox_64_word(4 * (block + 1) + row, key) >> left_out for row in range(rows)]
    return sorted(range(rows), key=words.__getitem__)


# -- layers -----------------------------------------------------------------------------------


def _value_and_slope(name: str, a: float, z: float) -> tuple[float, float]:
    """An activation and its derivative at one point."""
    if math.isnan(z):
        return math.nan, math.nan
    if name == "relu":
        return (z, 1.0) if z > 0 else (0.0, 0.0)
    if name == "leaky_relu":
        return (z, 1.0) if z > 0 else (a * z, a)
    if name == "elu":
        return (z, 1.0) if z > 0 else (a * math.expm1(z), a * math.exp(z))
    if name == "exponential":
        value = math.exp(z) if z < 709 else math.inf
        return value, value
    if name == "tanh":
        return math.tanh(z), 1 - math.tanh(z) ** 2
    s = 1 / (1 + math.exp(-z)) if z >= 0 else math.exp(z) / (1 + math.exp(z))
    if name == "sigmoid":
        return s, s * (1 - s)
    if name == "softplus":
        return max(z, 0.0) + math.log1p(math.exp(-abs(z))), s
    if math.isinf(z):  # gelu, gelu_tanh, silu and mish
        return (z, 1.0) if z > 0 else (0.0, 0.0)
    if name == "silu":
        return z * s, s + z * s * (1 - s)
    if name == "mish":
        t = math.tanh(math.log1p(math.exp(z)) if z < 700 else z)
        return z * t, t + z * (1 - t * t) * s
    if name == "gelu":
        cdf = 0.5 * math.erfc(-z / math.sqrt(2))
        return z * cdf, cdf + z * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    if name == "gelu_tanh":
        c = math.sqrt(2 / math.pi)
        t = math.tanh(c * (z + 0.044715 * z**3))
        slope = 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * c * (1 + 3 * 0.044715 * z * z)
        return 0.5 * z * (1 + t), slope
    raise ValueError(name)


def activation(act: Activation, z: HostArray, dy: HostArray) -> tuple[HostArray, HostArray]:
    """y = act(z) and dz = dy act'(z)."""
    z, dy = z.astype(np.float64), dy.astype(np.float64)
    if act.name == "linear" or not z.size:
        return z, dy
    if act.name == "softmax":
        y = np.exp(z - z.max(axis=1, keepdims=True))
        y /= y.sum(axis=1, keepdims=True)
        jacobian = [np.diag(row) - np.outer(row, row) for row in y]
        return y, np.stack([j @ d for j, d in zip(jacobian, dy, strict=True)])
    pairs = [_value_and_slope(act.name, act.parameter, float(v)) for v in z.reshape(-1)]
    y, slope = (np.array(part).reshape(z.shape) for part in zip(*pairs, strict=True))
    return y, dy * slope


def dense(x: HostArray, w: HostArray, b: HostArray | None) -> HostArray:
    """z = x w + b."""
    z: HostArray = x.astype(np.float64) @ w.astype(np.float64)
    return z if b is None else z + b


def dense_gradients(x: HostArray, w: HostArray, dz: HostArray) -> tuple[HostArray, ...]:
    """dw, db and dx."""
    return x.astype(np.float64).T @ dz, dz.sum(axis=0), dz @ w.astype(np.float64).T


def batch_norm(
    x: HostArray, gamma: HostArray, beta: HostArray, mean: HostArray, var: HostArray,
    momentum: float, eps: float, dy: HostArray,
) -> dict[str, HostArray]:  # fmt: skip
    """Outputs, moved statistics and gradients; dx through the explicit chain rule."""
    x, dy, gamma = x.astype(np.float64), dy.astype(np.float64), gamma.astype(np.float64)
    rows = len(x)
    batch_mean, batch_var = x.mean(axis=0), x.var(axis=0)
    std = np.sqrt(batch_var + eps)
    n = (x - batch_mean) / std
    dn = dy * gamma
    dvar = (dn * (x - batch_mean)).sum(axis=0) * -0.5 / std**3
    dmean = -(dn / std).sum(axis=0)
    return {
        "inference": gamma * (x - mean) / np.sqrt(var.astype(np.float64) + eps) + beta,
        "out": gamma * n + beta,
        "mean": (1 - momentum) * mean + momentum * batch_mean,
        "var": (1 - momentum) * var + momentum * x.var(axis=0, ddof=1),
        "dgamma": (dy * n).sum(axis=0),
        "dbeta": dy.sum(axis=0),
        "dx": dn / std + dvar * 2 * (x - batch_mean) / rows + dmean / rows,
    }


def layer_norm(
    x: HostArray, gamma: HostArray, beta: HostArray, eps: float, dy: HostArray
) -> dict[str, HostArray]:
    """Outputs and gradients; dx through the explicit chain rule."""
    x, dy, gamma = x.astype(np.float64), dy.astype(np.float64), gamma.astype(np.float64)
    width = x.shape[1]
    mean = x.mean(axis=1, keepdims=True)
    std = np.sqrt(x.var(axis=1, keepdims=True) + eps)
    n = (x - mean) / std
    dn = dy * gamma
    dvar = (dn * (x - mean)).sum(axis=1, keepdims=True) * -0.5 / std**3
    dmean = -(dn / std).sum(axis=1, keepdims=True)
    return {
        "out": gamma * n + beta,
        "dgamma": (dy * n).sum(axis=0),
        "dbeta": dy.sum(axis=0),
        "dx": dn / std + dvar * 2 * (x - mean) / width + dmean / width,
    }


def embedding(x: HostArray, weight: HostArray, dy: HostArray) -> dict[str, HostArray]:
    """Outputs and gradients, by a product with a column for each category."""
    x, weight, dy = (a.astype(np.float64) for a in (x, weight, dy))
    places = np.floor(x[:, :1] + 0.5)
    of_category = (places == np.arange(len(weight))).astype(np.float64)
    vectors = of_category @ weight
    vectors[of_category.sum(axis=1) == 0] = np.nan
    others = x.shape[1] - 1
    return {
        "out": np.hstack([x[:, 1:], vectors]),
        "dweight": of_category.T @ dy[:, others:],
        "dx": np.hstack([np.zeros((len(x), 1)), dy[:, :others]]),
    }


# -- losses -----------------------------------------------------------------------------------

_CLASSES = ("softmax_cross_entropy", "categorical_cross_entropy")
LOSSES = (
    *map(LossFormula, _CLASSES),
    LossFormula("sigmoid_cross_entropy"),
    LossFormula("binary_cross_entropy"),
    LossFormula("mean_squared_error"),
    LossFormula("sum_squared_error"),
    LossFormula("mean_absolute_error"),
    LossFormula("huber", 0.7),
    LossFormula("poisson"),
)


def loss_inputs(
    name: str, rows: int, outputs: int, labels: bool, rng: np.random.Generator
) -> tuple[HostArray, HostArray | None]:
    """Predictions and targets that suit a loss; None where it takes no labels."""
    pred = 2 * rng.normal(size=(rows, outputs))
    if name in ("categorical_cross_entropy", "binary_cross_entropy", "poisson"):
        pred = rng.uniform(0.05, 0.95, size=(rows, outputs))
    if labels:
        return pred, rng.integers(0, outputs, rows) if name in _CLASSES else None
    if name in _CLASSES:
        return pred, rng.dirichlet(np.ones(outputs), rows)
    if name in ("sigmoid_cross_entropy", "binary_cross_entropy"):
        return pred, rng.uniform(size=(rows, outputs))
    if name == "poisson":
        return pred, rng.poisson(2.0, size=(rows, outputs)).astype(np.float64)
    return pred, 2 * rng.normal(size=(rows, outputs))


def loss(
    formula: LossFormula, pred: HostArray, target: HostArray, weight: HostArray | None
) -> tuple[float, HostArray]:
    """The weighted loss and its gradient by ``pred``."""
    name = formula.name
    p = pred.astype(np.float64)
    rows, outputs = p.shape
    t = np.eye(outputs)[target] if target.ndim == 1 else target.astype(np.float64)
    w = np.ones(rows) if weight is None else weight.astype(np.float64)
    each, slope = _loss_terms(name, formula.parameter, p, t)
    averaged = name not in (*_CLASSES, "sum_squared_error")
    divisor = outputs if averaged else 1
    total = 1.0 if name == "sum_squared_error" else w.sum()
    if total == 0:
        return 0.0, np.zeros_like(p)
    value = (w * each.sum(axis=1)).sum() / divisor / total
    return float(value), w[:, None] * slope / divisor / total


def _loss_terms(name: str, delta: float, p: HostArray, t: HostArray) -> tuple[HostArray, HostArray]:
    """Per output: the term of the loss, and its derivative by the prediction."""
    e = p - t
    if name == "softmax_cross_entropy":
        q = np.exp(p) / np.exp(p).sum(axis=1, keepdims=True)
        return -t * np.log(q), q * t.sum(axis=1, keepdims=True) - t
    if name == "sigmoid_cross_entropy":
        q = 1 / (1 + np.exp(-p))
        return -t * np.log(q) - (1 - t) * np.log(1 - q), q - t
    if name == "categorical_cross_entropy":
        return -t * np.log(np.clip(p, CLIP, 1 - CLIP)), -t / p
    if name == "binary_cross_entropy":
        return -t * np.log(p) - (1 - t) * np.log(1 - p), (1 - t) / (1 - p) - t / p
    if name in ("mean_squared_error", "sum_squared_error"):
        return e**2, 2 * e
    if name == "mean_absolute_error":
        return np.abs(e), np.sign(e)
    if name == "huber":
        small = np.abs(e) <= delta
        value = np.where(small, e**2 / 2, delta * (np.abs(e) - delta / 2))
        return value, np.where(small, e, delta * np.sign(e))
    return p - t * np.log(p), 1 - t / p  # poisson


# -- metrics ----------------------------------------------------------------------------------


def _classes(
    pred: HostArray, truth: HostArray, threshold: float | None
) -> tuple[HostArray, HostArray]:
    if threshold is not None:
        return pred > threshold, truth > 0.5
    eye = np.eye(pred.shape[1], dtype=bool)
    return eye[pred.argmax(axis=1)], eye[truth]


def correct(
    pred: HostArray, truth: HostArray, weight: HostArray | None, threshold: float | None, top: int
) -> float:
    """The sum that ``count_correct`` gives, row by row."""
    total = 0.0
    for i in range(len(pred)):
        if threshold is not None:
            hit = float(((pred[i] > threshold) == (truth[i] > 0.5)).mean())
        else:
            # a stable sort of the negated values puts lower classes first among equals
            hit = float(truth[i] in np.argsort(-pred[i], kind="stable")[:top])
        total += hit * (1.0 if weight is None else float(weight[i]))
    return total


def confusion(
    pred: HostArray, truth: HostArray, weight: HostArray | None, threshold: float | None
) -> HostArray:
    """Hits, predictions and occurrences of each class."""
    predicted, actual = _classes(pred, truth, threshold)
    w = np.ones(len(pred)) if weight is None else weight.astype(np.float64)
    return np.stack([w @ (predicted & actual), w @ predicted, w @ actual])


def regression(pred: HostArray, truth: HostArray, weight: HostArray | None) -> HostArray:
    """Sums of |e|, e^2, t and t^2 of each output."""
    t = truth.astype(np.float64)
    e = pred - t
    w = np.ones(len(pred)) if weight is None else weight.astype(np.float64)
    return np.stack([w @ np.abs(e), w @ e**2, w @ t, w @ t**2])


# -- optimizers -------------------------------------------------------------------------------

#: Rules, each with its rate.
STEPS: tuple[tuple[UpdateRule, float], ...] = (
    (UpdateRule("sgd"), 0.1),
    (UpdateRule("momentum", momentum=0.9), 0.1),
    (UpdateRule("momentum", momentum=0.9, nesterov=True), 0.1),
    (UpdateRule("adagrad", eps=1e-7), 0.1),
    (UpdateRule("rmsprop", rho=0.9, eps=1e-7), 0.01),
    (UpdateRule("adam", beta1=0.9, beta2=0.99, eps=1e-7), 0.01),
    (UpdateRule("adam", beta1=0.9, beta2=0.99, eps=1e-7, weight_decay=0.1), 0.01),
    (UpdateRule("adam", beta1=0.9, beta2=0.99, eps_hat=0.01), 0.01),
)
_SLOTS = {"sgd": 0, "momentum": 1, "adagrad": 1, "rmsprop": 1, "adam": 2}


def slots(rule: UpdateRule, size: int) -> list[HostArray]:
    """Fresh optimizer state."""
    return [np.zeros(size) for _ in range(_SLOTS[rule.name])]


def step(
    rule: UpdateRule, lr: float, w: HostArray, g: HostArray, state: list[HostArray], t: int
) -> HostArray:
    """The parameters after one update; ``state`` is changed in place."""
    if rule.name == "sgd":
        return w - lr * g
    if rule.name == "momentum":
        state[0] = rule.momentum * state[0] - lr * g
        return w + (rule.momentum * state[0] - lr * g if rule.nesterov else state[0])
    if rule.name == "adagrad":
        state[0] = state[0] + g * g
        return w - lr * g / (np.sqrt(state[0]) + rule.eps)
    if rule.name == "rmsprop":
        state[0] = rule.rho * state[0] + (1 - rule.rho) * g * g
        return w - lr * g / (np.sqrt(state[0]) + rule.eps)
    state[0] = rule.beta1 * state[0] + (1 - rule.beta1) * g
    state[1] = rule.beta2 * state[1] + (1 - rule.beta2) * g * g
    m_hat = state[0] / (1 - rule.beta1 ** (t + 1))
    v_hat = state[1] / (1 - rule.beta2 ** (t + 1))
    w = w - lr * rule.weight_decay * w
    eps = rule.eps + rule.eps_hat / np.sqrt(1 - rule.beta2 ** (t + 1))
    stepped: HostArray = w - lr * m_hat / (np.sqrt(v_hat) + eps)
    return stepped
