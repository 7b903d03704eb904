"""Counts rows and distinct events of a Delta table with two readers that are not ours."""

import sys

import deltalake
import duckdb

table = deltalake.DeltaTable(sys.argv[1])
files = table.file_uris()
arrow = table.to_pyarrow_table(columns=["event_id", "event_time", "append_time", "late"])
print("deltalake", arrow.num_rows, len(set(arrow["event_id"].to_pylist())))
rows, events = duckdb.sql(f"SELECT count(*), count(DISTINCT event_id) FROM read_parquet({files!r}, hive_partitioning = true)").fetchone()
print("duckdb", rows, events)
