"""Generate windows of readings of machines, as a table of raw columns.

Each row is a machine's last readings, one every ten minutes, up to some moment. Machines report for
different times, so the windows have different lengths. The target is for how many hours the
machine will still run.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

MACHINES = ("pump", "fan", "press", "mill")
SCHEMA = pa.schema(
    [
        ("window_id", pa.string()),
        ("machine", pa.string()),
        ("ended_at", pa.timestamp("us", tz="UTC")),
        ("temperature", pa.list_(pa.float64())),
        ("vibration", pa.list_(pa.float64())),
        ("hours_left", pa.float64()),
    ]
)
LONGEST = 60
FAULTY = 0.01

_START = 1_793_491_200  # 2026-11-01 in seconds since 1970
_LIFE_HOURS = np.array([400.0, 700.0, 300.0, 500.0])
_HEAT = np.array([45.0, 38.0, 60.0, 52.0])

Floats = npt.NDArray[np.float64]


def generate(rows: int, *, seed: int, faulty: float = FAULTY) -> pa.Table:
    """Generate windows.

    Args:
        rows: The number of rows.
        seed: The seed.
        faulty: The share of rows that the model cannot take: a reading that is null in a window, a
            window without readings, or a machine that does not exist.

    Returns:
        A table of SCHEMA.
    """
    random = np.random.default_rng(seed)
    machine = random.integers(0, len(MACHINES), rows)
    left = random.uniform(0.0, 1.0, rows) * _LIFE_HOURS[machine]
    lengths = random.integers(6, LONGEST * 2, rows)
    heat, shake = _readings(machine, left, lengths, random)
    which = random.random(rows)
    names = pa.array(MACHINES).take(pa.array(machine)).to_numpy(zero_copy_only=False)
    names[which < faulty / 3] = "crane"
    gone = (which >= faulty / 3) & (which < 2 * faulty / 3)
    holes = (which >= 2 * faulty / 3) & (which < faulty)
    ended = (_START + random.integers(0, 30 * 86_400, rows)) * 1_000_000
    return pa.table(
        [
            pa.array([f"w{seed}-{i}" for i in range(rows)]),
            pa.array(names, pa.string()),
            pa.array(ended, pa.timestamp("us", tz="UTC")),
            _lists(heat, lengths, gone, np.zeros(rows, bool)),
            _lists(shake, lengths, np.zeros(rows, bool), holes),
            pa.array(left),
        ],
        schema=SCHEMA,
    )


def _readings(
    machine: npt.NDArray[np.int64],
    left: Floats,
    lengths: npt.NDArray[np.int64],
    random: np.random.Generator,
) -> tuple[Floats, Floats]:
    """Return the temperature and the vibration of all windows, one after the other."""
    owner = np.repeat(np.arange(len(machine)), lengths)
    starts = np.cumsum(lengths) - lengths
    # Hours before the end of the window.
    before = (lengths[owner] - 1 - (np.arange(len(owner)) - starts[owner])) / 6
    worn = 1 - (left[owner] + before) / _LIFE_HOURS[machine[owner]]
    heat = _HEAT[machine[owner]] * (1 + 0.5 * worn**2) + random.normal(0, 1.5, len(owner))
    shake = np.exp(2.5 * worn) * random.gamma(20.0, 0.05, len(owner))
    return heat, shake


def _lists(
    values: Floats,
    lengths: npt.NDArray[np.int64],
    gone: npt.NDArray[np.bool_],
    holes: npt.NDArray[np.bool_],
) -> pa.Array:
    """Return readings as lists: null for windows in `gone`, with a null for those in `holes`."""
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    missing = np.zeros(len(values), bool)
    missing[ends[:-1][holes]] = True
    items = pa.array(values, mask=missing)
    return pa.ListArray.from_arrays(pa.array(ends), items, mask=pa.array(gone))
