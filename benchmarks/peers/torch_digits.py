"""The training of ``nnbackend train digits --epochs 30``, scripted in PyTorch.

    python torch_digits.py nnbackend/data/digits.npz

The same file, the same share held out, 64-128-10 with ReLU, batches of 32, Adam; loss and
accuracy of the training and the held-out rows after every epoch. Without a schedule.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from torch import nn

EPOCHS, BATCH, HELD_OUT, LR = 30, 32, 0.2, 0.005


def main(path: str) -> None:
    torch.manual_seed(1)
    # a second thread gains nothing at this size, and loses much where a core is busy
    torch.set_num_threads(1)
    with np.load(path) as file:
        x = torch.from_numpy(file["x"].astype(np.float32) / 16)
        y = torch.from_numpy(file["y"].astype(np.int64))
    order = torch.randperm(len(x))
    held_out, training = order.split([round(len(x) * HELD_OUT), len(x) - round(len(x) * HELD_OUT)])
    x_held_out, y_held_out, x, y = x[held_out], y[held_out], x[training], y[training]
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=LR, fused=True)
    loss_function = nn.CrossEntropyLoss()
    for epoch in range(EPOCHS):
        total = right = 0.0
        for rows in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            outputs = model(x[rows])
            loss = loss_function(outputs, y[rows])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
            right += (outputs.argmax(1) == y[rows]).sum().item()
        with torch.inference_mode():
            outputs = model(x_held_out)
            held_out_loss = loss_function(outputs, y_held_out).item()
            accuracy = (outputs.argmax(1) == y_held_out).float().mean().item()
        print(
            f"epoch {epoch + 1}/{EPOCHS}  loss {total / len(x):.4f}  accuracy "
            f"{right / len(x):.4f}  val_loss {held_out_loss:.4f}  val_accuracy {accuracy:.4f}"
        )


if __name__ == "__main__":
    main(sys.argv[1])
