"""A PyTorch model as a federation sees it: the checks on `build_model()`, and its state_dict as Parameters and back.

Tensors have the names of the state_dict. Buffers, and parameters with requires_grad=False, are non-trainable: floating
ones are averaged plainly, and those of integers stay the federation's (docs/decisions/0003-non-trainable-tensors.md).
A tensor that the state_dict has under several names travels once, under the first of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from fedmq.participant.training.torch.backend import torch
from fedmq.schemas.errors import AppError, SpecMismatch, in_short, shown
from fedmq.schemas.parameters import Parameters
from fedmq.schemas.tensors import DTYPES, TensorSpec, check_spec

Module = Any
Tensor = Any
Array = npt.NDArray[Any]

_NAMES = {dtype: name for name in DTYPES if (dtype := getattr(torch, name, None)) is not None}
"""Names of the dtypes that may travel."""


def built_model(build_model: Callable[[], Module]) -> Module:
    """Return the model of `build_model()`. Raises AppError if it cannot be used."""
    model = build_model()
    if not isinstance(model, torch.nn.Module):
        got = "None" if model is None else type(model).__name__
        raise AppError(f"build_model() returned {got}, expected a torch.nn.Module: end it with `return model`")
    return model


def parameters_of(model: Module) -> Parameters:
    """Return a copy of the model's tensors. Raises AppError if some cannot travel."""
    return Travelling(model).values()


def frozen_names(model: Module) -> frozenset[str]:
    """Return the names of the tensors that no training of this model changes: parameters with requires_grad=False, in
    modules of PyTorch's own. A user's own modules may assign to theirs: the app names these by its `frozen`."""
    known = {
        id(parameter)
        for module in model.modules()
        if type(module).__module__.startswith("torch.nn.")
        for parameter in module.parameters(recurse=False)
        if not parameter.requires_grad
    }
    state = model.state_dict(keep_vars=True)
    return frozenset(spec.name for spec in Travelling(model).specs if id(state[spec.name]) in known)


def made_to_train(model: Module) -> dict[str, Tensor]:
    """Return the model's parameters, which an optimizer may step, by the names under which they travel: without its
    buffers."""
    known, state = {id(parameter) for parameter in model.parameters()}, model.state_dict(keep_vars=True)
    return {spec.name: state[spec.name] for spec in Travelling(model).specs if id(state[spec.name]) in known}


def set_parameters(model: Module, parameters: Mapping[str, Array]) -> None:
    """Put `parameters` into the model, bit for bit. Raises AppError with the differences if they do not fit."""
    Travelling(model).put(parameters)


def save(model: Module, parameters: Mapping[str, Array], path: Path) -> None:
    """Write the model's whole state_dict, with these values. torch.load(path, weights_only=True) reads it. Raises
    AppError if they do not fit."""
    torch.save(Travelling(model).whole(parameters), path)


class Travelling:
    """The tensors of a model that travel. Raises AppError if the model has one that cannot, or none."""

    def __init__(self, model: Module) -> None:
        self.model = model
        state = model.state_dict(keep_vars=True)
        trainable = {id(p) for p in model.parameters() if p.requires_grad}
        self.aliases: dict[str, str] = {}
        """Further names of tied tensors, with the names under which these travel."""
        firsts: dict[int, str] = {}
        specs = []
        for name, tensor in state.items():
            dtype = _checked(name, tensor)
            if id(tensor) in firsts:
                self.aliases[name] = firsts[id(tensor)]
                continue
            firsts[id(tensor)] = name
            specs.append(TensorSpec(name, dtype, tuple(tensor.shape), id(tensor) in trainable))
        if not specs:
            raise AppError("the model has no tensors: its state_dict() is empty")
        self.specs = tuple(specs)
        _refuse_overlaps({name: state[name] for name in firsts.values()})
        kept = set(state)
        self._rest = {n: b.detach().clone() for n, b in model.named_buffers() if n not in kept and b is not None}
        """Buffers outside of the state_dict: no task may leave something in them."""

    @property
    def trainable(self) -> dict[str, Tensor]:
        """The parameters that an optimizer steps, by name."""
        state = self.model.state_dict(keep_vars=True)
        return {spec.name: state[spec.name] for spec in self.specs if spec.trainable}

    def values(self) -> Parameters:
        """Return a copy of the tensors."""
        state = self.model.state_dict(keep_vars=True)
        return Parameters(
            {spec.name: array_of(state[spec.name]) for spec in self.specs},
            {spec.name for spec in self.specs if not spec.trainable},
        )

    def whole(self, parameters: Mapping[str, Array]) -> dict[str, Tensor]:
        """Return a state_dict with all names of the model's own, on the CPU. Raises AppError if they do not fit."""
        given = parameters if isinstance(parameters, Parameters) else Parameters(parameters)
        try:
            check_spec(given, self.specs)
        except SpecMismatch as error:
            raise AppError(f"this app's model is not the federation's: {error}") from None
        tensors = {name: tensor_of(array) for name, array in given.items()}
        return {name: tensors[self.aliases.get(name, name)] for name in self.model.state_dict(keep_vars=True)}

    def put(self, parameters: Mapping[str, Array]) -> None:
        """Put `parameters` into the model, and buffers that do not travel back to their start. Raises AppError."""
        state = self.whole(parameters)
        try:
            self.model.load_state_dict(state)
        except RuntimeError as error:
            raise AppError(
                f"load_state_dict of the model refuses the federation's tensors: {in_short(error)}"
            ) from None
        for name, value in self._rest.items():
            owner, _, leaf = name.rpartition(".")
            setattr(self.model.get_submodule(owner), leaf, value.clone())


def array_of(tensor: Tensor) -> Array:
    """Return a copy of a tensor as an array in C order."""
    here = tensor.detach().to("cpu").contiguous()
    if here.dtype == torch.bfloat16:
        return np.array(here.view(torch.int16).numpy()).view(ml_dtypes.bfloat16)
    return np.array(here.numpy())


def tensor_of(array: Array) -> Tensor:
    """Return a copy of an array as a tensor on the CPU."""
    copy = np.array(array, order="C")
    if copy.dtype.name == "bfloat16":
        return torch.from_numpy(copy.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(copy)


def _checked(name: str, tensor: Tensor) -> str:
    """Return the name of the tensor's dtype. Raises AppError for a tensor that cannot travel."""
    if not isinstance(tensor, torch.Tensor):
        raise AppError(
            f"the model's state_dict has {name}, which is {shown(tensor)} and no tensor (an extra state): it cannot "
            "travel. Keep it in a buffer, or out of the state_dict"
        )
    if isinstance(tensor, torch.nn.parameter.UninitializedTensorMixin):
        raise AppError(f"the tensor {name} has no shape yet: call the model once in build_model()")
    if tensor.is_meta:
        raise AppError(f"the tensor {name} is on the meta device, without values: give the model some in build_model()")
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.dtype not in _NAMES:
        kind = f"{tensor.layout} {tensor.dtype}".replace("torch.", "")
        raise AppError(
            f"the tensor {name} is {kind}, expected a plain one of {', '.join(_NAMES.values())}: convert it in "
            "build_model()"
        )
    return _NAMES[tensor.dtype]


def _refuse_overlaps(tensors: Mapping[str, Tensor]) -> None:
    """Raise AppError for two tensors of which one is a view of the other: both would be written."""
    places = []
    for name, tensor in tensors.items():
        if tensor.numel():
            begin = tensor.data_ptr()
            extent = 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
            places.append((tensor.untyped_storage().data_ptr(), begin, begin + extent * tensor.element_size(), name))
    places.sort()
    for (storage, _, end, one), (other_storage, begin, _, other) in pairwise(places):
        if storage == other_storage and begin < end:
            raise AppError(
                f"the tensors {one} and {other} share memory, and are not the same tensor: tie them by assigning one "
                "parameter to both places, or compute the one from the other in forward()"
            )
