"""Builds the optional C extensions; everything else stands in pyproject.toml."""

from setuptools import Extension, setup

# Optional: a machine without a compiler or Python's headers installs all the same. Python code then does the work of
# the first; without the second, nothing is counted at the driver.
setup(
    ext_modules=[
        Extension("inferscope._hot", ["src/inferscope/_hot.c"], optional=True),
        Extension("inferscope._cupti", ["src/inferscope/_cupti.c"], optional=True),
    ]
)
