"""Start local-bigquery with exact row counts of tables, as Google reports them.

By default, the emulator reports DuckDB's estimate, which still counts deleted rows. Run this module
with the emulator's own Python: python bigquery_emulator.py serve --host H --port P ...
"""

import sys

from local_bigquery.catalog import tables  # type: ignore[import-not-found]
from local_bigquery.engine import database  # type: ignore[import-not-found]

look_up = tables._lookup


def counted(*table: str) -> tuple[str, int] | None:
    """Return the kind and the number of rows of a table, or None if the table does not exist.

    Args:
        table: The project, dataset and name of the table.
    """
    found = look_up(*table)
    if found is None or found[0] != "TABLE":
        return found  # type: ignore[no-any-return]
    ((rows,),) = database.fetch(f"SELECT count(*) FROM {tables.name(*table)}")
    return "TABLE", rows


tables._lookup = counted

if __name__ == "__main__":
    from local_bigquery.cli import main  # type: ignore[import-not-found]

    sys.exit(main())
