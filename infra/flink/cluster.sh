#!/usr/bin/env bash
# A small Apache Flink cluster on loopback (no Docker), and Beam's job server for it, for tests and trials.
#
#   infra/flink/cluster.sh fetch                            copy the jars from Maven Central (once)
#   infra/flink/cluster.sh start FOLDER REST JOBS [COUNT]   a job manager whose REST API listens on port REST, COUNT (2)
#                                                           task managers of one slot, a job server on port JOBS
#   infra/flink/cluster.sh task-manager FOLDER NAME         one more task manager, or one in place of a dead one
#   infra/flink/cluster.sh stop FOLDER                      end them all
#
# Ports must be free. Everything runs in the background; FOLDER holds NAME.pid and NAME.log of each process. Beam's
# Python workers are started by the task managers, through infra/beam_worker.sh. FLINK_JARS is where the jars lie. Needed: curl,
# Java 11 or 17, and Maven the first time.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
jars="${FLINK_JARS:-$here/../../.tools/flink}"
. "$here/../maven.sh"
# What Flink's own scripts open of Java's modules (its serializers look inside).
opens=()
for package in lang lang.invoke lang.reflect io net nio text time util util.concurrent util.concurrent.atomic \
    util.concurrent.locks; do
    opens+=("--add-opens=java.base/java.$package=ALL-UNNAMED")
done
opens+=("--add-opens=java.base/sun.nio.ch=ALL-UNNAMED")

# run FOLDER NAME MEGABYTES CLASS [ARGUMENT...]: a Java process in the background
run() {
    local folder="$1" name="$2" memory="$3"
    shift 3
    setsid nohup java "-Xmx${memory}m" -XX:+UseSerialGC -XX:TieredStopAtLevel=1 "${opens[@]}" \
        -Dorg.slf4j.simpleLogger.showDateTime=true -cp "$jars/*" "$@" >>"$folder/$name.log" 2>&1 </dev/null &
    echo $! >"$folder/$name.pid"
}

configure() {
    local folder="$1" rest="$2" rpc
    rpc="$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
    cat >"$folder/config.yaml" <<EOF
jobmanager.rpc.address: 127.0.0.1
jobmanager.rpc.port: $rpc
jobmanager.bind-host: 127.0.0.1
jobmanager.memory.process.size: 768m
rest.address: 127.0.0.1
rest.bind-address: 127.0.0.1
rest.port: $rest
taskmanager.host: 127.0.0.1
taskmanager.bind-host: 127.0.0.1
taskmanager.numberOfTaskSlots: 1
taskmanager.cpu.cores: 1.0
taskmanager.memory.task.heap.size: 192m
taskmanager.memory.task.off-heap.size: 0m
taskmanager.memory.framework.heap.size: 128m
taskmanager.memory.framework.off-heap.size: 64m
taskmanager.memory.network.min: 96m
taskmanager.memory.network.max: 96m
taskmanager.network.sort-shuffle.min-buffers: 32
taskmanager.memory.managed.size: 64m
taskmanager.memory.jvm-metaspace.size: 192m
taskmanager.memory.jvm-overhead.min: 64m
taskmanager.memory.jvm-overhead.max: 64m
# A dead task manager refuses its second heartbeat and is noticed in seconds, and the job is tried again where there are
# slots. One that a busy machine keeps waiting is not dead.
heartbeat.interval: 1000
heartbeat.timeout: 120000
restart-strategy.type: fixed-delay
restart-strategy.fixed-delay.attempts: 5
restart-strategy.fixed-delay.delay: 1 s
slot.request.timeout: 120000
io.tmp.dirs: $folder/tmp
EOF
}

task_manager() {
    run "$1" "$2" 384 org.apache.flink.runtime.taskexecutor.TaskManagerRunner --configDir "$1" \
        -Dtaskmanager.resource-id="$2"
}

# until URL shows TEXT, or the process of a pid file is gone, or ten minutes are over
await() {
    local url="$1" text="$2" folder="$3" name="$4"
    for _ in $(seq 3000); do
        if curl -fsS --max-time 2 "$url" 2>/dev/null | grep -q "$text"; then return; fi
        kill -0 "$(cat "$folder/$name.pid")" 2>/dev/null || break
        sleep 0.2
    done
    echo "cluster.sh: $name did not start; the end of $folder/$name.log:" >&2
    tail -n 20 "$folder/$name.log" >&2
    stop "$folder"
    exit 70
}

start() {
    local folder rest="$2" jobs="$3" count="${4:-2}"
    need java "install a Java runtime, 11 or 17"
    need curl "it asks Flink's REST API"
    fetch
    mkdir -p "$1/tmp"
    folder="$(cd "$1" && pwd)"
    configure "$folder" "$rest"
    run "$folder" job-manager 384 org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint \
        --configDir "$folder" --executionMode cluster
    for number in $(seq "$count"); do task_manager "$folder" "task-manager-$number"; done
    run "$folder" job-server 384 org.apache.beam.runners.flink.FlinkJobServerDriver --flink-master "127.0.0.1:$rest" \
        --job-host localhost --job-port "$jobs" --artifact-port 0 --expansion-port 0 --artifacts-dir "$folder/tmp/artifacts"
    await "http://127.0.0.1:$rest/overview" "\"taskmanagers\":$count," "$folder" job-manager
    for _ in $(seq 3000); do
        if (exec 3<>"/dev/tcp/127.0.0.1/$jobs") 2>/dev/null; then return; fi
        kill -0 "$(cat "$folder/job-server.pid")" 2>/dev/null || break
        sleep 0.2
    done
    echo "cluster.sh: the job server did not start; the end of $folder/job-server.log:" >&2
    tail -n 20 "$folder/job-server.log" >&2
    stop "$folder"
    exit 70
}

stop() {
    local file
    for file in "$1"/*.pid; do
        # the number may belong to another process by now
        if grep -qs "org.apache.flink\|org.apache.beam" "/proc/$(cat "$file" 2>/dev/null)/cmdline"; then
            kill -KILL "$(cat "$file")" 2>/dev/null || true
        fi
        rm -f "$file"
    done
}

case "${1:-} $#" in
    "fetch 1") fetch ;;
    "start 4" | "start 5") shift; start "$@" ;;
    "task-manager 3") task_manager "$(cd "$2" && pwd)" "$3" ;;
    "stop 2") stop "$2" ;;
    *)
        sed -n '4,8s/^# *//p' "$0" >&2
        exit 64
        ;;
esac
