"""Captures what one forward and backward pass of an MLP computes, by hooks that exist only for that pass."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mlp_lab.diagnostics.gradients import LayerCapture
from mlp_lab.errors import UserError
from mlp_lab.model.mlp import MLP, Block
from mlp_lab.model.sequential import SequentialMLP


class Capture:
    """Records the tensors of an MLP's last forward pass with gradients, and the gradients that come back to them.

    A context manager: forward hooks are there between entering and leaving. Hooks see nothing of a compiled network;
    enter `eager` too. A tensor's gradient is the sum over all paths that lead back to it, as autograd computes it.

    Args:
        mlp: the network; nothing of it is changed.
    """

    def __init__(self, mlp: MLP) -> None:
        self.mlp = mlp
        self.blocks = [cast(Block, block) for block in mlp.blocks]
        self._handles: list[RemovableHandle] = []
        self._tensors: dict[tuple[str, int], Tensor] = {}  # by role and layer, from 0
        self._watched: set[int] = set()  # ids of tensors, which `_tensors` keeps alive
        self._gradients: dict[int, Tensor] = {}  # by the same ids

    def __enter__(self) -> Capture:
        self.clear()
        for layer, linear in enumerate(self.mlp.linears):
            self._add(linear, partial(self._on_linear, layer))
        for layer, block in enumerate(self.blocks):
            if block.norm is not None:
                self._add(block.norm, partial(self._on_output, "z", layer))
            self._add(block.activation, partial(self._on_output, "a", layer))
        return self

    def __exit__(self, *_: object) -> None:
        """Removes the hooks; what was captured stays until `clear`."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def clear(self) -> None:
        """Forgets what was captured."""
        self._tensors, self._watched, self._gradients = {}, set(), {}

    @property
    def layers(self) -> list[LayerCapture]:
        """The hidden layers from the input on; empty before a forward pass with gradients."""
        if ("h", len(self.blocks)) not in self._tensors:
            return []
        return [self._layer(index) for index in range(len(self.blocks))]

    @property
    def logit_gradient(self) -> Tensor | None:
        """∂L/∂logits, (B, C)."""
        return self._gradient("h", len(self.blocks))

    @property
    def skips(self) -> list[bool]:
        """Whether each hidden block has a skip."""
        return [block.skip for block in self.blocks]

    def _add(self, module: nn.Module, hook: Callable[..., None]) -> None:
        self._handles.append(module.register_forward_hook(hook))

    def _on_linear(self, layer: int, _: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if not torch.is_grad_enabled():
            return
        if layer == 0:
            self.clear()
        else:
            self._keep("out", layer - 1, inputs[0])
        self._keep("h", layer, output)

    def _on_output(self, role: str, layer: int, _: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if torch.is_grad_enabled():
            self._keep(role, layer, output)

    def _keep(self, role: str, layer: int, tensor: Tensor) -> None:
        self._tensors[role, layer] = tensor
        if tensor.requires_grad and id(tensor) not in self._watched:  # a frozen layer's output needs no gradient
            self._watched.add(id(tensor))
            tensor.register_hook(partial(self._gradients.__setitem__, id(tensor)))  # type: ignore[no-untyped-call]

    def _layer(self, index: int) -> LayerCapture:
        h = self._tensors["h", index]
        z = self._tensors.get(("z", index), h)
        a, out = self._tensors["a", index], self._tensors["out", index]
        forward = (tensor.detach() for tensor in (h, z, a, out))
        return LayerCapture(*forward, *(self._gradients.get(id(tensor)) for tensor in (h, z, a, out)))

    def _gradient(self, role: str, layer: int) -> Tensor | None:
        return self._gradients.get(id(self._tensors.get((role, layer))))


def find_mlp(module: nn.Module) -> MLP:
    """Returns the MLP inside a module: a LightningModule, or what DDP or `torch.compile` have wrapped around it.

    Where there are several, it is the one called `model`, else the first. Where there is none, it is a view of the
    first `nn.Sequential` with a linear layer.

    Raises:
        UserError: There is neither, or the `nn.Sequential` holds what cannot be measured.
    """
    roots = [root for root in (getattr(module, "model", None), module) if isinstance(root, nn.Module)]
    for root in roots:
        for part in root.modules():
            if isinstance(part, MLP):
                return part
    for root in roots:
        for part in root.modules():
            if isinstance(part, nn.Sequential) and any(isinstance(layer, nn.Linear) for layer in part.modules()):
                return SequentialMLP(part)
    raise UserError(
        f"diagnostics: {type(module).__name__} holds no mlp_lab MLP, and no nn.Sequential with a Linear, that could be "
        "measured; use one of them, or leave out the callback"
    )


class _Stance:
    """Compiled functions run eagerly while any scope is open; scopes may end in any order, as those of members do."""

    def __init__(self) -> None:
        self._open = 0
        self._set = ExitStack()

    def enter(self) -> None:
        self._open += 1
        if self._open == 1 and "torch._dynamo" in sys.modules:  # else nothing is compiled; importing it takes seconds
            self._set.enter_context(torch.compiler.set_stance("force_eager"))

    def leave(self) -> None:
        self._open -= 1
        if self._open == 0:
            self._set.close()


_STANCE = _Stance()


@contextmanager
def eager() -> Iterator[None]:
    """Lets compiled functions run eagerly, so that hooks see them; they stay compiled."""
    _STANCE.enter()
    try:
        yield
    finally:
        _STANCE.leave()
