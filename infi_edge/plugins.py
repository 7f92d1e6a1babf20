"""Find a user's own function or class by name."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from infi_edge.errors import ConfigError, InfiEdgeError


def load_plugin(text: str) -> None:
    """Import a module of one's own, by name or as a .py file; it registers what it brings.

    A file becomes importable under its own name (`radio_iq.py` as `radio_iq`), so that what is in
    it can be named as a model, decoder or task; loading it again does nothing.
    Raises ConfigError if it cannot be imported.
    """
    try:
        if text.endswith(".py"):
            _load_file(Path(text))
            return
        if "" not in sys.path:
            sys.path.insert(0, "")
        importlib.import_module(text)
    except InfiEdgeError:
        raise
    except Exception as error:  # importing runs the user's code, which may raise anything
        raise ConfigError(f"plugin {text} cannot be imported: {error!r}") from error


def _load_file(path: Path) -> None:
    if not path.is_file():
        raise ConfigError(f"plugin {path} is no file; give a module's name or a .py file")
    name, place = path.stem, path.resolve()
    known = sys.modules.get(name)
    if known is not None and _place(known) == place:
        return
    if known is not None or name in sys.stdlib_module_names:
        raise ConfigError(f"plugin {path}: there is another module {name!r}; rename the file")
    spec = importlib.util.spec_from_file_location(name, place)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _place(module: ModuleType) -> Path | None:
    file = getattr(module, "__file__", None)
    return None if file is None else Path(file).resolve()


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
