#!/usr/bin/env bash
# Beam's Spark job server with a Spark inside (no cluster, no Docker), and Spark's shell with Delta Lake's connector, on
# loopback, for tests and trials.
#
#   infra/spark/server.sh fetch                 copy the jars from Maven Central (once)
#   infra/spark/server.sh start PORT FOLDER [N] run a job server on PORT in the foreground until it is killed, with a
#                                               Spark of N (2) tasks at a time; with SPARK_MASTER=spark://host:7077 its
#                                               jobs go to that cluster, which has to be Spark 3.5
#   infra/spark/server.sh shell [OPTION...]     run spark-shell, which reads Scala from standard input, with its options
#
# PORT must be free, FOLDER takes what is written on the way. Beam's Python workers are started by Spark's executors,
# through infra/beam_worker.sh. SPARK_JARS is where the jars lie. Needed: Java 11 or 17, and Maven the first time.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
jars="${SPARK_JARS:-$here/../../.tools/spark}"
. "$here/../maven.sh"
# What Spark's own scripts open of Java's modules.
opens=()
for package in java.lang java.lang.invoke java.lang.reflect java.io java.net java.nio java.util java.util.concurrent \
    java.util.concurrent.atomic sun.nio.ch sun.nio.cs sun.security.action sun.util.calendar; do
    opens+=("--add-opens=java.base/$package=ALL-UNNAMED")
done

start() {
    local port="$1" folder="$2" tasks="${3:-2}"
    need java "install a Java runtime, 11 or 17"
    fetch
    jars="$(cd "$jars" && pwd)"
    mkdir -p "$folder"
    cd "$folder"
    exec java -Xmx1g "${opens[@]}" -Djava.io.tmpdir="$PWD" -Dorg.slf4j.simpleLogger.defaultLogLevel=warn -cp "$jars/*" \
        org.apache.beam.runners.spark.SparkJobServerDriver --job-host localhost --job-port "$port" --artifact-port 0 \
        --expansion-port 0 --artifacts-dir "$PWD/artifacts" --spark-master-url "${SPARK_MASTER:-local[$tasks]}"
}

# Spark's shell for small tables: partitions of a snapshot, and of a shuffle, are few, or each costs a task.
shell() {
    need java "install a Java runtime, 11 or 17"
    fetch
    jars="$(cd "$jars" && pwd)"
    export SPARK_LOCAL_IP=127.0.0.1
    exec java -Xmx1g -XX:+UseSerialGC -XX:TieredStopAtLevel=1 "${opens[@]}" -Dscala.usejavacp=true \
        -Dorg.slf4j.simpleLogger.defaultLogLevel=error -cp "$jars/*" org.apache.spark.deploy.SparkSubmit \
        --class org.apache.spark.repl.Main --master "${SPARK_MASTER:-local[2]}" --conf spark.ui.enabled=false \
        --conf spark.ui.showConsoleProgress=false --conf spark.sql.shuffle.partitions=2 \
        --conf spark.databricks.delta.snapshotPartitions=2 "$@" spark-shell
}

case "${1:-}" in
    fetch) fetch ;;
    start) start "${@:2}" ;;
    shell) shell "${@:2}" ;;
    *) sed -n '2,13p' "${BASH_SOURCE[0]}" >&2; exit 64 ;;
esac
