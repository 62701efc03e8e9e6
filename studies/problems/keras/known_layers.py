"""The layers, weights and inputs that the cohort path knows.

It takes a model only if it knows everything in it: a layer by its exact type and every key of its configuration. A
subclass, a replaced method, or a key that a later Keras adds is unknown. Known is what gives an example the same output
whatever the other examples of its batch are, because a short batch is padded. Layers that look at the whole batch stand
in a list of their own (WHOLE_BATCH). For each entry a test compares the cohort path with the plain one.

Random layers (Dropout) are not known: compiled by XLA they draw other numbers from the same seed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fedmq.participant.training.keras.backend import keras
from fedmq.studies.problems.keras.rules import NotVectorised

Check = Callable[[Any], bool]
Checks = Mapping[str, Check]

DTYPES = frozenset({"float32", "int8", "int16", "int32", "int64", "uint8", "bool"})
"""Types of examples, after floats were made float32."""
MODELS = (keras.Sequential, type(keras.Model(*[keras.Input((1,))] * 2)))
"""The exact types of models: Sequential, and the functional one, which has no public name."""


def any_value(_: Any) -> bool:
    """Know every value."""
    return True


def only(*values: Any) -> Check:
    """Know these values alone."""
    return lambda value: any(value is v or (type(value) is type(v) and value == v) for v in values)


def off(value: Any) -> bool:
    """Know an option that is not used."""
    return not value


def number(value: Any) -> bool:
    """Know any number."""
    return type(value) in (int, float)


def _ones(value: Any) -> bool:
    return all(v == 1 for v in value)


def _last_axis(value: Any) -> bool:
    return value == -1 or (isinstance(value, list | tuple) and list(value) == [-1])


def _weights(*names: str) -> dict[str, Check]:
    """Return checks of the keys that a layer has for each weight. Its variable is looked at instead of them."""
    return {f"{name}_{key}": any_value for name in names for key in ("initializer", "regularizer", "constraint")}


_CHANNELS_LAST: Checks = {"data_format": only("channels_last")}
_CONVOLUTION: Checks = {
    **_CHANNELS_LAST,
    **dict.fromkeys(("kernel_size", "strides", "padding", "activation", "use_bias"), any_value),
    "dilation_rate": _ones,
    "groups": only(1),
    "activity_regularizer": off,
}
_POOLING: Checks = {**_CHANNELS_LAST, **dict.fromkeys(("pool_size", "strides", "padding"), any_value)}
_GLOBAL_POOLING: Checks = {**_CHANNELS_LAST, "keepdims": any_value}
_layers = keras.layers
_LAYERS: dict[type, Checks] = {
    _layers.InputLayer: {
        "batch_shape": lambda shape: shape[0] is None and len(shape) > 1 and None not in shape[1:],
        "sparse": off,
        "ragged": off,
        "optional": off,
    },
    _layers.Dense: {
        "units": any_value,
        "activation": any_value,
        "use_bias": any_value,
        **_weights("kernel", "bias"),
        "quantization_config": only(None),
    },
    _layers.Conv1D: {"filters": any_value, **_CONVOLUTION, **_weights("kernel", "bias")},
    _layers.Conv2D: {"filters": any_value, **_CONVOLUTION, **_weights("kernel", "bias")},
    _layers.Embedding: {
        "input_dim": any_value,
        "output_dim": any_value,
        **_weights("embeddings"),
        "activity_regularizer": off,
        "mask_zero": off,
        "quantization_config": only(None),
    },
    _layers.LayerNormalization: {
        "axis": _last_axis,
        **dict.fromkeys(("epsilon", "center", "scale", "rms_scaling"), any_value),
        **_weights("beta", "gamma"),
    },
    _layers.Activation: {"activation": any_value},
    _layers.ReLU: dict.fromkeys(("max_value", "negative_slope", "threshold"), any_value),
    _layers.LeakyReLU: {"negative_slope": any_value},
    _layers.ELU: {"alpha": any_value},
    _layers.Softmax: {"axis": _last_axis},
    _layers.PReLU: {"shared_axes": any_value, **_weights("alpha")},
    _layers.MaxPooling1D: _POOLING,
    _layers.MaxPooling2D: _POOLING,
    _layers.AveragePooling1D: _POOLING,
    _layers.AveragePooling2D: _POOLING,
    _layers.GlobalMaxPooling1D: _GLOBAL_POOLING,
    _layers.GlobalMaxPooling2D: _GLOBAL_POOLING,
    _layers.GlobalAveragePooling1D: _GLOBAL_POOLING,
    _layers.GlobalAveragePooling2D: _GLOBAL_POOLING,
    _layers.Flatten: _CHANNELS_LAST,
    _layers.Reshape: {"target_shape": lambda shape: len(shape) > 0},
    _layers.Permute: {"dims": any_value},
    _layers.RepeatVector: {"n": any_value},
    _layers.ZeroPadding2D: {"padding": any_value, **_CHANNELS_LAST},
    _layers.UpSampling2D: {"size": any_value, "interpolation": only("nearest"), **_CHANNELS_LAST},
    _layers.Rescaling: {"scale": number, "offset": number},
    _layers.Identity: {},
    _layers.Add: {},
    _layers.Subtract: {},
    _layers.Multiply: {},
    _layers.Average: {},
    _layers.Maximum: {},
    _layers.Minimum: {},
    _layers.Concatenate: {"axis": lambda axis: axis == -1 or axis > 0},
}
WHOLE_BATCH: dict[type, Checks] = {
    _layers.BatchNormalization: {
        "axis": _last_axis,
        **dict.fromkeys(("momentum", "epsilon", "center", "scale"), any_value),
        **_weights("beta", "gamma"),
        "moving_mean_initializer": any_value,
        "moving_variance_initializer": any_value,
        "synchronized": off,
        "renorm": off,
        "renorm_clipping": any_value,
        "renorm_momentum": any_value,
    },
}
"""Layers that look at the whole batch: the cohort path trains tasks without a short batch."""
_ALL_LAYERS = _LAYERS | WHOLE_BATCH
_COMMON: Checks = {"name": any_value, "trainable": any_value, "dtype": any_value}
_ACTIVATIONS = [
    getattr(keras.activations, name)
    for name in (
        "linear", "relu", "relu6", "leaky_relu", "elu", "selu", "gelu", "silu", "mish", "sigmoid", "hard_sigmoid",
        "tanh", "softplus", "softsign", "exponential", "softmax", "log_softmax",
    )
]  # fmt: skip
_REGULARIZERS = (keras.regularizers.L1, keras.regularizers.L2, keras.regularizers.L1L2)
_constraints = keras.constraints
_CONSTRAINTS = (_constraints.MaxNorm, _constraints.NonNeg, _constraints.UnitNorm, _constraints.MinMaxNorm)
_WRAPPED_BY_KERAS = {"build", "quantize", "loss"}
"""Methods that an object of Keras's has in its own namespace."""


def check_layers(model: Any) -> str | None:
    """Return the name of a layer that looks at the whole batch, if there is one.

    Raises NotVectorised, with the construct and the reason, if something in the model is not known.
    """
    if type(model) not in MODELS:
        raise NotVectorised(f"the model is a {type(model).__name__}, known are Sequential and functional models")
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise NotVectorised("the model has several inputs or outputs")
    whole_batch = None
    for layer in _operations(model):
        what = f"layer {layer.name!r}"
        checks = _ALL_LAYERS.get(type(layer))
        if checks is None:
            raise NotVectorised(f"{what} is a {type(layer).__name__}, which the cohort path does not know")
        check_methods(layer, what)
        if layer.activity_regularizer is not None:
            raise NotVectorised(f"{what} has an activity regulariser, which looks at the whole batch")
        if getattr(layer, "activation", None) not in [None, *_ACTIVATIONS]:
            raise NotVectorised(f"{what} has an activation of its own")
        check_config(config_of(layer.get_config, what), {**_COMMON, **checks}, what)
        types = DTYPES if type(layer) is _layers.InputLayer else {"float32"}
        if layer.dtype_policy.name not in types:
            raise NotVectorised(f"{what} computes in {layer.dtype_policy.name}, known is float32")
        if type(layer) in WHOLE_BATCH:
            whole_batch = whole_batch or layer.name
    _check_weights(model)
    return whole_batch


def _check_weights(model: Any) -> None:
    """Raise NotVectorised if a weight has an unknown type, regulariser or constraint."""
    named = {id(variable) for variable in model.weights}
    if any(id(variable) not in named for variable in model.variables):
        raise NotVectorised("the model has a generator of random numbers")
    for v in model.weights:
        if v.dtype != "float32" or getattr(v, "overwrite_with_gradient", False):
            raise NotVectorised(f"the weight {v.path} is of {v.dtype}, known is float32")
        for part, known in ((v.regularizer, _REGULARIZERS), (v.constraint, _CONSTRAINTS)):
            if part is not None and type(part) not in known:
                raise NotVectorised(
                    f"the weight {v.path} has a {type(part).__name__}, which the cohort path does not know"
                )
            if part is not None:
                check_methods(part, f"the {type(part).__name__} of {v.path}")


def check_losses(model: Any) -> None:
    """Raise NotVectorised if a model that was called has losses besides those of its regularisers."""
    if len(model.losses) != sum(v.regularizer is not None for v in model.trainable_weights):
        raise NotVectorised("the model adds a loss of its own (add_loss), which may look at the whole batch")


def check_methods(thing: Any, what: str) -> None:
    """Raise NotVectorised if the object has replaced a method of its class."""
    cls = type(thing)
    replaced = [name for name in vars(thing) if name not in _WRAPPED_BY_KERAS and callable(getattr(cls, name, None))]
    if replaced:
        raise NotVectorised(f"{what} has a {replaced[0]} of its own")


def config_of(get_config: Callable[[], Any], what: str) -> Mapping[str, Any]:
    """Return a configuration. Raises NotVectorised if it cannot be had, because there is a user's object in it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Keras's advice on saving
            return dict(get_config())
    except Exception as error:  # noqa: BLE001 - whatever a user's object raises
        raise NotVectorised(f"the configuration of {what} cannot be read: {error!r:.100}") from None


def check_config(config: Mapping[str, Any], checks: Checks, what: str) -> None:
    """Raise NotVectorised for a key without a check, and for a value that its check does not know."""
    for key, value in config.items():
        if key not in checks or not checks[key](value):
            raise NotVectorised(f"{what} has {key} = {value!r:.60}, which the cohort path does not know")


def embeddings(model: Any) -> list[Any]:
    """Return the model's Embedding layers. Raises NotVectorised unless their input is the model's."""
    found = [layer for layer in _operations(model) if type(layer) is _layers.Embedding]
    if any(layer.input is not model.inputs[0] for layer in found):
        raise NotVectorised("an Embedding does not look at the model's input itself")
    return found


def _operations(model: Any) -> Iterator[Any]:
    """Yield the layers, and the operations that are no layers, of a model and of the models in it."""
    check_methods(model, "the model")
    for operation in model.layers if type(model) is keras.Sequential else model.operations:
        if type(operation) in MODELS:
            yield from _operations(operation)
        elif isinstance(operation, keras.layers.Layer):
            yield operation
        else:
            raise NotVectorised(f"the operation {operation.name!r} is no layer that the cohort path knows")
