"""Generate customers of a phone company, as a table of raw columns.

A customer stays, switches to another plan or leaves. The population does not depend on the seed, so
a model trained on the rows of one seed can score the rows of another.
"""

import datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa

PLANS = ("basic", "plus", "family", "business")
REGIONS = (
    "north",
    "northeast",
    "east",
    "southeast",
    "south",
    "southwest",
    "west",
    "northwest",
    "center",
    "islands",
)
DEVICES = ("phone", "tablet", "watch", "router", "laptop")
OUTCOMES = ("stays", "switches", "leaves")
SCHEMA = pa.schema(
    [
        ("customer_id", pa.string()),
        ("plan", pa.string()),
        ("region", pa.string()),
        ("signed_up", pa.date32()),
        ("last_seen", pa.timestamp("us", tz="UTC")),
        ("monthly_fee", pa.float64()),
        ("usage_gb", pa.float64()),
        ("support_calls", pa.int64()),
        ("is_company", pa.bool_()),
        ("devices", pa.list_(pa.string())),
        ("outcome", pa.string()),
    ]
)
TODAY = datetime.datetime(2026, 11, 1, tzinfo=datetime.UTC)
# The shares of rows with a missing fee, which the package fills, and with a fault.
MISSING_FEES = 0.03
FAULTY = 0.01

_DAY_SECONDS = 86_400
_FEES = (12.0, 25.0, 45.0, 80.0)
_HOURS = np.array([1, 1, 1, 1, 1, 2, 4, 7, 9, 9, 8, 8, 9, 9, 8, 8, 9, 10, 11, 11, 10, 8, 5, 2])

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def generate(rows: int, *, seed: int, faulty: float = FAULTY) -> pa.Table:
    """Generate customers.

    Args:
        rows: The number of rows.
        seed: The seed.
        faulty: The share of rows that the model cannot take: a plan that does not exist, a negative
            usage, or no region.

    Returns:
        A table of SCHEMA.
    """
    random = np.random.default_rng(seed)
    drawn = _draw(rows, random)
    plan, region = drawn["plan"].astype(np.int64), drawn["region"].astype(np.int64)
    usage = np.where(_some(rows, faulty / 3, random), -1.0, drawn["usage"])
    outcome = _outcomes(drawn, random)
    return pa.table(
        [
            pa.array([f"c{seed}-{i}" for i in range(rows)]),
            _names(PLANS, plan, _some(rows, faulty / 3, random), "gold"),
            _names(REGIONS, region, _some(rows, faulty / 3, random), None),
            pa.array(_days_of(TODAY) - drawn["days"])
            .cast(pa.int32(), safe=False)
            .cast(pa.date32()),
            pa.array(_last_seen(drawn["idle"], random), pa.timestamp("us", tz="UTC")),
            pa.array(drawn["fee"], mask=_some(rows, MISSING_FEES, random)),
            pa.array(usage),
            pa.array(drawn["calls"].astype(np.int64)),
            pa.array((plan == 3) | (random.random(rows) < 0.05)),
            _lists(drawn["owned"].T > 0),
            pa.array(np.array(OUTCOMES)[outcome]),
        ],
        schema=SCHEMA,
    )


def _draw(rows: int, random: np.random.Generator) -> dict[str, Floats]:
    """Draw what customers are and do, by name; each [rows], and `owned` [devices, rows]."""
    plan = random.choice(len(PLANS), rows, p=[0.4, 0.3, 0.2, 0.1])
    days = np.trunc(random.gamma(2.0, 400.0, rows) + 1)
    idle = np.minimum(random.gamma(1.0, 6.0, rows), days)
    owned = random.random((rows, len(DEVICES))) < [0.95, 0.3, 0.2, 0.4, 0.25]
    return {
        "plan": plan.astype(np.float64),
        "region": random.integers(0, len(REGIONS), rows).astype(np.float64),
        "days": days,
        "idle": idle,
        "fee": np.array(_FEES)[plan] * random.uniform(0.8, 1.3, rows),
        "usage": random.lognormal(1.5 + 0.4 * plan, 0.9, rows),
        "calls": random.poisson(0.6 + 0.05 * idle, rows).astype(np.float64),
        "owned": owned.T.astype(np.float64),
    }


def _some(rows: int, share: float, random: np.random.Generator) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = random.random(rows) < share
    return found


def _names(
    names: tuple[str, ...], chosen: Ints, faulty: npt.NDArray[np.bool_], wrong: str | None
) -> pa.Array:
    """Return the chosen names, with `wrong` in faulty rows."""
    texts = pa.array(names).take(pa.array(chosen)).to_numpy(zero_copy_only=False)
    texts[faulty] = wrong
    return pa.array(texts, pa.string())


def _days_of(time: datetime.datetime) -> int:
    return int(time.timestamp()) // _DAY_SECONDS


def _last_seen(idle: Floats, random: np.random.Generator) -> Ints:
    """Return when customers were seen, in microseconds: some days ago, and rarely at night."""
    hour = random.choice(24, len(idle), p=_HOURS / _HOURS.sum())
    day = _days_of(TODAY) - 1 - idle.astype(np.int64)
    seconds = day * _DAY_SECONDS + hour * 3_600 + random.integers(0, 3_600, len(idle))
    microseconds: Ints = seconds * 1_000_000
    return microseconds


def _outcomes(drawn: dict[str, Floats], random: np.random.Generator) -> Ints:
    """Return what customers do, which depends on all columns and on chance."""
    owned = drawn["owned"]
    per_gb = np.minimum(drawn["fee"] / drawn["usage"], 20.0)
    leaves = -2.2 + 0.09 * drawn["idle"] + 0.5 * drawn["calls"] - 0.0006 * drawn["days"]
    leaves += 0.08 * per_gb + 0.8 * np.isin(drawn["region"], (4, 9)) - 0.4 * owned[3]
    switches = -1.5 + 0.05 * drawn["usage"] - 0.4 * drawn["plan"] + 0.3 * owned.sum(axis=0)
    logits = np.stack([np.zeros(len(leaves)), switches, leaves], axis=1)
    noise = random.gumbel(size=logits.shape)
    chosen: Ints = (logits * 1.5 + noise).argmax(axis=1)
    return chosen


def _lists(owned: npt.NDArray[np.bool_]) -> pa.Array:
    """Return the names of the devices of each customer as lists."""
    ends = np.concatenate([[0], np.cumsum(owned.sum(axis=1))]).astype(np.int32)
    items = pa.array(DEVICES).take(pa.array(np.nonzero(owned)[1]))
    return pa.ListArray.from_arrays(pa.array(ends), items)
