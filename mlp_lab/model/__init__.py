"""The multilayer perceptron, its registries, and the tasks that it learns."""
