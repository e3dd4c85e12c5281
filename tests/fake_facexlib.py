"""facexlib as if it were installed, with a class of the test's own in place of one of its networks."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from adapt import facexlib_nets


def pretend(monkeypatch: pytest.MonkeyPatch, cache: Path, module: str, network: type) -> Path:
    """Puts `network` into `facexlib.<module>` under its published name; returns the empty folder for its weights."""
    package, _, file = module.partition(".")
    for name in ("facexlib", f"facexlib.{package}", f"facexlib.{package}.{file}"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    published = {"detection.retinaface": "RetinaFace", "parsing.parsenet": "ParseNet"}[module]
    monkeypatch.setattr(sys.modules[f"facexlib.{module}"], published, network, raising=False)
    spec = types.SimpleNamespace(origin=None)
    monkeypatch.setattr(facexlib_nets.importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setenv("ADAPT_CACHE", str(cache))
    (cache / "facexlib").mkdir()
    return cache / "facexlib"
