"""From an input to the filter's tensor: one pure function per modality, used by both halves."""

from infi_edge.preprocess.array import FeaturesSpec
from infi_edge.preprocess.audio import AudioSpec
from infi_edge.preprocess.image import ImageSpec
from infi_edge.preprocess.motion import MotionSpec
from infi_edge.preprocess.spec import Spec, change_spec, parse_spec, register, spec_class
from infi_edge.preprocess.text import TextSpec
from infi_edge.preprocess.video import VideoSpec

__all__ = [
    "AudioSpec",
    "FeaturesSpec",
    "ImageSpec",
    "MotionSpec",
    "Spec",
    "TextSpec",
    "VideoSpec",
    "change_spec",
    "parse_spec",
    "register",
    "spec_class",
]
