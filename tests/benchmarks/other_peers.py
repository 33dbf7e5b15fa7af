"""Peers of the fit benchmark without PyTorch. Each returns its validation accuracy after the last epoch."""

from __future__ import annotations

from functools import partial
from typing import Any

from tests.benchmarks.harness import CLOCK, load_mnist
from tests.benchmarks.recipe import BATCH_SIZE, DROPOUT, EVAL_BATCH_SIZE, HIDDEN, INPUTS, LEARNING_RATE, OUTPUTS


def keras(epochs: int, rows: int | None) -> float:
    """Keras 3's `fit` on arrays, defaults but for one printed line per epoch in place of the live bar."""
    from keras import Input, Sequential, callbacks, layers, losses, optimizers, utils

    class Times(callbacks.Callback):  # type: ignore[misc]
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            CLOCK.begin()

        def on_test_begin(self, logs: Any = None) -> None:
            CLOCK.trained()

    utils.set_random_seed(0)
    x, y, x_val, y_val = load_mnist(rows)
    hidden = layers.Dense(HIDDEN, activation="relu")
    model = Sequential([Input((INPUTS,)), hidden, layers.Dropout(DROPOUT), layers.Dense(OUTPUTS)])
    model.compile(
        optimizer=optimizers.Adam(LEARNING_RATE),
        loss=losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    history = model.fit(
        x,
        y,
        batch_size=BATCH_SIZE,
        epochs=epochs,
        validation_data=(x_val, y_val),
        validation_batch_size=EVAL_BATCH_SIZE,
        verbose=2,
        callbacks=[Times()],
    )
    CLOCK.finish()
    return float(history.history["val_accuracy"][-1])


def scikit_learn(epochs: int, rows: int | None) -> float:
    """scikit-learn's MLPClassifier, an epoch per `partial_fit`; it knows no dropout, so it has less to do."""
    from sklearn.neural_network import MLPClassifier

    x, y, x_val, y_val = load_mnist(rows)
    model = MLPClassifier((HIDDEN,), alpha=0.0, batch_size=BATCH_SIZE, learning_rate_init=LEARNING_RATE, random_state=0)
    accuracy = 0.0
    for _ in range(epochs):
        CLOCK.begin()
        model.partial_fit(x, y, classes=range(OUTPUTS))
        CLOCK.trained()
        accuracy = float(model.score(x_val, y_val))
    CLOCK.finish()
    return accuracy


def jax_scan(epochs: int, rows: int | None) -> float:
    """A hand-written JAX loop: an epoch is one compiled `lax.scan` over batches of resident arrays.

    Adam is written out; batches are gathered inside the scan by a permutation drawn in the same program; dropout masks
    come from XLA's own bit generator, the fast one. The last batch, which is not full, is a step of its own.
    """
    import jax
    import jax.numpy as jnp

    x, y, x_val, y_val = (jnp.asarray(array) for array in load_mnist(rows))
    full = len(x) // BATCH_SIZE * BATCH_SIZE
    key = jax.random.key(0, impl="rbg")

    def logits_of(weights: Any, inputs: Any, key: Any = None) -> Any:
        hidden = jax.nn.relu(inputs @ weights["w1"] + weights["b1"])  # (B, H)
        if key is not None:
            kept = jax.random.bernoulli(key, 1 - DROPOUT, hidden.shape)
            hidden = jnp.where(kept, hidden / (1 - DROPOUT), 0.0)
        return hidden @ weights["w2"] + weights["b2"]  # (B, C)

    def loss_of(weights: Any, key: Any, inputs: Any, labels: Any) -> Any:
        scores = jax.nn.log_softmax(logits_of(weights, inputs, key))  # (B, C)
        return -jnp.take_along_axis(scores, labels[:, None], axis=1).mean()

    def step(state: Any, rows_of_batch: Any) -> Any:
        weights, first, second, count, key = state
        key, mask_key = jax.random.split(key)
        loss, gradient = jax.value_and_grad(loss_of)(weights, mask_key, x[rows_of_batch], y[rows_of_batch])
        count = count + 1
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, gradient)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, gradient)
        rate = LEARNING_RATE * jnp.sqrt(1 - 0.999**count) / (1 - 0.9**count)
        weights = jax.tree.map(lambda w, m, v: w - rate * m / (jnp.sqrt(v) + 1e-8), weights, first, second)
        return (weights, first, second, count, key), loss

    @partial(jax.jit, donate_argnums=0)
    def epoch_of(state: Any) -> Any:
        *others, key = state
        key, order_key = jax.random.split(key)
        order = jax.random.permutation(order_key, len(x))
        state, losses = jax.lax.scan(step, (*others, key), order[:full].reshape(-1, BATCH_SIZE))
        if full < len(x):
            state, _ = step(state, order[full:])
        return state, losses.mean()

    @jax.jit
    def accuracy_of(weights: Any) -> Any:
        return (logits_of(weights, x_val).argmax(1) == y_val).mean()

    key, key_1, key_2 = jax.random.split(key, 3)
    weights = {
        "w1": jax.random.normal(key_1, (INPUTS, HIDDEN)) * (2 / INPUTS) ** 0.5,
        "b1": jnp.zeros(HIDDEN),
        "w2": jax.random.normal(key_2, (HIDDEN, OUTPUTS)) * (1 / HIDDEN) ** 0.5,
        "b2": jnp.zeros(OUTPUTS),
    }
    zeros = jax.tree.map(jnp.zeros_like, weights)
    state = (weights, zeros, jax.tree.map(jnp.copy, zeros), jnp.zeros(()), key)
    accuracy = 0.0
    for epoch in range(epochs):
        CLOCK.begin()
        state, loss = epoch_of(state)
        mean_loss = float(loss)
        CLOCK.trained()
        accuracy = float(accuracy_of(state[0]))
        print(f"epoch {epoch}: loss {mean_loss:.4f}, val_accuracy {accuracy:.4f}")
    CLOCK.finish()
    return accuracy
