"""The JAX peer of the sweep benchmark: `vmap` over the members of one shape, `lax.scan` over the steps.

`vmap` needs equal shapes, and an activation cannot differ inside it: members with the same depth, width and activation
are one compiled program. A list of equal members is one program; of a list where nearly all differ, nearly every member
is a program of its own, and the programs run one after another. Compiling is told apart from the steps.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.benchmarks.harness import forget_peak, load_mnist
from tests.benchmarks.recipe import BATCH_SIZE
from tests.benchmarks.sweep_lists import Member
from tests.benchmarks.sweep_timing import Job, Timing

PHI = {
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "sigmoid": jax.nn.sigmoid,
}


def vmap_scan(job: Job) -> Timing:
    """Adam written out; a step gathers one batch for all members of a program; losses stay on the device."""
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # where the environment names a cache
    split = load_mnist()
    x, y = jnp.asarray(split.x), jnp.asarray(split.y)
    start_mb = forget_peak()
    groups: dict[tuple[int, int, str], list[Member]] = defaultdict(list)
    for member in job.members:
        groups[member[:3]].append(member)
    order = np.random.default_rng(0).permutation(len(x))[: BATCH_SIZE * job.steps].reshape(job.steps, BATCH_SIZE)
    seconds = setup = 0.0
    for group in groups.values():
        begun = time.perf_counter()
        state, train = _program(group)
        state, _ = jax.block_until_ready(train(state, order, x, y))  # compiles, and warms up
        started = time.perf_counter()
        jax.block_until_ready(train(state, order, x, y))
        seconds += time.perf_counter() - started
        setup += started - begun
    return Timing(seconds, setup, None, start_mb)


def _program(group: Sequence[Member]) -> tuple[Any, Any]:
    """Returns the first state of members of one shape, and the compiled function that takes its steps."""
    phi, rates = PHI[group[0].activation], jnp.asarray([member.lr for member in group])

    def loss_of(weights: Any, inputs: jax.Array, labels: jax.Array) -> jax.Array:
        for w, b in weights[:-1]:
            inputs = phi(inputs @ w + b)  # (B, H)
        w, b = weights[-1]
        scores = jax.nn.log_softmax(inputs @ w + b)  # (B, C)
        return -jnp.take_along_axis(scores, labels[:, None], axis=1).mean()

    def update(rate: jax.Array, weights: Any, first: Any, second: Any, count: jax.Array) -> Any:
        rate = rate * jnp.sqrt(1 - 0.999**count) / (1 - 0.9**count)
        return jax.tree.map(lambda w, m, v: w - rate * m / (jnp.sqrt(v) + 1e-8), weights, first, second)

    def step(x: jax.Array, y: jax.Array, state: Any, rows: jax.Array) -> Any:
        weights, first, second, count = state
        losses, gradient = jax.vmap(jax.value_and_grad(loss_of), (0, None, None))(weights, x[rows], y[rows])
        count = count + 1
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, gradient)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, gradient)
        weights = jax.vmap(update, (0, 0, 0, 0, None))(rates, weights, first, second, count)
        return (weights, first, second, count), losses

    @partial(jax.jit, donate_argnums=0)
    def train(state: Any, order: jax.Array, x: jax.Array, y: jax.Array) -> Any:
        return jax.lax.scan(partial(step, x, y), state, order)

    weights = _weights(group)
    zeros = jax.tree.map(jnp.zeros_like, weights)
    return (weights, zeros, jax.tree.map(jnp.copy, zeros), jnp.zeros(())), train


def _weights(group: Sequence[Member]) -> list[tuple[jax.Array, jax.Array]]:
    """Returns He's weights (n, I, H) and zero biases (n, H) of each layer."""
    source, weights = np.random.default_rng(0), []
    for inputs, outputs in pairwise(group[0].sizes):
        w = source.normal(0.0, (2 / inputs) ** 0.5, (len(group), inputs, outputs)).astype(np.float32)
        weights.append((jnp.asarray(w), jnp.zeros((len(group), outputs))))
    return weights
