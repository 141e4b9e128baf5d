#!/usr/bin/env bash
# A single Apache Kafka broker (KRaft, no ZooKeeper, no Docker) on loopback, for tests and trials.
#
#   infra/kafka/broker.sh fetch                        copy the jars from Maven Central (once)
#   infra/kafka/broker.sh start PORT CONTROLLER FOLDER run a broker in the foreground until it is killed
#
# Both ports must be free. FOLDER holds the broker's data; starting again with the same folder goes on with it.
# Lines of FOLDER/extra.properties, where there is one, come last and win: listeners with TLS, SASL, limits. KAFKA_SCRAM
# ('SCRAM-SHA-256=[name=N,password=P]') adds a user while the storage is formatted. KAFKA_JARS is where the jars lie.
# Needed: Java 17 or newer, and Maven the first time.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
jars="${KAFKA_JARS:-$here/../../.tools/kafka}"
. "$here/../maven.sh"

start() {
    local port="$1" controller="$2" folder="$3"
    need java "install a Java runtime, 17 or newer"
    fetch
    mkdir -p "$folder"
    cat >"$folder/server.properties" <<EOF
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$controller
listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$controller
advertised.listeners=PLAINTEXT://127.0.0.1:$port
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL
log.dirs=$folder/data
num.partitions=4
auto.create.topics.enable=false
offsets.topic.num.partitions=3
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=2000
EOF
    [ -e "$folder/extra.properties" ] && cat "$folder/extra.properties" >>"$folder/server.properties"
    if [ ! -e "$folder/data/meta.properties" ]; then
        java -Xmx128m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -cp "$jars/*" kafka.tools.StorageTool format \
            --config "$folder/server.properties" --cluster-id "c2lnaHRsaW5lLWJyb2tlcg" \
            ${KAFKA_SCRAM:+--add-scram "$KAFKA_SCRAM"} >&2
    fi
    exec java -Xmx384m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -cp "$jars/*" kafka.Kafka "$folder/server.properties"
}

case "${1:-}" in
    fetch) fetch ;;
    start)
        [ $# = 4 ] || { echo "usage: broker.sh start PORT CONTROLLER FOLDER" >&2; exit 64; }
        start "$2" "$3" "$4"
        ;;
    *)
        echo "usage: broker.sh fetch | start PORT CONTROLLER FOLDER" >&2
        exit 64
        ;;
esac
