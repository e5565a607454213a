"""Networks of dense layers that CUDA kernels of many steps can train."""

import nnbackend as nn

#: Rows to train on, and of a batch: the last batch of an epoch has five rows.
ROWS, BATCH = 53, 12
CASES = {
    "labels": (
        lambda: [nn.Dense(6, 9, "relu"), nn.Dense(9, 4)],
        "softmax_cross_entropy", lambda: nn.AdamW(0.02), ["accuracy"],
    ),
    "curved": (
        lambda: [nn.Dense(6, 20, "gelu"), nn.Dense(20, 7, "silu"), nn.Dense(7, 2, "tanh")],
        "mean_squared_error", lambda: nn.SGD(0.05, momentum=0.9, nesterov=True), [],
    ),
    "many outputs": (
        lambda: [nn.Dense(6, 5, "leaky_relu", bias=False), nn.Dense(5, 40)],
        "softmax_cross_entropy", lambda: nn.RMSprop(0.01), ["accuracy"],
    ),
    "frozen": (
        lambda: [nn.Dense(6, 8, "relu", trainable=False), nn.Dense(8, 8, "sigmoid"),
                 nn.Dense(8, 8, "relu", trainable=False), nn.Dense(8, 3, "softplus")],
        "poisson", lambda: nn.AdaGrad(0.05), [],
    ),
    "one layer": (lambda: [nn.Dense(6, 1)], "sigmoid_cross_entropy", lambda: nn.SGD(0.1), []),
    "sum": (lambda: [nn.Dense(6, 3, "elu")], "sum_squared_error", lambda: nn.Adam(0.01), []),
}  # fmt: skip


def model_of(case: str, backend, dtype: str = "float64") -> nn.Sequential:
    layers, loss, optimizer, metrics = CASES[case]
    model = nn.Sequential(layers(), seed=2, dtype=dtype, backend=backend)
    model.compile(loss, optimizer(), metrics)
    return model


def rows_of(model: nn.Sequential, rng, rows: int = ROWS):
    x, outputs = rng.normal(size=(rows, 6)), model.layers[-1].n_outputs
    if model.loss.name == "softmax_cross_entropy":
        return x, rng.integers(0, outputs, rows)
    return x, rng.integers(0, 2, (rows, outputs)).astype(float)
