#!/usr/bin/env bash
# Makes a Python with DuckDB, deltalake and PostgreSQL's drivers beside the build output, and prints its path; prints nothing where that
# cannot be had. Where there is Maven, pgjdbc comes to lie beside it.
set -u
cd "$(dirname "$0")/.."
home="${CARGO_TARGET_DIR:-target}/strangers"
python="$home/bin/python"
all='import duckdb, deltalake, pyarrow, psycopg, adbc_driver_postgresql, asyncpg, sqlalchemy'
if ! "$python" -c "$all" 2>/dev/null; then
  { python3 -m venv "$home" && "$home/bin/pip" install --quiet duckdb==1.4.1 deltalake==1.1.4 pyarrow==21.0.0 'psycopg[binary]==3.3.9' adbc-driver-postgresql==1.13.0 asyncpg==0.32.0 sqlalchemy==2.1.9; } >&2 || exit 0
fi
if command -v mvn >/dev/null && [ ! -s "$home/pgjdbc.jar" ]; then
  mvn -q -B org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy -Dartifact=org.postgresql:postgresql:42.7.14 -DoutputDirectory="$home" -Dmdep.stripVersion=true >&2 \
    && mv "$home/postgresql.jar" "$home/pgjdbc.jar"
fi
"$python" -c "$all" 2>/dev/null && echo "$python"
