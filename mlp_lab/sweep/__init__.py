"""Search: trials asked from Optuna, trained alone or as a population, and kept in a storage that loses none."""
