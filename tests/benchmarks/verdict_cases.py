"""What the verdicts are judged on: planted faults with the codes that name them, healthy runs, and the borderline.

`FAULTS` and `HEALTHY` were used while the rules were tuned. `UNSEEN_FAULTS` and `UNSEEN_HEALTHY` were written before
that, kept aside, and run once at its end.
"""

from __future__ import annotations

from typing import Any, NamedTuple

Config = dict[str, Any]


class Case(NamedTuple):
    """A run to judge."""

    name: str
    config: Config
    accepted: tuple[str, ...] = ()  # codes that name the fault; none for a healthy run
    plant: str = ""  # a key of `PLANTS` where no flag makes the fault


def _digits(**settings: Any) -> Config:
    return {"dataset": "digits", "batch_size": 32, **settings}


def _letter(**settings: Any) -> Config:
    return {"dataset": "letter", "batch_size": 64, "split": [0.2, 0.1, 0.7], **settings}


def _adult(**settings: Any) -> Config:
    return {"dataset": "adult", "batch_size": 128, "split": [0.8, 0.1, 0.1], **settings}


def _california(**settings: Any) -> Config:
    return {"dataset": "california", "batch_size": 128, "split": [0.3, 0.1, 0.6], **settings}


def _telco(**settings: Any) -> Config:
    return {"dataset": "telco", "batch_size": 64, **settings}


def _mnist(**settings: Any) -> Config:
    return {"class_path": "MNISTDataModule", "batch_size": 64, "download": False, **settings}


def _sgd(lr: float, momentum: float = 0.0) -> Config:
    return {"name": "sgd", "lr": lr, "momentum": momentum}


def _adam(lr: float, **settings: Any) -> Config:
    return {"name": "adam", "lr": lr, **settings}


def _model(activation: str, depth: int, width: int | list[int], optimizer: Config, **settings: Any) -> Config:
    return {"activation": activation, "depth": depth, "width": width, "optimizer": optimizer, **settings}


def _case(
    name: str, data: Config, model: Config, *accepted: str, epochs: int = 8, plant: str = "", **trainer: Any
) -> Case:
    return Case(name, {"data": data, "model": model, "trainer": {"max_epochs": epochs, **trainer}}, accepted, plant)


FAULTS = (
    _case(
        "vanishing: sigmoid, depth 8",
        _digits(),
        _model("sigmoid", 8, 64, _sgd(0.1), init="pytorch"),
        "vanishing_gradient",
    ),
    _case(
        "vanishing: small weights",
        _digits(),
        _model("relu", 8, 64, _sgd(0.05), init="tiny"),
        "vanishing_gradient",
        "poor_init",
    ),
    _case(
        "vanishing: tanh, depth 20", _digits(), _model("tanh", 20, 64, _sgd(0.05), init="pytorch"), "vanishing_gradient"
    ),
    _case(
        "exploding: weights x 3",
        _digits(),
        _model("relu", 8, 64, _sgd(0.05), init="large"),
        "exploding_gradient",
        "poor_init",
    ),
    _case("dead relu: bias -10", _digits(), _model("relu", 3, 64, _sgd(0.05), bias=-10.0), "dead_units"),
    _case("lr far too high", _digits(), _model("relu", 3, 64, _sgd(50.0)), "update_too_large"),
    _case("lr 30 times too high, sgd", _digits(), _model("relu", 3, 64, _sgd(3.0)), "update_too_large"),
    _case("lr 30 times too high, adam", _digits(), _model("relu", 3, 64, _adam(0.1)), "update_too_large"),
    _case("lr too low, adam", _digits(), _model("relu", 3, 64, _adam(1e-7)), "update_too_small"),
    _case("lr too low, sgd", _digits(), _model("relu", 3, 64, _sgd(1e-6)), "update_too_small"),
    _case(
        "saturated tanh: unscaled inputs",
        _california(scaling="none"),
        _model("tanh", 3, 64, _sgd(0.05)),
        "saturated_units",
        "unscaled_inputs",
    ),
    _case("one NaN, late", _digits(), _model("relu", 2, 64, _adam(1e-3)), "nonfinite", plant="nan_late"),
    _case("overfitting", _digits(split=[0.1, 0.2, 0.7]), _model("relu", 3, 512, _adam(1e-3)), "overfitting", epochs=60),
    _case(
        "underfitting: width 2", _digits(), _model("relu", 2, 2, _adam(3e-3)), "underfitting", "dead_units", epochs=30
    ),
    _case(
        "majority class",
        _digits(),
        _model("relu", 2, 64, _sgd(0.003)),
        "majority_class",
        plant="rare_classes",
        epochs=15,
    ),
    _case("frozen layer", _digits(), _model("relu", 2, 32, _adam(1e-3)), "frozen_layer", plant="freeze_first"),
    _case(
        "shuffled labels",
        _digits(),
        _model("relu", 2, 64, _adam(1e-3)),
        "not_learning",
        plant="shuffle_labels",
        epochs=4,
    ),
    _case("identical rows", _digits(), _model("relu", 2, 64, _adam(1e-3), init="twins"), "poor_init"),
)

HEALTHY = (
    _case("digits relu 1x16 adam", _digits(), _model("relu", 1, 16, _adam(3e-3))),
    _case("digits relu 2x512 adam", _digits(), _model("relu", 2, 512, _adam(1e-3))),
    _case("digits relu 3x64 sgd", _digits(), _model("relu", 3, 64, _sgd(0.1))),
    _case("digits relu 10x64 adam", _digits(), _model("relu", 10, 64, _adam(1e-3)), epochs=12),
    _case("digits tanh 5x64 sgd momentum", _digits(), _model("tanh", 5, 64, _sgd(0.05, 0.9))),
    _case("digits tanh 10x64 adam, xavier", _digits(), _model("tanh", 10, 64, _adam(1e-3), init="xavier")),
    _case("digits sigmoid 1x64 sgd", _digits(), _model("sigmoid", 1, 64, _sgd(0.5), init="xavier")),
    _case("digits sigmoid 2x64 adam", _digits(), _model("sigmoid", 2, 64, _adam(3e-3), init="xavier")),
    _case(
        "digits gelu 4x128 adamw",
        _digits(),
        _model("gelu", 4, 128, {"name": "adamw", "lr": 1e-3, "weight_decay": 1e-2}),
    ),
    _case("digits silu 6x64 residual adam", _digits(), _model("silu", 6, 64, _adam(1e-3), residual=True)),
    _case("digits selu 8x64 lecun sgd", _digits(), _model("selu", 8, 64, _sgd(0.02), init="lecun")),
    _case("digits elu 3x64 rmsprop", _digits(), _model("elu", 3, 64, {"name": "rmsprop", "lr": 1e-3})),
    _case("digits relu 4x64 batch norm adam 1e-2", _digits(), _model("relu", 4, 64, _adam(1e-2), norm="batch")),
    _case(
        "digits relu 2x64 minmax zero head",
        _digits(scaling="minmax"),
        _model("relu", 2, 64, _adam(2e-3), init="zero_head"),
    ),
    _case("digits relu 2x128 dropout 0.5", _digits(), _model("relu", 2, 128, _adam(1e-3), dropout=0.5)),
    _case("digits softplus 2x64 adam", _digits(), _model("softplus", 2, 64, _adam(1e-3))),
    _case("digits logistic regression", _digits(), _model("relu", 0, 1, _sgd(0.1))),
    _case("letter relu 3x128 adam", _letter(), _model("relu", 3, 128, _adam(1e-3)), epochs=8),
    _case("letter tanh 2x64 muon", _letter(), _model("tanh", 2, 64, {"name": "muon", "lr": 2e-2}), epochs=6),
    _case("adult relu 2x64 adam", _adult(), _model("relu", 2, 64, _adam(1e-3)), epochs=3, limit_train_batches=60),
    _case("telco gelu 2x32 adam", _telco(), _model("gelu", 2, 32, _adam(1e-3)), epochs=5),
    _case("california silu 3x64 adam", _california(), _model("silu", 3, 64, _adam(1e-3)), epochs=6),
    _case("california relu 2x64 sgd", _california(), _model("relu", 2, 64, _sgd(0.05)), epochs=6),
    _case("mnist relu 2x128 adam", _mnist(), _model("relu", 2, 128, _adam(1e-3)), epochs=2, limit_train_batches=150),
    _case("mnist tanh 3x64 sgd", _mnist(), _model("tanh", 3, 64, _sgd(0.1)), epochs=2, limit_train_batches=150),
)

BORDERLINE = (
    _case(
        "gelu-8, default init, adam: learns", _digits(), _model("gelu", 8, 64, _adam(1e-3), init="pytorch"), epochs=15
    ),
    _case(
        "relu-10, default init, adam: learns", _digits(), _model("relu", 10, 64, _adam(1e-3), init="pytorch"), epochs=15
    ),
    _case(
        "relu-10, default init, sgd: fails",
        _digits(),
        _model("relu", 10, 64, _sgd(0.05), init="pytorch"),
        "vanishing_gradient",
        epochs=15,
    ),
    _case("raw pixels, relu, adam: learns", _digits(scaling="none"), _model("relu", 2, 64, _adam(1e-3))),
    _case(
        "sigmoid-4, adam: a plateau, then learns",
        _digits(),
        _model("sigmoid", 4, 64, _adam(3e-3), init="xavier"),
        epochs=20,
    ),
    _case("relu-3, bias -2, adam: revives", _digits(), _model("relu", 3, 64, _adam(1e-3), bias=-2.0), epochs=15),
    _case("relu-3, adam 0.03: learns badly", _digits(), _model("relu", 3, 64, _adam(0.03))),
    _case("noisy target: sgd on 4 rows", _digits(batch_size=4), _model("relu", 2, 64, _sgd(0.05)), epochs=4),
    _case(
        "raw pixels, tanh: saturated, learns as well",
        _digits(scaling="none"),
        _model("tanh", 3, 64, _sgd(0.05)),
        "saturated_units",
        "unscaled_inputs",
    ),
)

UNSEEN_FAULTS = (
    _case(
        "letter: vanishing, sigmoid 6",
        _letter(),
        _model("sigmoid", 6, 100, _sgd(0.2, 0.5), init="pytorch"),
        "vanishing_gradient",
    ),
    _case(
        "california: vanishing, tanh 16",
        _california(),
        _model("tanh", 16, 48, _sgd(0.02), init="pytorch"),
        "vanishing_gradient",
    ),
    _case(
        "letter: small weights, gelu 7",
        _letter(),
        _model("gelu", 7, 96, _sgd(0.05), init="small"),
        "vanishing_gradient",
        "poor_init",
    ),
    _case(
        "california: exploding, silu 6",
        _california(),
        _model("silu", 6, 64, _sgd(0.01), init="huge"),
        "exploding_gradient",
        "poor_init",
    ),
    _case(
        "mnist: dead relu, bias -20",
        _mnist(),
        _model("relu", 2, 100, _sgd(0.1), bias=-20.0),
        "dead_units",
        epochs=2,
        limit_train_batches=150,
    ),
    _case(
        "mnist: lr far too high",
        _mnist(),
        _model("relu", 2, 128, _sgd(20.0)),
        "update_too_large",
        epochs=2,
        limit_train_batches=150,
    ),
    _case("letter: adam 0.3", _letter(), _model("gelu", 3, 96, _adam(0.3)), "update_too_large", epochs=5),
    _case("california: lr too low", _california(), _model("relu", 3, 64, _adam(3e-7)), "update_too_small", epochs=5),
    _case(
        "mnist: lr too low",
        _mnist(),
        _model("tanh", 2, 64, _sgd(3e-6)),
        "update_too_small",
        epochs=2,
        limit_train_batches=150,
    ),
    _case(
        "letter: unscaled, sigmoid",
        _letter(scaling="none"),
        _model("sigmoid", 2, 64, _sgd(0.1), init="xavier"),
        "saturated_units",
        "unscaled_inputs",
    ),
    _case("california: unscaled", _california(scaling="none"), _model("relu", 2, 64, _sgd(0.01)), "unscaled_inputs"),
    _case(
        "letter: one NaN, late", _letter(), _model("tanh", 2, 64, _adam(1e-3)), "nonfinite", plant="nan_late", epochs=3
    ),
    _case(
        "telco: overfitting",
        _telco(split=[0.05, 0.45, 0.5]),
        _model("gelu", 3, 256, _adam(1e-3)),
        "overfitting",
        epochs=50,
    ),
    _case("letter: underfitting, width 3", _letter(), _model("tanh", 1, 3, _adam(3e-3)), "underfitting", epochs=20),
    _case(
        "letter: majority class",
        _letter(),
        _model("relu", 2, 64, _sgd(0.003)),
        "majority_class",
        plant="rare_classes",
        epochs=12,
    ),
    _case(
        "california: frozen layers",
        _california(),
        _model("relu", 3, 64, _adam(1e-3)),
        "frozen_layer",
        plant="freeze_all_hidden",
        epochs=5,
    ),
    _case(
        "letter: shuffled labels",
        _letter(),
        _model("silu", 2, 64, _adam(1e-3)),
        "not_learning",
        plant="shuffle_labels",
        epochs=4,
    ),
    _case(
        "letter: constant weights",
        _letter(),
        _model("tanh", 2, 64, _adam(1e-3), init="constant"),
        "poor_init",
        epochs=5,
    ),
)

UNSEEN_HEALTHY = (
    _case(
        "mnist sigmoid 2x64 adam",
        _mnist(),
        _model("sigmoid", 2, 64, _adam(3e-3), init="xavier"),
        epochs=2,
        limit_train_batches=200,
    ),
    _case(
        "mnist relu 5x100 sgd momentum",
        _mnist(),
        _model("relu", 5, 100, _sgd(0.02, 0.9)),
        epochs=2,
        limit_train_batches=200,
    ),
    _case("letter selu 6x96 adam", _letter(), _model("selu", 6, 96, _adam(1e-3), init="lecun"), epochs=6),
    _case(
        "letter relu 4x256 layer norm adamw",
        _letter(),
        _model("relu", 4, 256, {"name": "adamw", "lr": 2e-3, "weight_decay": 0.05}, norm="layer"),
        epochs=5,
    ),
    _case(
        "letter mish 8x64 orthogonal adam", _letter(), _model("mish", 8, 64, _adam(1e-3), init="orthogonal"), epochs=8
    ),
    _case("letter tanh 10x64 critical sgd", _letter(), _model("tanh", 10, 64, _sgd(0.05), init="critical"), epochs=8),
    _case("letter relu 2x32 rmsprop", _letter(), _model("relu", 2, 32, {"name": "rmsprop", "lr": 1e-3}), epochs=8),
    _case("california tanh 4x64 adam", _california(), _model("tanh", 4, 64, _adam(2e-3)), epochs=6),
    _case("california gelu 2x256 sgd momentum", _california(), _model("gelu", 2, 256, _sgd(0.01, 0.9)), epochs=6),
    _case("california leaky relu 5x32 adam, plr", _california(), _model("leaky_relu", 5, 32, _adam(1e-3)), epochs=6),
    _case(
        "adult silu 3x128 adamw dropout",
        _adult(),
        _model("silu", 3, 128, {"name": "adamw", "lr": 1e-3, "weight_decay": 1e-2}, dropout=0.3),
        epochs=3,
        limit_train_batches=80,
    ),
    _case("adult linear sgd", _adult(), _model("relu", 0, 1, _sgd(0.1)), epochs=3, limit_train_batches=80),
    _case(
        "telco relu 2x64 adamw balanced",
        _telco(),
        _model("relu", 2, 64, _adam(1e-3), class_weights="balanced"),
        epochs=5,
    ),
    _case("digits prelu 3x64 sgd", _digits(), _model("prelu", 3, 64, _sgd(0.05))),
    _case("digits sine 2x64 adam", _digits(), _model("sine", 2, 64, _adam(1e-3))),
    _case("digits hardtanh 3x64 adam", _digits(), _model("hardtanh", 3, 64, _adam(1e-3), init="xavier")),
    _case("digits relu 2x1024 adam", _digits(), _model("relu", 2, 1024, _adam(1e-3)), epochs=5),
    _case("digits relu 8x64 residual sgd", _digits(), _model("relu", 8, 64, _sgd(0.01), residual=True)),
    _case("digits gelu 3x64 lsuv adam", _digits(), _model("gelu", 3, 64, _adam(1e-3), init="lsuv")),
    _case("digits relu 2x64 full batch adam", _digits(batch_size=1437), _model("relu", 2, 64, _adam(1e-2)), epochs=80),
)
