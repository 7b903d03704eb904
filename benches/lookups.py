"""Asks DuckDB the questions on standard input, one a line, of the Parquet files of one table; prints the median seconds of five runs of each."""

import statistics
import sys
import time

import deltalake
import duckdb

# The same files that keyfuse reads: what was compacted lies beside them for a day.
files = deltalake.DeltaTable(sys.argv[1]).file_uris()
con = duckdb.connect()
con.execute("SET threads = " + sys.argv[2])
con.execute("SET timezone = 'UTC'")
# What DuckDB offers to readers of files that do not change.
con.execute("SET parquet_metadata_cache = true")
con.execute(f"CREATE VIEW cloudtrail AS SELECT * FROM read_parquet({files!r}, hive_partitioning = true)")
for question in sys.stdin.read().splitlines():
    times = []
    for _ in range(6):
        begun = time.perf_counter()
        rows = con.execute(question).fetch_arrow_table().num_rows
        times.append(time.perf_counter() - begun)
    # The first run fills caches on both sides.
    print(statistics.median(times[1:]), rows, flush=True)
