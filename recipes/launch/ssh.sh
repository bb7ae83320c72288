#!/usr/bin/env bash
# ImageNet with CLARS on several machines that ssh reaches without a password.
#
#     recipes/launch/ssh.sh HOST[,HOST…] [--config FILE.yaml] [--flag value …]
#
# Every host has the same folder and the same Python environment at the same paths, and starts `accelerate launch` in this
# folder; the first host is where they meet. If one fails, or on Ctrl-C, all are ended. The exit status is that of the
# first host that failed (the launcher's: torchrun turns every failure of the program into 1; 255 is ssh's own).
# Parameters are environment variables:
PROCESSES_PER_HOST=${PROCESSES_PER_HOST:-8} # one per GPU
SCRIPT=${SCRIPT:-recipes/imagenet_clars.py}
CONFIG=${CONFIG:-recipes/imagenet/resnet50_clars.yaml}
PORT=${PORT:-29500} # of the first host; free, and open to the others
# The defaults of a user's accelerate configuration are kept out; bf16 comes from the YAML file.
ACCELERATE_FLAGS=${ACCELERATE_FLAGS:---multi_gpu --mixed_precision no --dynamo_backend no}
CPU=${CPU:-}                                    # 1: no GPUs, gloo
ACCELERATE=${ACCELERATE:-$(command -v accelerate)} # an absolute path: a remote shell has no activated environment
PASS_ENV=${PASS_ENV:-}                          # names of more variables for the hosts, besides NCCL_*, GLOO_* and OMP_*
GRACE=${GRACE:-90}                              # seconds for SIGTERM, before SIGKILL; torchrun itself takes 30
REMOTE_SHELL=${REMOTE_SHELL:-ssh -o BatchMode=yes -o ServerAliveInterval=30}

set -u
fail() {
    echo "error: $*" >&2
    exit 2
}
[[ $# -gt 0 && $1 != -* ]] || fail "usage: $0 HOST[,HOST…] [flags of $SCRIPT]"
IFS=, read -ra hosts <<<"$1"
shift
[[ ${#hosts[@]} -gt 0 ]] || fail "no hosts"
[[ $PROCESSES_PER_HOST =~ ^[1-9][0-9]*$ ]] || fail "PROCESSES_PER_HOST=$PROCESSES_PER_HOST must be a number above 0"
[[ -f $SCRIPT ]] || fail "$PWD has no $SCRIPT: start where the folder recipes/ is"
[[ -n $ACCELERATE ]] || fail "no accelerate: activate the environment, or set ACCELERATE to its absolute path"
read -ra accelerate_flags <<<"$ACCELERATE_FLAGS"
read -ra remote_shell <<<"$REMOTE_SHELL"

variables=()
[[ -z $CPU ]] || variables+=(ACCELERATE_USE_CPU=true)
for name in $(compgen -e | grep -E '^(NCCL|GLOO|OMP)_') $PASS_ENV; do
    variables+=("$name=${!name-}")
done

# Runs on a host: "$1" is the folder, "$2" GRACE, the rest the command. ssh without a terminal does not end the remote
# command when ssh ends. So standard input is the lifeline: it ends when this script closes it or dies, or the connection
# breaks, and then the command is ended.
# shellcheck disable=SC2016
SUPERVISOR='
cd "$1" || exit 2
grace=$2
shift 2
exec 3<&0
set -m  # each job is a process group of its own
"$@" </dev/null 3<&- &
command=$!
{
    cat <&3 >/dev/null
    kill -TERM "$command"
    for ((second = 0; second < grace; second++)); do
        kill -0 "$command" || exit
        sleep 1
    done
    kill -KILL -- "-$command"
} 2>/dev/null &
lifeline=$!
set +m  # no notices of how jobs ended
disown "$lifeline"
exec 3<&-
wait "$command"
status=$?
kill -KILL -- "-$lifeline" 2>/dev/null
exit "$status"
'

# The words of one command as one line for whatever shell the host has: bash in single quotes, bash quoting within.
as_line() {
    local words
    words=$(printf ' %q' "$@")
    printf "bash -c '%s'" "${words//\'/\'\\\'\'}"
}

pipe=$(mktemp -u)
mkfifo "$pipe" || fail "no pipe in ${TMPDIR:-/tmp}"
trap 'rm -f "$pipe"' EXIT
exec 4<>"$pipe" # the only writer; nothing is ever written
end_all() { exec 4>&-; }

interrupted=
# shellcheck disable=SC2329
interrupt() {
    [[ -z $interrupted ]] || { # the second time
        kill -KILL "${children[@]}" 2>/dev/null
        exit "$1"
    }
    interrupted=$1
    echo "ending ${hosts[*]}" >&2
    end_all
}
trap 'interrupt 130' INT
trap 'interrupt 143' TERM HUP

children=()
for rank in "${!hosts[@]}"; do
    launch=(
        "$ACCELERATE" launch "${accelerate_flags[@]}"
        --num_machines "${#hosts[@]}" --num_processes "$((${#hosts[@]} * PROCESSES_PER_HOST))" --machine_rank "$rank"
        --main_process_ip "${hosts[0]##*@}" --main_process_port "$PORT"
        "$SCRIPT" --config "$CONFIG" "$@"
    )
    # A background job of a script ignores SIGINT, so Ctrl-C leaves the connections to say how the hosts ended.
    "${remote_shell[@]}" "${hosts[rank]}" \
        "$(as_line bash -c "$SUPERVISOR" host "$PWD" "$GRACE" env "${variables[@]}" "${launch[@]}")" <"$pipe" 4>&- &
    children+=($!)
done

status=0
while ((${#children[@]})); do
    wait -n "${children[@]}"
    code=$?
    running=()
    for child in "${children[@]}"; do
        if kill -0 "$child" 2>/dev/null; then
            running+=("$child")
            continue
        fi
        wait "$child"
        ended=$? # 127: it is the one that was waited for, and `code` is its status
        if ((!code && ended != 127)); then code=$ended; fi
    done
    # Without a child that ended it was a signal that interrupted the wait.
    if ((code && !status && ${#running[@]} < ${#children[@]})); then
        status=$code
        end_all
    fi
    children=("${running[@]}")
done
exit "${interrupted:-$status}"
