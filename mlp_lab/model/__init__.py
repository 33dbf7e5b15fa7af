"""The multilayer perceptron and its registries."""
