"""Checks of the contract's layers that are neither dense nor an activation: see ``conformance``."""

from __future__ import annotations

import numpy as np

from nnbackend.testing import oracle
from nnbackend.testing.case import Case


def batch_norm(case: Case) -> None:
    backend, momentum, eps = case.backend, 0.3, 1e-3
    for rows, width in ((5, 3), (2, 1), (400, 65), (40, 264)):
        x, dy = 2 * case.normal(rows, width) + 3, case.normal(rows, width)
        gamma, beta = case.normal(width), case.normal(width)
        mean, var = case.normal(width), case.normal(width) ** 2
        want = oracle.batch_norm(x, gamma, beta, mean, var, momentum, eps, dy)
        x_, gamma_, beta_ = case.put(x), case.put(gamma), case.put(beta)
        mean_, var_ = case.state(mean), case.state(var)
        out, saved = case.poisoned(rows, width), case.poisoned(2, width)
        frozen = case.poisoned(rows, width)
        backend.batch_norm_inference(x_, gamma_, beta_, mean_, var_, eps, frozen)
        case.equal("batch_norm inference", frozen, want["inference"], 20)
        backend.batch_norm_forward(x_, gamma_, beta_, mean_, var_, momentum, eps, out, saved)
        dgamma, dbeta = case.poisoned(width), case.poisoned(width)
        dx = case.poisoned(rows, width)
        backend.batch_norm_backward(case.put(dy), x_, gamma_, saved, dgamma, dbeta, dx)
        got = {"out": out, "mean": mean_, "var": var_, "dgamma": dgamma, "dbeta": dbeta, "dx": dx}
        for name, array in got.items():
            case.equal(f"batch_norm {name}", array, want[name], 50)
        backend.batch_norm_backward(case.put(dy), x_, gamma_, saved, dgamma, dbeta, None)
        case.equal("batch_norm dgamma without dx", dgamma, want["dgamma"], 50)


def layer_norm(case: Case) -> None:
    backend, eps = case.backend, 1e-3
    for rows, width in ((5, 3), (1, 2), (400, 65), (40, 264)):
        x, dy = 2 * case.normal(rows, width) + 3, case.normal(rows, width)
        gamma, beta = case.normal(width), case.normal(width)
        want = oracle.layer_norm(x, gamma, beta, eps, dy)
        x_, gamma_, beta_ = case.put(x), case.put(gamma), case.put(beta)
        out, saved = case.poisoned(rows, width), case.poisoned(2, rows)
        backend.layer_norm_forward(x_, gamma_, beta_, eps, out, saved)
        dgamma, dbeta = case.poisoned(width), case.poisoned(width)
        dx = case.poisoned(rows, width)
        backend.layer_norm_backward(case.put(dy), x_, gamma_, saved, dgamma, dbeta, dx)
        got = {"out": out, "dgamma": dgamma, "dbeta": dbeta, "dx": dx}
        for name, array in got.items():
            case.equal(f"layer_norm {name}", array, want[name], 50)
        backend.layer_norm_forward(x_, gamma_, beta_, eps, out, None)
        case.equal("layer_norm inference", out, want["out"], 50)
        backend.layer_norm_backward(case.put(dy), x_, gamma_, saved, dgamma, dbeta, None)
        case.equal("layer_norm dgamma without dx", dgamma, want["dgamma"], 50)


def embedding(case: Case) -> None:
    backend = case.backend
    for rows, others, categories, width in (
        (5, 3, 4, 2),
        (1, 0, 1, 1),
        (400, 7, 90, 33),
        (50, 8, 9, 32),
    ):
        x = np.hstack(
            [case.rng.integers(0, categories, (rows, 1)) + case.rng.uniform(-0.4, 0.4, (rows, 1)),
             case.normal(rows, others)]
        ).astype(case.dtype)  # fmt: skip
        if rows > 4:
            x[:3, 0] = -1, categories, 1e9  # no categories
        weight, dy = case.normal(categories, width), case.normal(rows, others + width)
        want = oracle.embedding(x, weight, dy)
        x_, out = case.put(x), case.poisoned(rows, others + width)
        backend.embedding_forward(x_, case.put(weight), out)
        case.equal("embedding out", out, want["out"], 1)
        dweight, dx = case.poisoned(categories, width), case.poisoned(rows, others + 1)
        backend.embedding_backward(case.put(dy), x_, dweight, dx)
        case.equal("embedding dweight", dweight, want["dweight"], 50)
        case.equal("embedding dx", dx, want["dx"], 1)
        backend.embedding_backward(case.put(dy), x_, dweight, None)
        case.equal("embedding dweight without dx", dweight, want["dweight"], 50)
    case.inputs_unchanged()


def dropout(case: Case) -> None:
    backend, seed, stream = case.backend, 987_654_321, 5 | 2 << 64
    for rate in (0.0, 0.3, 0.999):
        x, dy = case.normal(61, 33), case.normal(61, 33)
        out, saved, dx = (case.poisoned(61, 33) for _ in range(3))
        backend.dropout_forward(case.put(x), rate, seed, stream, out, saved)
        words = [oracle.philox_word(e, stream, seed) for e in range(61 * 33)]
        kept = np.array(words).reshape(61, 33) >= int(rate * 2.0**32)
        case.equal("dropout mask", saved, kept / (1 - rate))
        case.equal("dropout", out, x * kept / (1 - rate))
        backend.dropout_backward(case.put(dy), saved, dx)
        case.equal("dropout backward", dx, dy * kept / (1 - rate))
        part, part_saved = case.poisoned(41, 33), case.poisoned(41, 33)
        backend.dropout_forward(case.put(x[20:]), rate, seed, stream, part, part_saved, 20 * 33)
        case.equal("dropout of a batch's last rows", part, (x * kept / (1 - rate))[20:])


def standardize(case: Case) -> None:
    x, mean, scale = case.normal(9, 4), case.normal(4), case.normal(4)
    out = case.poisoned(9, 4)
    case.backend.standardize_forward(case.put(x), case.put(mean), case.put(scale), out)
    case.equal("standardize", out, (x.astype(np.float64) - mean) * scale)
    case.backend.standardize_backward(case.put(x), case.put(scale), out)
    case.equal("standardize backward", out, x.astype(np.float64) * scale)
