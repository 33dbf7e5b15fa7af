"""Healthy runs over depths, widths, activations, optimizers and data sets: the rules were tuned on these."""

from __future__ import annotations

from tests.benchmarks.verdict_case import adam, adult, california, case, digits, letter, mnist, model, sgd, telco

HEALTHY = (
    case("digits relu 1x16 adam", digits(), model("relu", 1, 16, adam(3e-3))),
    case("digits relu 2x512 adam", digits(), model("relu", 2, 512, adam(1e-3))),
    case("digits relu 3x64 sgd", digits(), model("relu", 3, 64, sgd(0.1))),
    case("digits relu 10x64 adam", digits(), model("relu", 10, 64, adam(1e-3)), epochs=12),
    case("digits tanh 5x64 sgd momentum", digits(), model("tanh", 5, 64, sgd(0.05, 0.9))),
    case("digits tanh 10x64 adam, xavier", digits(), model("tanh", 10, 64, adam(1e-3), init="xavier")),
    case("digits sigmoid 1x64 sgd", digits(), model("sigmoid", 1, 64, sgd(0.5), init="xavier")),
    case("digits sigmoid 2x64 adam", digits(), model("sigmoid", 2, 64, adam(3e-3), init="xavier")),
    case(
        "digits gelu 4x128 adamw",
        digits(),
        model("gelu", 4, 128, {"name": "adamw", "lr": 1e-3, "weight_decay": 1e-2}),
    ),
    case("digits silu 6x64 residual adam", digits(), model("silu", 6, 64, adam(1e-3), residual=True)),
    case("digits selu 8x64 lecun sgd", digits(), model("selu", 8, 64, sgd(0.02), init="lecun")),
    case("digits elu 3x64 rmsprop", digits(), model("elu", 3, 64, {"name": "rmsprop", "lr": 1e-3})),
    case("digits relu 4x64 batch norm adam 1e-2", digits(), model("relu", 4, 64, adam(1e-2), norm="batch")),
    case(
        "digits relu 2x64 minmax zero head",
        digits(scaling="minmax"),
        model("relu", 2, 64, adam(2e-3), init="zero_head"),
    ),
    case("digits relu 2x128 dropout 0.5", digits(), model("relu", 2, 128, adam(1e-3), dropout=0.5)),
    case("digits softplus 2x64 adam", digits(), model("softplus", 2, 64, adam(1e-3))),
    case("digits logistic regression", digits(), model("relu", 0, 1, sgd(0.1))),
    case("letter relu 3x128 adam", letter(), model("relu", 3, 128, adam(1e-3)), epochs=8),
    case("letter tanh 2x64 muon", letter(), model("tanh", 2, 64, {"name": "muon", "lr": 2e-2}), epochs=6),
    case("adult relu 2x64 adam", adult(), model("relu", 2, 64, adam(1e-3)), epochs=3, limit_train_batches=60),
    case("telco gelu 2x32 adam", telco(), model("gelu", 2, 32, adam(1e-3)), epochs=5),
    case("california silu 3x64 adam", california(), model("silu", 3, 64, adam(1e-3)), epochs=6),
    case("california relu 2x64 sgd", california(), model("relu", 2, 64, sgd(0.05)), epochs=6),
    case("mnist relu 2x128 adam", mnist(), model("relu", 2, 128, adam(1e-3)), epochs=2, limit_train_batches=150),
    case("mnist tanh 3x64 sgd", mnist(), model("tanh", 3, 64, sgd(0.1)), epochs=2, limit_train_batches=150),
)
