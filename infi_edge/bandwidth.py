"""What a filter saves of the link to a server, and what other ways would."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from infi_edge.capture.replay import Recording
from infi_edge.executors.headed import Headed
from infi_edge.executors.offload import OffloadWorkload


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Bytes to the server over a stretch, framing included.

    saved: against sending every input the same way. saved_against_jpeg: every input as a JPEG of
    the same quality; None of what is no picture. saved_against_every_nth: the largest N that holds
    the target on this very stretch, sent the cheaper of both ways. Negative: costs more.
    """

    bytes_sent: float
    bytes_of_all: float
    bytes_per_input: float
    saved: float
    saved_against_jpeg: float | None
    saved_against_every_nth: float | None


def request_sizes(
    recording: Recording, workload: OffloadWorkload, first: int, last: int
) -> np.ndarray:
    """Return the bytes of tensors that each of inputs first..last-1 would be sent as, (N,)."""
    return np.array([workload.request_bytes(s.data) for s in recording.samples(first, last)], float)


def jpeg_sizes(recording: Recording, quality: int, first: int, last: int) -> np.ndarray | None:
    """Return the bytes of each picture as a JPEG, its own where it is one; None: no pictures."""
    pictures = recording.recording if isinstance(recording, Headed) else recording
    sizes = []
    for sample in pictures.samples(first, last):
        data = sample.data
        if isinstance(data, bytes):
            sizes.append(len(data))
        elif isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 3:
            encoded = cv2.imencode(".jpg", data, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
            sizes.append(encoded.nbytes)
        else:
            return None
    return np.array(sizes, float)


def bandwidth(
    sizes: np.ndarray,
    jpegs: np.ndarray | None,
    inferred: np.ndarray,
    overhead: float,
    every_nth_filtering_rate: float,
) -> Bandwidth:
    """Compare. sizes, jpegs: bytes of each input, (N,). inferred: bool (N,). overhead: bytes a
    request costs beside its tensors."""
    everything = float(sizes.sum() + overhead * len(sizes))
    sent = float((sizes + overhead)[inferred].sum())
    as_jpeg = None if jpegs is None else float(jpegs.sum() + overhead * len(sizes))
    cheaper = everything if as_jpeg is None else min(everything, as_jpeg)
    every_nth = cheaper * (1.0 - every_nth_filtering_rate)
    return Bandwidth(
        bytes_sent=sent,
        bytes_of_all=everything,
        bytes_per_input=everything / len(sizes),
        saved=1.0 - sent / everything,
        saved_against_jpeg=None if as_jpeg is None else 1.0 - sent / as_jpeg,
        saved_against_every_nth=1.0 - sent / every_nth,
    )
