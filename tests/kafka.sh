#!/usr/bin/env bash
# A real Apache Kafka for the tests: `start` fetches the broker's published jars with Maven, runs one KRaft node on loopback and
# prints its address; `stop` ends it. Prints nothing, and says why on stderr, where Maven or Java 17 is missing.
set -u
cd "$(dirname "$0")/.."
home="${CARGO_TARGET_DIR:-target}/kafka"
version=4.1.0
port=19392

stop() {
  if [ -f "$home/pid" ]; then
    kill "$(cat "$home/pid")" 2>/dev/null
    rm -f "$home/pid"
  fi
}

case "${1:-}" in
stop) stop; exit 0 ;;
start) ;;
*) echo "usage: $0 start|stop" >&2; exit 2 ;;
esac

if ! command -v mvn >/dev/null || ! java -version >/dev/null 2>&1; then
  echo "kafka.sh: no Maven or Java here: the Kafka tests run on the embedded broker alone" >&2
  exit 0
fi
stop
mkdir -p "$home"
if [ ! -d "$home/libs-$version" ]; then
  cat > "$home/pom.xml" <<POM
<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>keyfuse.tests</groupId><artifactId>kafka</artifactId><version>1</version>
<dependencies><dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>$version</version></dependency>
<dependency><groupId>org.slf4j</groupId><artifactId>slf4j-nop</artifactId><version>1.7.36</version></dependency></dependencies></project>
POM
  mvn -q -B -f "$home/pom.xml" dependency:copy-dependencies -DoutputDirectory="libs-$version" >&2 || { rm -rf "$home/libs-$version"; echo "kafka.sh: the jars could not be fetched" >&2; exit 0; }
fi
rm -rf "$home/data"
cat > "$home/server.properties" <<PROPS
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$((port + 1))
listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$((port + 1))
advertised.listeners=PLAINTEXT://127.0.0.1:$port
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
log.dirs=$home/data
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
num.partitions=3
PROPS
java -cp "$home/libs-$version/*" kafka.tools.StorageTool format -t "MkU3OEVBNTcwNTJENDM2Qk" -c "$home/server.properties" >"$home/format.log" 2>&1 || { echo "kafka.sh: formatting failed, see $home/format.log" >&2; exit 0; }
java -Xmx512m -cp "$home/libs-$version/*" kafka.Kafka "$home/server.properties" >"$home/server.log" 2>&1 </dev/null &
echo $! > "$home/pid"
for _ in $(seq 1 60); do
  if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
    echo "127.0.0.1:$port"
    exit 0
  fi
  sleep 1
done
echo "kafka.sh: the broker did not come up within a minute, see $home/server.log" >&2
