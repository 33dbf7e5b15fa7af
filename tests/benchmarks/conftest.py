"""A peer whose library is not installed is not searched for tests."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("jax") else ["sweep_jax.py"]
