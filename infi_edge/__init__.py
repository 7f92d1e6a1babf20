"""infi-edge: a learned input filter in front of an expensive model."""

from infi_edge.errors import BundleError, ConfigError, ExecutorError, InfiEdgeError, SourceError
from infi_edge.filter import InputFilter, load_filter
from infi_edge.gate import Gate
from infi_edge.types import Action, Result, Sample

__version__ = "0.1.0"

__all__ = [
    "Action",
    "BundleError",
    "ConfigError",
    "ExecutorError",
    "Gate",
    "InfiEdgeError",
    "InputFilter",
    "Result",
    "Sample",
    "SourceError",
    "load_filter",
]
