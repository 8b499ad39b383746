"""Kept for teams whose tooling calls setup.py; everything is declared in pyproject.toml."""

from setuptools import setup

setup()
