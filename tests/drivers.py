"""Asks the SQL door with Python's two drivers; prints what they read. Arguments: port, password."""

import datetime
import sys

import adbc_driver_postgresql.dbapi as adbc
import psycopg

port, password = sys.argv[1:]
typed = """SELECT TIMESTAMPTZ '2026-05-01 10:00:00Z' AS at, CAST(7 AS BIGINT) AS n, CAST(1.5 AS DOUBLE) AS x, true AS yes, CAST(NULL AS VARCHAR) AS nothing, 'a"b' AS text"""
noon = datetime.datetime(2026, 5, 1, 10, tzinfo=datetime.timezone.utc)
expected = (noon, 7, 1.5, True, None, 'a"b')

with psycopg.connect(f"host=127.0.0.1 port={port} user=analyst password={password} dbname=keyfuse") as connection:
    for binary in (False, True):
        with connection.cursor(binary=binary) as cursor:
            row = cursor.execute(typed).fetchone()
            assert row == expected, (binary, row)
    found = connection.execute("SELECT table_name FROM help_tables WHERE table_name = %s AND %s < now()", ("cloudtrail", noon)).fetchall()
    print("psycopg", found)
    try:
        connection.execute("DELETE FROM alerts")
    except psycopg.Error as error:
        print("psycopg refused", error.sqlstate)

with adbc.connect(f"postgresql://analyst:{password}@127.0.0.1:{port}/keyfuse") as connection:
    for copies in ("true", "false"):
        with connection.cursor() as cursor:
            cursor.adbc_statement.set_options(**{"adbc.postgresql.use_copy": copies})
            cursor.execute(typed)
            table = cursor.fetch_arrow_table()
            assert tuple(table.to_pylist()[0].values()) == expected, table
            cursor.execute("SELECT table_name FROM help_tables WHERE false")
            assert cursor.fetch_arrow_table().num_rows == 0
    with connection.cursor() as cursor:
        cursor.execute("SELECT table_name FROM help_tables WHERE kind = $1 ORDER BY 1 LIMIT 1", ("stream",))
        print("adbc", cursor.fetchall())
    print("adbc schema", connection.adbc_get_table_schema("cloudtrail").names[:2])
