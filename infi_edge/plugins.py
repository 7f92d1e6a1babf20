"""Find a user's own function or class by name."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from infi_edge.errors import ConfigError


def load_plugin(text: str) -> None:
    """Import a module of one's own, by name or as a .py file; it registers what it brings.

    Raises ConfigError if it cannot be imported.
    """
    try:
        if text.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(text).stem, text)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module
            spec.loader.exec_module(module)
            return
        if "" not in sys.path:
            sys.path.insert(0, "")
        importlib.import_module(text)
    except Exception as error:  # importing runs the user's code, which may raise anything
        raise ConfigError(f"plugin {text} cannot be imported: {error!r}") from error


def names_object(text: str) -> bool:
    """Whether a text reads as `package.module:name`."""
    module, colon, name = text.partition(":")
    return bool(colon) and all(part.isidentifier() for part in [*module.split("."), name])


def load_object(text: str, what: str) -> Any:
    """Return the object that `package.module:name` names, looked for here and in the environment.

    Raises ConfigError if it cannot be imported.
    """
    module, _, name = text.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # importing runs the user's code, which may raise anything
        raise ConfigError(f"{what} {text!r} cannot be imported: {error!r}") from error
