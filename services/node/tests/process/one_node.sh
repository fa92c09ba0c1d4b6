#!/usr/bin/env bash
# What docs/one-node.md takes for granted and a test has not: root, systemd, and a build of its own. Commands stand in for it
# that do the same with the paths and units of the test; an order that is not known here fails.
set -euo pipefail

sudo() {
    if [[ $1 == -u ]]; then shift 2; fi
    "$@"
}

# Files belong to whoever runs the test.
install() {
    local words=()
    while (($#)); do
        case $1 in
            -o | -g) shift 2 ;;
            *) words+=("$1") && shift ;;
        esac
    done
    command install "${words[@]}"
}

useradd() { [[ ${*: -1} == herald ]]; }

# It is built already, and where the page expects it.
cargo() { [[ -x target/release/herald ]]; }

# Runs the commands of a unit one after the other, with its environment and nothing of the caller's, and becomes the last.
run_unit() {
    local unit=$UNITS/$1.service file variables=("PATH=$PATH") words commands
    file=$(sed -n 's/^EnvironmentFile=-\?//p' "$unit")
    if [[ -e $file ]]; then mapfile -t -O 1 variables <"$file"; fi
    mapfile -t commands < <(sed -En 's/^ExecStart(Post)?=//p' "$unit" | sed 's/\$\$/$/g; s/%%/%/g')
    for command in "${commands[@]::${#commands[@]}-1}"; do
        eval "words=($command)"
        env --ignore-environment "${variables[@]}" "${words[@]}"
    done
    eval "words=(${commands[-1]})"
    exec env --ignore-environment "${variables[@]}" "${words[@]}"
}

systemctl() {
    case $* in
        daemon-reload | "reload prometheus" | "enable --now herald-backup.timer") ;;
        "enable --now herald" | "start herald")
            run_unit herald >>herald.log 2>&1 </dev/null &
            herald_pid=$!
            ;;
        "stop herald")
            kill "$herald_pid"
            wait "$herald_pid"
            ;;
        "restart herald")
            systemctl stop herald
            systemctl start herald
            ;;
        "start herald-backup") (run_unit herald-backup) ;;
        *)
            echo "systemctl $*: the test does not know this" >&2
            return 1
            ;;
    esac
}
