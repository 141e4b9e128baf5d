# Sourced by scripts whose Java programs come from Maven Central. They set `here` (their folder, with a pom.xml) and
# `jars` (where its jars are put).

need() {
    command -v "$1" >/dev/null || { echo "$(basename "$0"): $1 is not installed; $2" >&2; exit 69; }
}

# Copies the jars of the pom.xml, once and after it has changed.
fetch() {
    mkdir -p "$jars"
    # Tests that run side by side start several scripts at once, and Maven's own repository is not made for two writers.
    mkdir -p "$here/../../.tools"
    exec 9>"$here/../../.tools/maven.lock"
    flock 9
    if [ ! -e "$jars/.whole" ] || [ "$here/pom.xml" -nt "$jars/.whole" ]; then
        need mvn "install Maven, or put the jars of $here/pom.xml into $jars and touch $jars/.whole"
        rm -f "$jars"/*.jar
        mvn -q -B -ntp -f "$here/pom.xml" dependency:copy-dependencies -DincludeScope=runtime \
            -DoutputDirectory="$(cd "$jars" && pwd)" >&2
        touch "$jars/.whole"
    fi
    exec 9>&-
}
