"""Writes a run directory as docs/run-record.md describes it, from any PyTorch training: see `Recorder`.

Only `recorder`, `adapters`, `world` and `machine` know PyTorch; a trainer in another framework needs `RunDirectory` and
the functions beside it, which take numpy arrays.
"""

from .digests import BLOCK_ELEMENTS, LANES, SKETCH_CODES, digest, fingerprint, flat, global_norm, sketch, square_sum
from .directory import RECORD_VERSION, RunDirectory
from .lines import digest_lines, rank_ranges, real
from .machine import processor, rank_info, resident_bytes_max, versions
from .recorder import Recorder

__all__ = [
    "BLOCK_ELEMENTS",
    "LANES",
    "RECORD_VERSION",
    "Recorder",
    "RunDirectory",
    "SKETCH_CODES",
    "digest",
    "digest_lines",
    "fingerprint",
    "flat",
    "global_norm",
    "processor",
    "rank_info",
    "rank_ranges",
    "real",
    "resident_bytes_max",
    "sketch",
    "square_sum",
    "versions",
]
