"""Data: what is read, how it is split and prepared, and how batches reach the model."""
