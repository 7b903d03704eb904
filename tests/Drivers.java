import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Timestamp;
import java.util.Properties;

/** Asks the SQL door as pgjdbc and DBeaver do; prints what they read. Arguments: port, password. */
public class Drivers {
    static int rows(ResultSet found) throws SQLException {
        int rows = 0;
        while (found.next()) rows++;
        return rows;
    }

    static void must(boolean holds, String what) {
        if (!holds) throw new AssertionError(what);
    }

    public static void main(String[] arguments) throws SQLException {
        var settings = new Properties();
        settings.put("user", "analyst");
        settings.put("password", arguments[1]);
        var address = "jdbc:postgresql://127.0.0.1:" + arguments[0] + "/keyfuse";
        try (var connection = DriverManager.getConnection(address, settings)) {
            metadata(connection);
            values(connection);
            limits(connection);
            dbeaver(connection);
        }
    }

    static void metadata(Connection connection) throws SQLException {
        var about = connection.getMetaData();
        must(connection.getCatalog().equals("keyfuse") && connection.getSchema().equals("public"), "where it is");
        must(rows(about.getSchemas()) == 2, "schemas");
        must(rows(about.getTables(null, "public", "%", new String[] {"TABLE", "VIEW"})) > 20, "tables");
        System.out.println("columns " + rows(about.getColumns(null, "public", "cloudtrail", "%")));
        must(rows(about.getTypeInfo()) > 30, "types");
        rows(about.getFunctions(null, "%", "%"));
        rows(about.getProcedures(null, "%", "%"));
        // There are none.
        must(rows(about.getPrimaryKeys(null, "public", "cloudtrail")) == 0, "primary keys");
        must(rows(about.getIndexInfo(null, "public", "cloudtrail", false, false)) == 0, "indexes");
        must(rows(about.getImportedKeys(null, "public", "cloudtrail")) == 0, "imported keys");
        must(rows(about.getExportedKeys(null, "public", "cloudtrail")) == 0, "exported keys");
    }

    static void values(Connection connection) throws SQLException {
        var sql = "SELECT TIMESTAMPTZ '2026-05-01 10:00:00Z' AS at, CAST(? AS BIGINT) AS n, CAST(1.5 AS DOUBLE) AS x, true AS yes, CAST(NULL AS VARCHAR) AS nothing, make_array('a', 'b') AS list";
        try (var statement = connection.prepareStatement(sql)) {
            // After the fifth time the driver asks for binary values.
            for (long number = 0; number < 7; number++) {
                statement.setLong(1, number);
                var row = statement.executeQuery();
                must(row.next(), "a row");
                must(row.getTimestamp("at").equals(Timestamp.from(java.time.Instant.parse("2026-05-01T10:00:00Z"))), "a time");
                must(row.getLong("n") == number && row.getDouble("x") == 1.5 && row.getBoolean("yes") && row.getString("nothing") == null, "values");
                must(((String[]) row.getArray("list").getArray())[1].equals("b"), "a list");
            }
        }
        try (var statement = connection.createStatement()) {
            statement.execute("DELETE FROM alerts");
        } catch (SQLException refused) {
            System.out.println("refused " + refused.getSQLState());
        }
    }

    static void limits(Connection connection) throws SQLException {
        connection.setAutoCommit(false);
        try (var statement = connection.createStatement()) {
            statement.setFetchSize(100);
            System.out.println("fetched " + rows(statement.executeQuery("SELECT a.column_name FROM help_columns a, help_columns b LIMIT 25000")));
        }
        connection.rollback();
        connection.setAutoCommit(true);
        try (var statement = connection.createStatement()) {
            statement.setQueryTimeout(1);
            statement.executeQuery("SELECT max(g.column_name) FROM help_columns a, help_columns b, help_columns c, help_columns d, help_columns e, help_columns f, help_columns g");
        } catch (SQLException stopped) {
            System.out.println("stopped " + stopped.getSQLState());
        }
    }

    /** What DBeaver asks to draw its tree. */
    static void dbeaver(Connection connection) throws SQLException {
        String[] asked = {
            "SELECT db.oid,db.* FROM pg_catalog.pg_database db WHERE datallowconn AND NOT datistemplate OR db.datname = 'keyfuse' ORDER BY db.datname",
            "SELECT n.oid,n.*,d.description FROM pg_catalog.pg_namespace n LEFT OUTER JOIN pg_catalog.pg_description d ON d.objoid=n.oid AND d.objsubid=0 AND d.classoid='pg_namespace'::regclass ORDER BY nspname",
            "SELECT c.oid,c.*,d.description,pg_catalog.pg_get_expr(c.relpartbound, c.oid) as partition_expr, pg_catalog.pg_get_partkeydef(c.oid) as partition_key FROM pg_catalog.pg_class c LEFT OUTER JOIN pg_catalog.pg_description d ON d.objoid=c.oid AND d.objsubid=0 AND d.classoid='pg_class'::regclass WHERE c.relnamespace=(SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = 'public') AND c.relkind not in ('i','I','c')",
            "SELECT c.relname,a.*,pg_catalog.pg_get_expr(ad.adbin, ad.adrelid, true) as def_value FROM pg_catalog.pg_attribute a INNER JOIN pg_catalog.pg_class c ON (a.attrelid=c.oid) LEFT OUTER JOIN pg_catalog.pg_attrdef ad ON (a.attrelid=ad.adrelid AND a.attnum = ad.adnum) WHERE NOT a.attisdropped AND c.relname='cloudtrail' ORDER BY a.attnum",
            "SELECT typinput='array_in'::regproc, typtype, typname, oid FROM pg_catalog.pg_type WHERE typname = 'int8'",
        };
        for (var sql : asked) {
            try (var statement = connection.createStatement()) {
                must(rows(statement.executeQuery(sql)) > 0, sql);
            }
        }
        try (var statement = connection.createStatement()) {
            var who = statement.executeQuery("SELECT current_schema(), session_user, current_catalog");
            must(who.next(), "who");
            System.out.println("dbeaver " + who.getString(1) + " " + who.getString(2) + " " + who.getString(3));
        }
    }
}
