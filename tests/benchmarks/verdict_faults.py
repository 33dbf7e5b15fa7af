"""Planted faults with the codes that name them, and borderline nets: the rules were tuned on these."""

from __future__ import annotations

from tests.benchmarks.verdict_case import adam, california, case, digits, model, sgd

FAULTS = (
    case(
        "vanishing: sigmoid, depth 8",
        digits(),
        model("sigmoid", 8, 64, sgd(0.1), init="pytorch"),
        "vanishing_gradient",
    ),
    case(
        "vanishing: small weights",
        digits(),
        model("relu", 8, 64, sgd(0.05), init="tiny"),
        "vanishing_gradient",
        "poor_init",
    ),
    case("vanishing: tanh, depth 20", digits(), model("tanh", 20, 64, sgd(0.05), init="pytorch"), "vanishing_gradient"),
    case(
        "exploding: weights x 3",
        digits(),
        model("relu", 8, 64, sgd(0.05), init="large"),
        "exploding_gradient",
        "poor_init",
    ),
    case("dead relu: bias -10", digits(), model("relu", 3, 64, sgd(0.05), bias=-10.0), "dead_units"),
    case("lr far too high", digits(), model("relu", 3, 64, sgd(50.0)), "update_too_large"),
    case("lr 30 times too high, sgd", digits(), model("relu", 3, 64, sgd(3.0)), "update_too_large"),
    case("lr 30 times too high, adam", digits(), model("relu", 3, 64, adam(0.1)), "update_too_large"),
    case("lr too low, adam", digits(), model("relu", 3, 64, adam(1e-7)), "update_too_small"),
    case("lr too low, sgd", digits(), model("relu", 3, 64, sgd(1e-6)), "update_too_small"),
    case(
        "saturated tanh: unscaled inputs",
        california(scaling="none"),
        model("tanh", 3, 64, sgd(0.05)),
        "saturated_units",
        "unscaled_inputs",
    ),
    case("one NaN, late", digits(), model("relu", 2, 64, adam(1e-3)), "nonfinite", plant="nan_late"),
    case("overfitting", digits(split=[0.1, 0.2, 0.7]), model("relu", 3, 512, adam(1e-3)), "overfitting", epochs=60),
    case("underfitting: width 2", digits(), model("relu", 2, 2, adam(3e-3)), "underfitting", "dead_units", epochs=30),
    case(
        "majority class",
        digits(),
        model("relu", 2, 64, sgd(0.003)),
        "majority_class",
        plant="rare_classes",
        epochs=15,
    ),
    case("frozen layer", digits(), model("relu", 2, 32, adam(1e-3)), "frozen_layer", plant="freeze_first"),
    case(
        "shuffled labels",
        digits(),
        model("relu", 2, 64, adam(1e-3)),
        "not_learning",
        plant="shuffle_labels",
        epochs=4,
    ),
    case("identical rows", digits(), model("relu", 2, 64, adam(1e-3), init="twins"), "poor_init"),
)

BORDERLINE = (
    case("gelu-8, default init, adam: learns", digits(), model("gelu", 8, 64, adam(1e-3), init="pytorch"), epochs=15),
    case("relu-10, default init, adam: learns", digits(), model("relu", 10, 64, adam(1e-3), init="pytorch"), epochs=15),
    case(
        "relu-10, default init, sgd: fails",
        digits(),
        model("relu", 10, 64, sgd(0.05), init="pytorch"),
        "vanishing_gradient",
        epochs=15,
    ),
    case("raw pixels, relu, adam: learns", digits(scaling="none"), model("relu", 2, 64, adam(1e-3))),
    case(
        "sigmoid-4, adam: a plateau, then learns",
        digits(),
        model("sigmoid", 4, 64, adam(3e-3), init="xavier"),
        epochs=20,
    ),
    case("relu-3, bias -2, adam: revives", digits(), model("relu", 3, 64, adam(1e-3), bias=-2.0), epochs=15),
    case("relu-3, adam 0.03: learns badly", digits(), model("relu", 3, 64, adam(0.03))),
    case("noisy target: sgd on 4 rows", digits(batch_size=4), model("relu", 2, 64, sgd(0.05)), epochs=4),
    case(
        "raw pixels, tanh: saturated, learns as well",
        digits(scaling="none"),
        model("tanh", 3, 64, sgd(0.05)),
        "saturated_units",
        "unscaled_inputs",
    ),
)
