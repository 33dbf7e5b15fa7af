"""Training one MLP with PyTorch Lightning."""
