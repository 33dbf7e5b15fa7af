"""The recipe that every peer of the fit benchmark trains: the network of `configs/mnist.yaml`."""

INPUTS, HIDDEN, OUTPUTS = 784, 128, 10
DROPOUT = 0.2
LEARNING_RATE = 1e-3
BATCH_SIZE = 128
EVAL_BATCH_SIZE = 4096
