"""What the kernels that compute losses and updates know of a program."""

from __future__ import annotations

from nnbackend.backends.cuda.backend import CudaBackend
from nnbackend.backends.types import LossFormula, UpdateRule
from nnbackend.executor.rows import activation_of
from nnbackend.kernels.codes import Op
from nnbackend.metrics import Statistic
from nnbackend.program.table import Program

#: The one statistic that is counted where the loss is computed.
HITS = ("correct", None, 1)


def counts_hits(statistic: Statistic) -> bool:
    return (statistic.kind, statistic.threshold, statistic.top) == HITS


def formulas_of(program: Program) -> tuple[LossFormula, UpdateRule]:
    """The formulas of a program that compiled code knows."""
    optimizer = program.optimizer
    if program.formula is None or optimizer is None or optimizer.rule is None:
        raise TypeError("compiled steps have a built-in loss and optimizer")
    return program.formula, optimizer.rule


def update_numbers(rule: UpdateRule) -> tuple[float, ...]:
    """An update's numbers, as kernels of many steps take them."""
    momenta = (rule.momentum, rule.beta1, rule.beta2, rule.rho)
    return rule.nesterov, *momenta, rule.eps, rule.weight_decay, rule.eps_hat


def is_dense(program: Program, backend: CudaBackend) -> bool:
    """Whether a kernel of many steps knows everything that the program asks for: dense layers, a
    built-in loss and optimizer, and nothing else."""
    optimizer = program.optimizer
    return (
        optimizer is not None
        and not program.python_parts
        and optimizer.clip_norm is None
        and backend.precision == "fp32"
        and not program.penalties
        and all(counts_hits(s) for s in program.statistics)
        and all(
            row.op == Op.DENSE and activation_of(program, row).name != "softmax"
            for row in program.rows
        )
        and any(row.trainable for row in program.rows)
    )
