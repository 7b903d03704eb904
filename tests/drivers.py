"""Asks the SQL door with Python's drivers; prints what they read. Arguments: port, password."""

import asyncio
import datetime
import sys

import adbc_driver_postgresql.dbapi as adbc
import asyncpg
import psycopg
import sqlalchemy

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


async def ask_asyncpg():
    connection = await asyncpg.connect(host="127.0.0.1", port=port, user="analyst", password=password, database="keyfuse")
    row = await connection.fetchrow(typed.replace("CAST(7 AS BIGINT)", "$1::bigint"), 7)
    assert tuple(row) == expected, row
    lists = await connection.fetchrow("SELECT make_array('a', 'b') AS texts, make_array(1, 2) AS numbers")
    assert tuple(lists) == (["a", "b"], [1, 2]), lists
    async with connection.transaction():
        fetched = [row async for row in connection.cursor("SELECT a.column_name FROM help_columns a, help_columns b LIMIT 2000", prefetch=100)]
    found = await connection.fetchval("SELECT count(*) FROM help_tables WHERE table_name = ANY($1::text[])", ["cloudtrail", "alerts"])
    print("asyncpg", len(fetched), found)
    await connection.close()


asyncio.run(ask_asyncpg())

engine = sqlalchemy.create_engine(f"postgresql+psycopg://analyst:{password}@127.0.0.1:{port}/keyfuse")
seen = sqlalchemy.inspect(engine)
assert "cloudtrail" in seen.get_table_names() and "exposed_credentials" in seen.get_view_names()
print("sqlalchemy", seen.get_schema_names())
with engine.connect() as connection:
    named = sqlalchemy.table("help_tables", sqlalchemy.column("table_name"))
    query = sqlalchemy.select(named.c.table_name).where(named.c.table_name.endswith("del_calls", autoescape=True))
    print("sqlalchemy", connection.execute(query).scalars().all())
