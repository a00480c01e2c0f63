"""What a kernel gets: the address of one row of int64, the call.

A call is a header with the fields below, then the record (record.py) of every weight. It is made once per weight and
copied for a call, where an argument of a compiled function would be converted each time.
"""

from __future__ import annotations

from typing import Final

X: Final = 0
"""Address of ROWS * K contiguous values of dtype code X_DTYPE, K being that of the weights that read x."""
X_DTYPE: Final = 1
ROWS: Final = 2
THRESHOLD_IN: Final = 3
"""Address of NUM_THRESHOLDS_IN float32, see `list_active`; none when there is more than one row."""
NUM_THRESHOLDS_IN: Final = 4
THRESHOLD_MID: Final = 5
"""The same for the middle of an MLP."""
NUM_THRESHOLDS_MID: Final = 6
NUM_RECORDS: Final = 7
ACTIVATION: Final = 8
"""A value of `ACTIVATION_CODES`, for an MLP."""
DIGITS: Final = 9
"""Of an input as an integer (fixed_point.py); ignored by variants that multiply floats."""
TEAM: Final = 10
"""Address that starts a team of threads (parallel.py); THREADS of them."""
THREADS: Final = 11
HEADER_FIELDS: Final = 12
"""Where the records begin."""
