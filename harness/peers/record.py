"""The writer of the run record: `lockstep_record`, from the folder beside this one where it is not installed."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "python"))

from lockstep_record import (  # noqa: E402, F401
    BLOCK_ELEMENTS,
    LANES,
    RECORD_VERSION,
    RunDirectory,
    digest,
    digest_lines,
    flat,
    global_norm,
    rank_info,
    rank_ranges,
    real,
    resident_bytes_max,
    sketch,
    square_sum,
    versions,
)
from lockstep_record.adapters import link_states  # noqa: E402, F401
from lockstep_record.lines import digest_line, spelled, tree_sum  # noqa: E402, F401
