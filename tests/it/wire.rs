//! The SQL door on the PostgreSQL wire, as psql and a driver meet it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use keyfuse::dimension::Dimensions;
use keyfuse::query::wire::{Listening, Settings, listen};
use keyfuse::query::{Doors, Limits};
use keyfuse::secret::Fingerprinter;
use keyfuse::table::Memory;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use crate::support::{START, brokers, config, rows_of, sender, start, wait_for};

fn settings(password: Option<&Path>, tls: Option<(&Path, &Path)>) -> Settings {
    Settings {
        listen: ([127, 0, 0, 1], 0).into(),
        user: "analyst".into(),
        password: password.map(Path::to_path_buf),
        tls: tls.map(|(certificate, key)| (certificate.to_path_buf(), key.to_path_buf())),
        connections: 4,
    }
}

/// A door on nothing but the tables.
fn empty(runtime: &tokio::runtime::Runtime, settings: &Settings, limits: Limits) -> Listening {
    let doors = Arc::new(Doors::new(None, Arc::new(Memory::default()), Arc::new(Dimensions::default()), Fingerprinter::public(), limits));
    runtime.block_on(listen(settings, doors, &Fingerprinter::public())).expect("a door")
}

async fn connect(port: u16, password: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(&format!("host=127.0.0.1 port={port} user=analyst password={password} dbname=keyfuse"), NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

fn cells(messages: &[SimpleQueryMessage]) -> Vec<Vec<Option<String>>> {
    let rows = messages.iter().filter_map(|message| if let SimpleQueryMessage::Row(row) = message { Some(row) } else { None });
    rows.map(|row| (0..row.len()).map(|column| row.get(column).map(str::to_owned)).collect()).collect()
}

fn code(error: &tokio_postgres::Error) -> String {
    error.code().map_or_else(|| error.to_string(), |code| code.code().to_owned())
}

#[test]
fn a_driver_asks_with_parameters_and_is_refused_what_is_not_reading() {
    let runtime = keyfuse::query::runtime().expect("a runtime");
    let door = empty(&runtime, &settings(None, None), Limits { rows: 1_000, ..Limits::default() });
    runtime.block_on(async {
        let client = connect(door.address.port(), "any").await.expect("connected");
        let row = client.query_one("SELECT $1::bigint + 1 AS n, upper($2) AS t, NULL AS nothing", &[&41i64, &"x"]).await.expect("a row");
        assert_eq!((row.get::<_, i64>(0), row.get::<_, &str>(1)), (42, "X"));
        let table = "cloudtrail";
        let columns = client.query("SELECT column_name FROM help_columns WHERE table_name = $1", &[&table]).await.expect("rows");
        assert!(columns.len() > 60);
        let prepared = client.prepare("SELECT event_time, account_id FROM cloudtrail WHERE access_key_id = $1 AND event_time > $2").await.expect("prepared");
        assert_eq!(prepared.params().len(), 2);
        assert_eq!(prepared.columns()[0].type_().name(), "timestamptz");
        for (sql, wanted) in [
            ("DROP TABLE cloudtrail", "25006"),
            ("INSERT INTO cloudtrail VALUES (1)", "25006"),
            ("COPY cloudtrail TO '/tmp/x'", "25006"),
            ("CREATE EXTERNAL TABLE x STORED AS CSV LOCATION '/etc/passwd'", "42601"),
            ("SELECT * FROM nowhere", "42P01"),
            ("SELECT nothing_such FROM cloudtrail", "42703"),
            ("SELECT repeat('x', 1000000000)", "42601"),
            ("SELECT 1 +", "42601"),
            ("SET TIME ZONE 'Mars'", "22023"),
        ] {
            let error = client.simple_query(sql).await.expect_err(sql);
            assert_eq!(code(&error), wanted, "{sql}: {error}");
        }
        // Bounds: rows, time; and the session goes on after each.
        let many = (0..40).map(|_| "SELECT * FROM help_columns").collect::<Vec<_>>().join(" UNION ALL ");
        assert_eq!(code(&client.simple_query(&many).await.expect_err("too many rows")), "54000");
        client.batch_execute("SET statement_timeout = '1ms'").await.expect("set");
        let heavy = "SELECT count(*) FROM help_columns a, help_columns b, help_columns c WHERE concat(a.meaning, b.meaning) < concat(c.meaning, b.meaning)";
        assert_eq!(code(&client.simple_query(heavy).await.expect_err("out of time")), "57014");
        client.batch_execute("SET statement_timeout = 0; BEGIN; SELECT 1; COMMIT; DISCARD ALL").await.expect("a pool's habits");
        let cancel = client.cancel_token();
        let (asked, ()) = tokio::join!(client.simple_query(heavy), async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            cancel.cancel_query(NoTls).await.expect("asked to cancel");
        });
        assert_eq!(code(&asked.expect_err("cancelled")), "57014");
        let timeline = client.simple_query("SELECT * FROM credential_timeline('AKIA'''); SELECT * FROM lineage_of('x')").await.expect("functions");
        assert!(cells(&timeline).is_empty());
        let error = client.simple_query("SELECT * FROM lineage_of(1)").await.expect_err("a number is no credential");
        assert!(format!("{error:?}").contains("lineage_of('AKIA"), "{error:?}");
    });
    drop(door);
    runtime.shutdown_background();
}

/// A message of the wire.
fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[kind][..], &(body.len() as u32 + 4).to_be_bytes(), body].concat()
}

fn startup(parameters: &[u8]) -> Vec<u8> {
    let body = [b"\0\x03\0\0", parameters, b"\0"].concat();
    [&(body.len() as u32 + 4).to_be_bytes()[..], &body].concat()
}

/// What the door answers to one statement of somebody who needs no password: kinds of messages, and what is in them.
fn spoken(port: u16, sql: &str) -> Vec<(char, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connected");
    let said = [startup(b"user\0analyst\0"), message(b'Q', &[sql.as_bytes(), b"\0"].concat()), message(b'X', b"")].concat();
    stream.write_all(&said).expect("sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("the door closes");
    let (mut rest, mut messages) = (&answer[..], Vec::new());
    while let [kind, a, b, c, d, after @ ..] = rest {
        let (body, next) = after.split_at(u32::from_be_bytes([*a, *b, *c, *d]) as usize - 4);
        messages.push((char::from(*kind), String::from_utf8_lossy(body).into_owned()));
        rest = next;
    }
    messages
}

#[test]
fn what_would_make_much_of_little_is_refused() {
    let runtime = keyfuse::query::runtime().expect("a runtime");
    let door = empty(&runtime, &settings(None, None), Limits::default());
    // Each part makes the former's square, or a hundred times of it.
    let chain = |first: &str, made: &str| {
        let parts: Vec<_> = (1..6).map(|part| format!("p{part} AS (SELECT {made} AS t FROM p{})", part - 1)).collect();
        format!("WITH p0 AS (SELECT {first} AS t FROM help_columns), {} SELECT length(CAST(t AS VARCHAR)) FROM p5", parts.join(", "))
    };
    let hundred = |sign: &str| vec!["t"; 100].join(sign);
    let fan = |parts: usize| {
        let parts: Vec<_> = (1..=parts).map(|part| format!("p{part} AS (SELECT a.t FROM {0} a, {0} b, {0} c, {0} d)", format_args!("p{}", part - 1))).collect();
        format!("WITH p0 AS (SELECT 1 AS t), {} SELECT count(*) FROM p{}", parts.join(", "), parts.len())
    };
    runtime.block_on(async {
        let client = connect(door.address.port(), "any").await.expect("connected");
        for (sql, wanted) in [
            ("SELECT repeat('x', 1000000000)".into(), "42601"),
            ("SELECT range(1, 1000000000) AS pg_".into(), "42601"),
            ("SELECT generate_series(1, 1000000000) AS pg_".into(), "42601"),
            ("SELECT * FROM range(1, 10) AS pg_".into(), "42P01"),
            ("SELECT * FROM lineage_of(replace('aa', 'a', 'bb'))".into(), "42601"),
            (chain("'aaaaaaaaaa'", "replace(t, 'a', t)"), "54000"),
            (chain("meaning", "regexp_replace(t, '.', t, 'g')"), "54000"),
            (chain("meaning", &hundred(" || ")), "54000"),
            (chain("meaning", &format!("concat({})", hundred(", "))), "54000"),
            (chain("meaning", &format!("ARRAY[{}]", hundred(", "))), "54000"),
            (fan(10), "54000"),
            (chain("length(meaning)", &hundred(" + ")).replace("SELECT length(CAST(t AS VARCHAR)) FROM p5", "SELECT t FROM p5 WHERE t > 0"), "54000"),
        ] {
            let error = client.simple_query(&sql).await.expect_err(&sql);
            assert_eq!(code(&error), wanted, "{sql}: {error}");
        }
        for (sql, wanted) in [
            ("SELECT replace('a-b-c', '-', '--') || concat('/', 'd') || '!'", "a--b--c/d!"),
            ("SELECT regexp_replace('abc', '[ab]', 'x', 'g')", "xxc"),
            ("SELECT array_to_string(ARRAY['a', 'b'], ', ')", "a, b"),
            ("SELECT count(*) FROM generate_series(1, 10)", "10"),
            ("SELECT count(*) OVER (ORDER BY 1 RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)", "1"),
            (&fan(3), "1"),
        ] {
            let rows = client.simple_query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
            assert_eq!(cells(&rows), [[Some(wanted.to_owned())]], "{sql}");
        }
        // Planning takes time too.
        client.batch_execute("SET statement_timeout = '1ms'").await.expect("set");
        let long = vec!["SELECT * FROM activity"; 40].join(" UNION ALL ");
        assert_eq!(code(&client.prepare(&long).await.map(|_| ()).expect_err("out of time")), "57014");
    });
    drop(door);
    runtime.shutdown_background();
}

#[test]
fn times_are_sent_in_the_zone_that_is_asked_for_or_not_at_all() {
    let runtime = keyfuse::query::runtime().expect("a runtime");
    let door = empty(&runtime, &settings(None, None), Limits::default());
    runtime.block_on(async {
        let client = connect(door.address.port(), "any").await.expect("connected");
        let at = |zone: &str| format!("SELECT TIMESTAMPTZ '2026-05-01 10:00:00Z' AT TIME ZONE '{zone}' AS at");
        for (zone, wanted) in [("utc", "10:00:00"), ("UTC", "10:00:00"), ("Europe/Berlin", "12:00:00")] {
            let rows = client.simple_query(&at(zone)).await.unwrap_or_else(|error| panic!("{zone}: {error:?}"));
            assert!(cells(&rows)[0][0].as_ref().is_some_and(|time| time.contains(wanted)), "{zone}: {:?}", cells(&rows));
        }
        let error = client.simple_query(&at("Mars")).await.expect_err("no such zone");
        assert!(format!("{error:?}").contains("time zone"), "{error:?}");
        assert_eq!(cells(&client.simple_query("SELECT 1").await.expect("an answer")), [[Some("1".to_owned())]]);
    });
    drop(door);
    runtime.shutdown_background();
}

#[test]
fn a_session_is_what_it_says_and_goes_back_to_what_it_was() {
    let runtime = keyfuse::query::runtime().expect("a runtime");
    let door = empty(&runtime, &settings(None, None), Limits::default());
    runtime.block_on(async {
        let connection = format!("host=127.0.0.1 port={} user=analyst application_name=first", door.address.port());
        let (client, connection) = tokio_postgres::connect(&connection, NoTls).await.expect("connected");
        tokio::spawn(connection);
        for (said, name, wanted) in [
            ("SELECT 1", "application_name", "first"),
            ("SET application_name = 'my app'", "application_name", "my app"),
            ("RESET application_name", "application_name", "first"),
            ("SET statement_timeout = '5 min'", "statement_timeout", "5 min"),
            ("SET statement_timeout TO DEFAULT", "statement_timeout", "0"),
            ("SET SESSION statement_timeout TO 7000", "statement_timeout", "7000"),
            ("DISCARD PLANS", "statement_timeout", "7000"),
            ("RESET statement_timeout", "statement_timeout", "0"),
            ("SET statement_timeout = 7000; RESET ALL", "statement_timeout", "0"),
            ("SET statement_timeout = 7000; DISCARD ALL", "statement_timeout", "0"),
            // What asyncpg says of a connection that goes back to its pool.
            ("SET statement_timeout = 7000; SELECT pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *; RESET ALL;", "statement_timeout", "0"),
            ("SET TIME ZONE 'UTC'", "TIME ZONE", "UTC"),
        ] {
            client.batch_execute(said).await.unwrap_or_else(|error| panic!("{said}: {error:?}"));
            let show = format!("SHOW {name}");
            assert_eq!(cells(&client.simple_query(&show).await.expect("shown")), [[Some(wanted.to_owned())]], "{said}");
            assert_eq!(client.query_one(&show, &[]).await.expect("shown").get::<_, &str>(0), wanted, "{said}");
        }
        for wrong in ["SET statement_timeout = 'soon'", "SET statement_timeout = '5 parsecs'", "SHOW nothing_such"] {
            assert!(client.simple_query(wrong).await.is_err(), "{wrong}");
        }
        // At login it says no other than later.
        let announced = spoken(door.address.port(), "SELECT 1");
        let announced: Vec<_> =
            announced.iter().filter(|(kind, _)| *kind == 'S').filter_map(|(_, said)| said.trim_end_matches('\0').split_once('\0')).collect();
        assert!(announced.contains(&("server_version", "15.0")) && announced.contains(&("is_superuser", "off")), "{announced:?}");
        for (name, value) in announced.iter().filter(|(name, _)| *name != "application_name") {
            assert_eq!(cells(&client.simple_query(&format!("SHOW {name}")).await.expect("shown")), [[Some((*value).to_owned())]], "{name}");
        }
    });
    drop(door);
    runtime.shutdown_background();
}

#[test]
fn a_copy_counts_rows_and_fails_as_a_question_does() {
    let runtime = keyfuse::query::runtime().expect("a runtime");
    let door = empty(&runtime, &settings(None, None), Limits::default());
    let three = "SELECT * FROM (VALUES (1), (2), (3)) t";
    for (sql, pieces, tag) in [
        (format!("COPY ({three}) TO STDOUT CSV HEADER"), 4, "COPY 3\0"),
        (format!("COPY ({three}) TO STDOUT"), 3, "COPY 3\0"),
        (format!("COPY ({three}) TO STDOUT (FORMAT binary)"), 4, "COPY 3\0"),
        (format!("COPY ({three} WHERE false) TO STDOUT CSV HEADER"), 1, "COPY 0\0"),
        (format!("COPY ({three} WHERE false) TO STDOUT (FORMAT binary)"), 1, "COPY 0\0"),
    ] {
        let said = spoken(door.address.port(), &sql);
        let of = |kind: char| said.iter().filter(|(own, _)| *own == kind).map(|(_, body)| body.as_str()).collect::<Vec<_>>();
        assert_eq!((of('H').len(), of('d').len(), of('c').len(), of('C')), (1, pieces, 1, vec![tag]), "{sql}: {said:?}");
    }
    let failed = spoken(door.address.port(), "COPY (SELECT now() AT TIME ZONE 'Mars') TO STDOUT");
    assert!(failed.iter().any(|(kind, _)| *kind == 'E') && !failed.iter().any(|(kind, _)| *kind == 'f'), "{failed:?}");
    drop(door);
    runtime.shutdown_background();
}

#[test]
fn who_finds_no_place_is_told_and_questions_can_still_be_cancelled() {
    let runtime = keyfuse::query::runtime().expect("a runtime");
    let door = empty(&runtime, &settings(None, None), Limits::default());
    let port = door.address.port();
    runtime.block_on(async {
        let mut clients = Vec::new();
        for _ in 0..4 {
            clients.push(connect(port, "any").await.expect("a place"));
        }
        assert_eq!(code(&connect(port, "any").await.map(|_| ()).expect_err("a fifth of four")), "53300");
        let cancel = clients[0].cancel_token();
        let endless = clients[0].simple_query("SELECT count(*) FROM generate_series(1, 1000000000000)");
        let cancelled = async {
            // Until it is being asked, there is nothing to cancel.
            loop {
                cancel.cancel_query(NoTls).await.expect("heard");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let asked = tokio::select! { asked = endless => asked, () = cancelled => unreachable!("it does not end") };
        assert_eq!(code(&asked.expect_err("cancelled")), "57014");
        drop(clients);
    });
    wait_for("a place", || runtime.block_on(connect(port, "any")).is_ok());
    drop(door);
    runtime.shutdown_background();
}

#[test]
fn questions_share_one_memory_and_nothing_of_an_answer_is_cut() {
    let runtime = keyfuse::query::runtime().expect("a runtime");
    let door = empty(&runtime, &settings(None, None), Limits { memory: 16 << 20, rows: 100_000, ..Limits::default() });
    let many = |rows: usize| format!("SELECT a.meaning FROM help_columns a, help_columns b LIMIT {rows}");
    runtime.block_on(async {
        let mut first = connect(door.address.port(), "any").await.expect("connected");
        let second = connect(door.address.port(), "any").await.expect("connected");
        // What pgjdbc does of setMaxRows(50000).
        let asking = first.transaction().await.expect("begun");
        let portal = asking.bind(&many(20_000), &[]).await.expect("bound");
        assert_eq!(asking.query_portal(&portal, 50_000).await.expect("rows").len(), 20_000);
        let portal = asking.bind(&many(90_000), &[]).await.expect("bound");
        assert_eq!(asking.query_portal(&portal, 10).await.expect("rows").len(), 10);
        // The rest of it waits here.
        assert_eq!(code(&second.simple_query(&many(90_000)).await.expect_err("no memory")), "54000");
        assert_eq!(cells(&second.simple_query(&many(100)).await.expect("a small answer")).len(), 100);
        drop(portal);
        asking.rollback().await.expect("ended");
        assert_eq!(cells(&second.simple_query(&many(90_000)).await.expect("memory")).len(), 90_000);
    });
    drop(door);
    runtime.shutdown_background();
}

#[test]
fn nobody_gets_in_without_the_password_and_nothing_after_a_wrong_one_is_heard() {
    let folder = tempfile::tempdir().expect("a folder");
    let password = folder.path().join("password");
    std::fs::write(&password, "right horse\n").expect("written");
    let runtime = keyfuse::query::runtime().expect("a runtime");
    let door = empty(&runtime, &settings(Some(&password), None), Limits::default());
    let port = door.address.port();
    runtime.block_on(async {
        let error = connect(port, "wrong").await.expect_err("a wrong password");
        assert_eq!(code(&error), "28P01");
        let other = tokio_postgres::connect(&format!("host=127.0.0.1 port={port} user=root password='right horse'"), NoTls)
            .await
            .map(|_| ())
            .expect_err("another user");
        assert_eq!(code(&other), "28P01");
        let client = connect(port, "'right horse'").await.expect("the password");
        assert_eq!(cells(&client.simple_query("SELECT 1").await.expect("an answer")), [[Some("1".to_owned())]]);
    });
    // Startup, garbage in the place of a proof, and a question sent along with it.
    let mut bytes = startup(b"user\0analyst\0");
    bytes.extend(message(b'p', b"SCRAM-SHA-256\0\0\0\0\x04oops"));
    bytes.extend(message(b'Q', b"SELECT 'heard' AS it\0"));
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connected");
    stream.write_all(&bytes).expect("sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("the door closes");
    assert!(!String::from_utf8_lossy(&answer).contains("heard"), "{}", String::from_utf8_lossy(&answer));
    drop(door);
    runtime.shutdown_background();
    let open = Settings { listen: ([0, 0, 0, 0], 0).into(), ..settings(None, None) };
    assert!(open.proven().expect_err("beyond this machine").contains("password_file, tls_cert and tls_key"));
}

#[test]
fn a_row_is_seen_before_it_is_archived_and_once_after() {
    let broker = &brokers(1)[0];
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = config(folder.path(), &broker.address, &[&broker.topic]);
    config.commit_every = Duration::from_secs(3_600);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let questions = keyfuse::query::runtime().expect("a runtime");
    let record = r#"{"eventVersion":"1.11","eventTime":"2026-05-01T10:00:00Z","eventSource":"bedrock.amazonaws.com","eventName":"DeleteGuardrail","eventID":"d1","userIdentity":{"type":"IAMUser","arn":"arn:aws:iam::111122223333:user/x","accessKeyId":"AKIAIOSFODNN7EXAMPLE"},"additionalEventData":{"callWithBearerToken":true}}"#;
    let sender = sender(&broker.address);
    sender.send(&broker.topic, Some(0), None, record.as_bytes(), Some(START)).expect("sent");
    sender.flush(Duration::from_secs(30)).expect("taken");
    for commit_every in [3_600, 1] {
        config.commit_every = Duration::from_secs(commit_every);
        let service = start(&config, &runtime);
        if commit_every > 1 {
            wait_for("a row", || rows_of(&service, &["cloudtrail"]) == 1);
        }
        let doors = Arc::clone(&service.doors);
        let door = questions.block_on(listen(&settings(None, None), doors, &Fingerprinter::public())).expect("a door");
        let mut counts = Vec::new();
        questions.block_on(async {
            let client = connect(door.address.port(), "x").await.expect("connected");
            // While it moves from memory into the archive too.
            for _ in 0..20 {
                let rows = client.simple_query("SELECT (SELECT count(*) FROM cloudtrail) AS n, (SELECT count(*) FROM alerts) AS m").await.expect("an answer");
                counts.push(cells(&rows)[0].clone());
                tokio::time::sleep(Duration::from_millis(120)).await;
            }
        });
        drop(door);
        service.stop().expect("a clean stop");
        let last = counts.last().expect("an answer").clone();
        assert_eq!(last, [Some("1".to_owned()), Some("2".to_owned())], "one row, COV-03 and LLM-10");
        assert!(counts.iter().all(|count| count[0] == last[0]), "{counts:?}");
    }
}

/// What a program says that asks a door with a password; port and password are its last arguments.
fn asked_by(program: &mut Command) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let password = folder.path().join("password");
    std::fs::write(&password, "secret").expect("written");
    let runtime = keyfuse::query::runtime().expect("a runtime");
    let door = empty(&runtime, &settings(Some(&password), None), Limits::default());
    let said = program.args([&door.address.port().to_string(), "secret"]).output().expect("the program runs");
    drop(door);
    runtime.shutdown_background();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    String::from_utf8_lossy(&said.stdout).into_owned()
}

#[test]
fn pythons_drivers_read_what_is_there() {
    let Some(python) = std::env::var_os("KEYFUSE_PYTHON") else {
        println!("KEYFUSE_PYTHON is not set: psycopg, ADBC, asyncpg and SQLAlchemy were not tried");
        return;
    };
    let said = asked_by(Command::new(python).arg("tests/drivers.py"));
    for wanted in [
        "psycopg [('cloudtrail',)]",
        "psycopg refused 25006",
        "adbc [('agent_spans',)]",
        "adbc schema ['event_time', 'append_time']",
        "asyncpg 2000 2",
        "sqlalchemy ['public']",
        "sqlalchemy ['model_calls']",
    ] {
        assert!(said.contains(wanted), "{wanted} in {said}");
    }
}

#[test]
fn pgjdbc_reads_what_is_there() {
    let jar = std::env::var_os("KEYFUSE_PYTHON").and_then(|python| Some(Path::new(&python).parent()?.parent()?.join("pgjdbc.jar")));
    let Some(jar) = jar.filter(|jar| jar.exists()) else {
        println!("no pgjdbc beside KEYFUSE_PYTHON (tests/strangers.sh): not tried");
        return;
    };
    let said = asked_by(Command::new("java").arg("-cp").arg(jar).arg("tests/Drivers.java"));
    assert_eq!(said.lines().collect::<Vec<_>>(), ["columns 65", "refused 25006", "fetched 25000", "stopped 57014", "dbeaver public analyst keyfuse"]);
}

#[test]
fn a_question_that_never_ends_keeps_nobody_else_waiting() {
    // One thread for all: as in a container of one core.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_stack_size(32 << 20).enable_all().build().expect("a runtime");
    let door = empty(&runtime, &settings(None, None), Limits { time: Duration::from_secs(20), ..Limits::default() });
    let port = door.address.port();
    // A runtime of its own: the clients' clock must not be the door's.
    let clients = tokio::runtime::Runtime::new().expect("a runtime");
    clients.block_on(async {
        let (endless, other) = (connect(port, "any").await.expect("connected"), connect(port, "any").await.expect("connected"));
        endless.simple_query("SET statement_timeout = 2000").await.expect("set");
        let asked = tokio::spawn(async move {
            endless.simple_query("SELECT max(g.column_name) FROM help_columns a, help_columns b, help_columns c, help_columns d, help_columns e, help_columns f, help_columns g").await
        });
        while !asked.is_finished() {
            assert_eq!(cells(&other.simple_query("SELECT 1").await.expect("an answer")), [[Some("1".to_owned())]]);
        }
        assert_eq!(code(&asked.await.expect("asked").expect_err("stopped")), "57014");
    });
    drop(door);
    runtime.shutdown_background();
}

#[test]
fn psql_finds_its_way() {
    if Command::new("psql").arg("--version").output().is_err() {
        println!("no psql here: not tried");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let [password, certificate, key] = ["password", "cert.pem", "key.pem"].map(|name| folder.path().join(name));
    std::fs::write(&password, "secret").expect("written");
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=localhost", "-days", "2"])
        .args(["-keyout", &key.to_string_lossy(), "-out", &certificate.to_string_lossy()])
        .output();
    let tls = made.is_ok_and(|made| made.status.success()).then_some((certificate.as_path(), key.as_path()));
    let runtime = keyfuse::query::runtime().expect("a runtime");
    let door = empty(&runtime, &settings(Some(&password), tls), Limits::default());
    let psql = |mode: &str, command: &str| {
        let connection = format!("host=127.0.0.1 port={} user=analyst dbname=keyfuse sslmode={mode}", door.address.port());
        let said = Command::new("psql").args(["-X", "-c", command, &connection]).env("PGPASSWORD", "secret").env("PAGER", "cat").output().expect("psql runs");
        format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr))
    };
    let mode = if tls.is_some() { "require" } else { "prefer" };
    for (command, wanted) in [
        ("\\dt", "cloudtrail"),
        ("\\dv", "exposed_credentials"),
        ("\\d alerts", "alert_id"),
        ("\\d cloudtrail", "timestamp with time zone"),
        ("\\dt+", "One AWS API call of any plane"),
        ("\\dv+", "Exposed credentials and every descendant"),
        ("\\d+ cloudtrail", "Caller's address as logged"),
        ("\\dn+", "public"),
        ("\\du", "List of roles"),
        ("COPY (SELECT 'a,b' AS t, NULL AS n) TO STDOUT CSV HEADER", "t,n\n\"a,b\",\n"),
        ("COPY (SELECT 1) TO '/tmp/x'", "this door only reads"),
        ("\\df", "credential_timeline"),
        ("\\df cred*", "credential_class"),
        ("\\dn", "public"),
        ("\\l", "keyfuse"),
        ("\\conninfo", "analyst"),
        ("SELECT credential_class('AKIAIOSFODNN7EXAMPLE')", "long_lived"),
        ("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public' AND table_name LIKE 'model%'", "model_calls"),
        // What the tab key asks.
        (
            "SELECT pg_catalog.quote_ident(c.relname) FROM pg_catalog.pg_class c WHERE c.relkind IN ('r', 'v') AND substring(pg_catalog.quote_ident(c.relname),1,5)='cloud' AND pg_catalog.pg_table_is_visible(c.oid)",
            "cloudtrail",
        ),
        ("SELECT version()", "keyfuse"),
        ("DROP TABLE alerts", "this door only reads"),
    ] {
        let said = psql(mode, command);
        assert!(said.contains(wanted), "{command}:\n{said}");
    }
    if tls.is_some() {
        assert!(psql("disable", "SELECT 1").contains("TLS is required"));
        assert!(psql("require", "\\conninfo").contains("TLS"));
    }
    drop(door);
    runtime.shutdown_background();
}
