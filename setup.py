"""Generates the stubs before anything is built or installed; all else is in pyproject.toml."""

import runpy
from pathlib import Path

from setuptools import setup

_PROTO = Path(__file__).resolve().parent / "proto"
if _PROTO.is_dir():
    runpy.run_path(str(_PROTO / "generate.py"))["generate_stubs"]()

setup()
