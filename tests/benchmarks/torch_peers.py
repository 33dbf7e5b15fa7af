"""Peers of the fit benchmark that train with PyTorch but without Lightning.

Each returns its validation accuracy after the last epoch. Lightning is not even imported here: it sets
`PYTORCH_NVML_BASED_CUDA_CHECK`, after which every Adam step on a machine without a GPU searches for NVML.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.benchmarks.harness import CLOCK, Split, load_mnist
from tests.benchmarks.recipe import BATCH_SIZE, DROPOUT, EVAL_BATCH_SIZE, HIDDEN, INPUTS, LEARNING_RATE, OUTPUTS


def network() -> nn.Sequential:
    """Returns the recipe's network, 784-128-10 with dropout."""
    return nn.Sequential(nn.Linear(INPUTS, HIDDEN), nn.ReLU(), nn.Dropout(DROPOUT), nn.Linear(HIDDEN, OUTPUTS))


def tensors(split: Split) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the arrays as tensors over the same memory."""
    x, y, x_val, y_val = (torch.from_numpy(array) for array in split)
    return x, y, x_val, y_val


def hand_written(epochs: int, rows: int | None) -> float:
    """A loop that one would write for speed.

    Resident tensors; an epoch's order is one `randperm`; a batch is one `index_select` of pixels and one of labels;
    fused Adam; the training loss is summed on the device and read once per epoch; all validation rows go through the
    network at once; a line per epoch is printed. No checkpoints, no files.
    """
    torch.manual_seed(0)
    x, y, x_val, y_val = tensors(load_mnist(rows))
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    accuracy = 0.0
    for epoch in range(epochs):
        CLOCK.begin()
        model.train()
        total = torch.zeros(())
        for index in torch.split(torch.randperm(len(x)), BATCH_SIZE):
            loss = F.cross_entropy(model(x.index_select(0, index)), y.index_select(0, index))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(index)
        mean_loss = total.item() / len(x)
        CLOCK.trained()
        model.eval()
        with torch.inference_mode():
            logits = model(x_val)
            val_loss = F.cross_entropy(logits, y_val).item()
            accuracy = (logits.argmax(1) == y_val).float().mean().item()
        print(f"epoch {epoch}: loss {mean_loss:.4f}, val_loss {val_loss:.4f}, val_accuracy {accuracy:.4f}")
    CLOCK.finish()
    return accuracy


def skorch(epochs: int, rows: int | None) -> float:
    """skorch's NeuralNetClassifier with its default callbacks (timer, validation accuracy, a line per epoch)."""
    from skorch import NeuralNetClassifier
    from skorch.callbacks import Callback
    from skorch.dataset import Dataset
    from skorch.helper import predefined_split

    class Times(Callback):  # type: ignore[misc]
        def on_epoch_begin(self, net: Any, **kwargs: Any) -> None:
            CLOCK.begin()

        def on_batch_begin(self, net: Any, batch: Any = None, training: bool = True, **kwargs: Any) -> None:
            if not training:
                CLOCK.trained()

    torch.manual_seed(0)
    split = load_mnist(rows)
    net = NeuralNetClassifier(
        network,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        lr=LEARNING_RATE,
        batch_size=BATCH_SIZE,
        max_epochs=epochs,
        iterator_train__shuffle=True,
        iterator_valid__batch_size=EVAL_BATCH_SIZE,
        train_split=predefined_split(Dataset(split.x_val, split.y_val)),
        callbacks=[("times", Times())],
    )
    net.fit(split.x, split.y)
    CLOCK.finish()
    return float(net.history[-1, "valid_acc"])
