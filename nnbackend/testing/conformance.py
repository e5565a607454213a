"""Every operation of the contract against a float64 oracle: for built-in backends and plug-ins.

Each check draws fresh inputs, hands over outputs filled with NaN, compares with a formula
written down here independently of any backend, and makes sure that no input was changed.
"""

from __future__ import annotations

import numpy as np

from nnbackend._types import HostArray
from nnbackend.backends.contract import Backend
from nnbackend.backends.types import Activation, LossFormula
from nnbackend.kernels.codes import ACTIVATIONS
from nnbackend.testing import oracle
from nnbackend.testing.case import Case, Check, run_check
from nnbackend.testing.layer_checks import (
    batch_norm,
    dropout,
    embedding,
    layer_norm,
    standardize,
)
from nnbackend.testing.nan_checks import (
    nan_reaches_losses_and_updates,
    nan_reaches_what_depends_on_it,
)

# -- arrays -----------------------------------------------------------------------------------


def take_rows(case: Case) -> None:
    for dtype in (case.dtype, np.int32):
        values = (case.normal(7, 3) * 100).astype(dtype)
        idx = case.rng.integers(0, 7, 5)
        out = case.poisoned(5, 3, dtype=dtype)
        case.backend.take_rows(case.put(values, dtype), case.put(idx, np.int64), out)
        case.equal("take_rows", out, values[idx])


def all_finite(case: Case) -> None:
    values = case.normal(40_000)
    if not case.backend.all_finite(case.put(values)):
        raise AssertionError("all_finite: False for finite values")
    big = np.full(1000, np.finfo(case.dtype).max, case.dtype)
    if not case.backend.all_finite(case.put(big)):
        raise AssertionError("all_finite: False where only the sum overflows")
    for bad in (np.nan, np.inf, -np.inf):
        values[case.rng.integers(len(values))] = bad
        if case.backend.all_finite(case.put(values)):
            raise AssertionError(f"all_finite: True for an array with {bad}")


def random_bits(case: Case) -> None:
    seed, stream = 0x1234_5678_9ABC_DEF0, 77 | 3 << 64
    whole = case.poisoned(50_003, dtype=np.uint32)
    case.backend.random_bits(whole, seed, stream, 0)
    words = case.backend.to_numpy(whole)
    expected = [oracle.philox_word(e, stream, seed) for e in (0, 1, 2, 3, 4, 16_383, 50_002)]
    case.equal("random_bits", words[[0, 1, 2, 3, 4, 16_383, 50_002]], expected)
    part = case.poisoned(1001, dtype=np.uint32)
    case.backend.random_bits(part, seed, stream, 4000)
    case.equal("random_bits with an offset", part, words[4000:5001])


def random_orders(case: Case) -> None:
    key, block = 0x1234_5678_9ABC_DEF0_0FED_CBA9_8765_4321, 1 << 40
    for count, rows in ((2, 1), (3, 2), (2, 131), (1, 4096), (130, 129)):
        orders = case.poisoned(count, rows, dtype=np.int64)
        case.backend.random_orders(orders, key, block)
        found, blocks = case.backend.to_numpy(orders), -(-rows // 4)
        for k in {0, count - 1}:
            expected = oracle.random_order(rows, key, block + k * blocks)
            case.equal(f"random_orders of {rows}, number {k}", found[k], expected)


# -- layers -----------------------------------------------------------------------------------


def _activations() -> list[Activation]:
    usual = [Activation(name, kind.parameter) for name, kind in ACTIVATIONS.items()]
    return [*usual, Activation("leaky_relu", 0.2), Activation("elu", 0.5)]


def activations(case: Case) -> None:
    for act in _activations():
        for rows, width in ((5, 7), (1, 1), (301, 67)):
            z = 3 * case.normal(rows, width)
            dy = case.normal(rows, width)
            y, dz = oracle.activation(act, z, dy)
            x, out, dx = case.put(z), case.poisoned(rows, width), case.poisoned(rows, width)
            case.backend.activation_forward(act, x, out)
            case.equal(f"{act.name} forward", out, y)
            saved = x if act.saves == "input" else out
            case.backend.activation_backward(act, case.put(dy), saved, dx)
            case.equal(f"{act.name} backward", dx, dz)
            in_place = case.state(z)
            case.backend.activation_forward(act, in_place, in_place)
            case.equal(f"{act.name} in place", in_place, y)


def activation_extremes(case: Case) -> None:
    """Large, infinite and NaN inputs: limits where they exist, NaN only where NaN went in; the
    same for derivatives."""
    big, huge = (3e4, 1e100) if case.dtype == np.float64 else (300.0, 1e38)
    some = (np.inf, huge, big, 30.0, 0.0)
    z = np.array([[np.nan, *some, *(-v for v in some)]], case.dtype)
    for act in _activations():
        if act.name == "softmax":
            continue
        want, slope = oracle.activation(act, z, np.ones_like(z))
        out = case.poisoned(*z.shape)
        case.backend.activation_forward(act, case.put(z), out)
        got = case.backend.to_numpy(out)
        if not np.array_equal(np.isnan(got), np.isnan(z)):
            raise AssertionError(f"{act.name}({z}) = {got}: NaN in the wrong places")
        finite = np.isfinite(want) & (np.abs(want) < np.finfo(case.dtype).max)
        case.equal(f"{act.name} at extremes", got[finite], want[finite])
        saved = case.put(z) if act.saves == "input" else out
        dz = case.poisoned(*z.shape)
        case.backend.activation_backward(act, case.put(np.ones_like(z)), saved, dz)
        got = case.backend.to_numpy(dz)
        if np.isnan(got[~np.isnan(z)]).any():
            raise AssertionError(f"the derivative of {act.name} at {z} is {got}: NaN")
        finite = np.isfinite(slope) & (np.abs(slope) < np.finfo(case.dtype).max)
        case.equal(f"derivative of {act.name} at extremes", got[finite], slope[finite])
    row = np.array([[1e4, 0.0, -1e4], [-1e4, -1e4, -1e4]], case.dtype)
    out = case.poisoned(2, 3)
    case.backend.activation_forward(Activation("softmax"), case.put(row), out)
    case.equal("softmax at extremes", out, [[1, 0, 0], [1 / 3, 1 / 3, 1 / 3]])


def dense(case: Case) -> None:
    for act in _activations():
        for rows, inputs, outputs in ((4, 3, 5), (1, 1, 1), (130, 70, 10)):
            x, w = case.normal(rows, inputs), case.normal(inputs, outputs)
            b, dy = case.normal(outputs), case.normal(rows, outputs)
            for bias in (b, None):
                check_dense(case, act, x, w, bias, dy)


def check_dense(
    case: Case, act: Activation, x: HostArray, w: HostArray, b: HostArray | None, dy: HostArray
) -> None:
    """A dense layer, forward and back: x (B, I), w (I, O), b (O,) or None, dy (B, O)."""
    backend, shape = case.backend, dy.shape
    z = oracle.dense(x, w, b)
    y, dz = oracle.activation(act, z, dy)
    dw, db, dx = oracle.dense_gradients(x, w, dz)
    x_, w_, b_, dy_ = case.put(x), case.put(w), None if b is None else case.put(b), case.put(dy)
    out = case.poisoned(*shape)
    pre = case.poisoned(*shape) if act.saves == "input" else None
    backend.dense_forward(x_, w_, b_, act, out, pre)
    # sums of products: the error grows with the number of terms and their size
    slack = 4.0 * max(1.0, float(np.abs(z).max()))
    case.equal(f"dense + {act.name}", out, y, slack)
    inference = case.poisoned(*shape)
    backend.dense_forward(x_, w_, b_, act, inference, None)
    case.equal(f"dense + {act.name}, inference", inference, y, slack)
    saved = out if pre is None else pre
    results = case.poisoned(*w.shape), case.poisoned(shape[1]), case.poisoned(*x.shape)
    backend.dense_backward(dy_, x_, w_, act, saved, *results, case.poisoned(*shape))
    for name, got, want in zip(("dw", "db", "dx"), results, (dw, db, dx), strict=True):
        case.equal(f"dense + {act.name}, {name}", got, want, slack)
    # parts that are not wanted, and dy as scratch
    only_dx = case.poisoned(*x.shape)
    scratch = case.state(dy)
    backend.dense_backward(scratch, x_, w_, act, saved, None, None, only_dx, scratch)
    case.equal(f"dense + {act.name}, dx alone", only_dx, dx, slack)
    case.inputs_unchanged()


# -- losses and metrics -------------------------------------------------------------------------


def losses(case: Case) -> None:
    for formula in oracle.LOSSES:
        for rows, outputs in ((6, 4), (1, 2), (700, 33), (7, 264), (3, 131)):  # fours of a vector
            for weights in (None, "some", "zero"):
                for labels in (False, True):
                    _loss(case, formula, rows, outputs, weights, labels)


def _loss(
    case: Case,
    formula: LossFormula,
    rows: int,
    outputs: int,
    weights: str | None,
    labels: bool,
) -> None:
    name = formula.name
    pred, target = oracle.loss_inputs(name, rows, outputs, labels, case.rng)
    if target is None:
        return
    pred = pred.astype(case.dtype)
    target = target if labels else target.astype(case.dtype)
    weight = None
    if weights is not None:
        weight = case.rng.uniform(size=rows).astype(case.dtype) * (weights == "some")
        weight[0] = 0
    want, want_gradient = oracle.loss(formula, pred, target, weight)
    weight_ = None if weight is None else case.put(weight)
    arrays = case.put(pred), case.put(target, np.int32 if labels else None), weight_
    dpred, value = case.poisoned(rows, outputs), case.scalar()
    case.backend.loss(formula, *arrays, dpred, value)
    case.equal(name, value, want, 10)
    case.equal(f"{name} gradient", dpred, want_gradient, 10)
    alone = case.scalar()
    case.backend.loss(formula, *arrays, None, alone)
    case.equal(f"{name} without gradient", alone, want, 10)
    case.inputs_unchanged()


def loss_extremes(case: Case) -> None:
    """Logits of +-1e4 and probabilities of 0 and 1 give finite losses and gradients."""
    logits = np.array([[1e4, -1e4], [-1e4, 1e4]], case.dtype)
    certain = np.array([[1.0, 0.0], [0.0, 1.0]], case.dtype)
    target = np.array([[1.0, 0.0], [1.0, 0.0]], case.dtype)
    for name, pred in (
        ("softmax_cross_entropy", logits),
        ("sigmoid_cross_entropy", logits),
        ("categorical_cross_entropy", certain),
        ("binary_cross_entropy", certain),
        ("poisson", np.zeros((2, 2), case.dtype)),
    ):
        value, dpred = case.scalar(), case.poisoned(2, 2)
        formula = LossFormula(name)
        case.backend.loss(formula, case.put(pred), case.put(target), None, dpred, value)
        result = case.backend.to_numpy(value), case.backend.to_numpy(dpred)
        if not (np.isfinite(result[0]) and np.isfinite(result[1]).all()):
            raise AssertionError(f"{name} at its limits: loss {result[0]}, gradient {result[1]}")
        if name == "softmax_cross_entropy":
            case.equal(name, value, 1e4)
        if name == "sigmoid_cross_entropy":
            case.equal(name, value, 5e3)


def metrics(case: Case) -> None:
    backend = case.backend
    for rows, classes in ((50, 5), (1, 2), (900, 40)):
        # few distinct values: ties must go to the lower class
        pred = np.round(2 * case.normal(rows, classes)) / 2
        label = case.rng.integers(0, classes, rows)
        onehot = np.eye(classes)[label].astype(case.dtype)
        yes = (case.rng.uniform(size=(rows, classes)) < 0.5).astype(case.dtype)
        for weight in (None, case.rng.uniform(size=rows).astype(case.dtype)):
            weight_ = None if weight is None else case.put(weight)
            pred_ = case.put(pred)
            targets = ((case.put(label, np.int32), None), (case.put(onehot), None))
            for target, threshold in (*targets, (case.put(yes), 0.25)):
                truth = yes if threshold is not None else label
                out = case.scalar()
                backend.count_correct(pred_, target, weight_, threshold, 1, out)
                case.equal("count_correct", out, oracle.correct(pred, truth, weight, threshold, 1))
                counts = case.poisoned(3, classes, dtype=np.float64)
                backend.confusion_counts(pred_, target, weight_, threshold, counts)
                case.equal(
                    "confusion_counts", counts, oracle.confusion(pred, truth, weight, threshold)
                )
            if classes > 3:
                out = case.scalar()
                backend.count_correct(pred_, targets[0][0], weight_, None, 3, out)
                case.equal("top 3", out, oracle.correct(pred, label, weight, None, 3))
            real = case.normal(rows, classes)
            sums = case.poisoned(4, classes, dtype=np.float64)
            backend.regression_sums(pred_, case.put(real), weight_, sums)
            case.equal("regression_sums", sums, oracle.regression(pred, real, weight))
    case.inputs_unchanged()


# -- gradients and updates ----------------------------------------------------------------------


def penalty(case: Case) -> None:
    w = case.normal(30, 700)
    w[0, :5] = 0
    grad = case.normal(30, 700)
    for l1, l2 in ((0.1, 0.0), (0.0, 0.2), (0.1, 0.2)):
        loss, grad_ = case.scalar(), case.state(grad)
        loss[...] = 1.5
        case.backend.penalty(case.put(w), l1, l2, grad_, loss)
        w64 = w.astype(np.float64)
        want = 1.5 + l1 * np.abs(w64).sum() + l2 * (w64**2).sum()
        case.equal("penalty", loss, want)
        case.equal("penalty gradient", grad_, grad + l1 * np.sign(w64) + 2 * l2 * w64)
        case.backend.penalty(case.put(w), l1, l2, None, loss)
        case.equal("penalty without gradient", loss, 2 * want - 1.5)


def clip_by_global_norm(case: Case) -> None:
    grad = case.normal(40_001)
    norm = float(np.linalg.norm(grad.astype(np.float64)))
    for limit in (norm / 3, norm * 3):
        out = case.state(grad)
        case.backend.clip_by_global_norm(out, limit)
        case.equal("clip_by_global_norm", out, grad * min(1.0, limit / norm))
    zero = case.state(np.zeros(3))
    case.backend.clip_by_global_norm(zero, 1.0)
    case.equal("clip_by_global_norm of zero", zero, np.zeros(3))


def optimizer_steps(case: Case) -> None:
    for size in (1, 1003, 140_000):
        for rule, lr in oracle.STEPS:
            w, grads = case.normal(size), [case.normal(size) * s for s in (1e-8, 0, 1, 1e3)]
            want, slots64 = w.astype(np.float64), oracle.slots(rule, size)
            param = case.state(w)
            slots = [case.state(np.zeros(size)) for _ in slots64]
            scratch = case.poisoned(case.backend.step_scratch_size(size))
            for step, grad in enumerate(grads):
                want = oracle.step(rule, lr, want, grad.astype(np.float64), slots64, step)
                case.backend.update(rule, param, case.put(grad), slots, lr, step, scratch)
            case.equal(f"update by {rule}", param, want, 10)
            for slot, slot64 in zip(slots, slots64, strict=True):
                case.equal(f"state of {rule}", slot, slot64, 10)
    case.inputs_unchanged()


CHECKS: dict[str, Check] = {
    check.__name__: check
    for check in (
        take_rows,
        all_finite,
        random_bits,
        random_orders,
        activations,
        activation_extremes,
        dense,
        batch_norm,
        layer_norm,
        embedding,
        dropout,
        standardize,
        losses,
        loss_extremes,
        metrics,
        penalty,
        clip_by_global_norm,
        optimizer_steps,
        nan_reaches_what_depends_on_it,
        nan_reaches_losses_and_updates,
    )
}


def check_backend(backend: Backend, seed: int | None = None) -> None:
    """Run every check in float32 and float64, with fresh random inputs.

    Args:
        backend: of any origin.
        seed: to repeat a failure; drawn, and named in the error, where None.

    Raises:
        AssertionError: the operation, what was wrong and by how much.
    """
    drawn = int(np.random.default_rng(seed).integers(1 << 31)) if seed is None else seed
    for name, check in CHECKS.items():
        for dtype in backend.dtypes:
            run_check(backend, name, check, dtype, drawn)
