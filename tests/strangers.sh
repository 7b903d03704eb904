#!/usr/bin/env bash
# Makes a Python with DuckDB, deltalake, psycopg and ADBC beside the build output, and prints its path; prints nothing where that cannot be had.
set -u
cd "$(dirname "$0")/.."
home="${CARGO_TARGET_DIR:-target}/strangers"
python="$home/bin/python"
all='import duckdb, deltalake, pyarrow, psycopg, adbc_driver_postgresql'
if ! "$python" -c "$all" 2>/dev/null; then
  { python3 -m venv "$home" && "$home/bin/pip" install --quiet duckdb==1.4.1 deltalake==1.1.4 pyarrow==21.0.0 'psycopg[binary]==3.3.9' adbc-driver-postgresql==1.13.0; } >&2 || exit 0
fi
"$python" -c "$all" 2>/dev/null && echo "$python"
