"""Builds the optional C extension; everything else stands in pyproject.toml."""

from setuptools import Extension, setup

# Optional: a machine without a compiler or Python's headers installs all the same, and Python code does the work.
setup(ext_modules=[Extension("inferscope._hot", ["src/inferscope/_hot.c"], optional=True)])
