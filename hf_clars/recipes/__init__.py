"""The recipes that come with the package: found by name, listed, shown and copied.

The repository has one copy of them, in `recipes/`; a wheel has it beside this file (`sources` in pyproject.toml).
"""
