#!/usr/bin/env bash
# A Ray cluster inside a Slurm allocation, and one stage on it. Page: docs/launch/slurm.md
# Launch: sbatch --nodes=1 cluster/launch/slurm.sh ppo --config configs/ppo/7b_lora_zero3_8gpu.yaml run_dir=/shared/runs/ppo
#SBATCH --job-name=rlhf
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --exclusive
#SBATCH --time=12:00:00
#SBATCH --output=slurm-%j.log
# two minutes before the end the stage gets SIGTERM, finishes its step and saves
#SBATCH --signal=B:TERM@120
set -euo pipefail

if [ "$#" -lt 1 ]; then
    echo "usage: sbatch [--nodes=N] cluster/launch/slurm.sh STAGE --config FILE [key=value ...]" >&2
    exit 2
fi
cd "${SLURM_SUBMIT_DIR:?run this with sbatch}"
python=${RLHF_PYTHON:-$PWD/.venv/bin/python}
[ -x "$python" ] || { echo "$python is not there: run make setup, or set RLHF_PYTHON" >&2; exit 2; }

# other jobs may share a node: ports of our own, below those of Ray's workers
offset=$((SLURM_JOB_ID % 900))
port=$((6400 + offset))
dashboard_port=$((8300 + offset))

mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head_host=${hosts[0]}
# of several hosts the second one is asked: the first often knows itself by the loopback (127.0.1.1 on Debian)
if [ "${#hosts[@]}" -gt 1 ]; then
    head_address=${RLHF_HEAD_ADDRESS:-$(srun --nodes=1 --ntasks=1 --nodelist="${hosts[1]}" \
        getent ahostsv4 "$head_host" | awk 'NR == 1 {print $1}')} || true
    case "$head_address" in
    "" | 127.*)
        echo "${hosts[1]} knows $head_host by '$head_address', which is no address of another host:" \
            "set RLHF_HEAD_ADDRESS to the one of $head_host in the cluster's network" >&2
        exit 2
        ;;
    esac
else
    head_address=$(srun --nodes=1 --ntasks=1 --nodelist="$head_host" hostname --ip-address | awk '{print $1}')
fi
echo "head $head_host ($head_address:$port), ${#hosts[@]} node(s)"

# newer Slurm gives a step one CPU per task unless it is told again
cpus=${SLURM_CPUS_PER_TASK:+"--cpus-per-task=$SLURM_CPUS_PER_TASK"}
nodes=()
waiting=""
stage=""
export RAY_AUTH_TOKEN_PATH="$HOME/.ray/slurm-$SLURM_JOB_ID"
# shellcheck disable=SC2329  # the traps call these two
leave() {
    code=$?
    trap - EXIT TERM INT
    if [ "${#nodes[@]}" -gt 0 ]; then
        kill "${nodes[@]}" ${waiting:+"$waiting"} 2>/dev/null || true
        wait "${nodes[@]}" 2>/dev/null || true
    fi
    rm -f "$RAY_AUTH_TOKEN_PATH"
    exit "$code"
}
# shellcheck disable=SC2329
pass_on() {
    [ -n "$stage" ] || exit 143
    kill -TERM "$stage" 2>/dev/null || true
}
trap leave EXIT
trap pass_on TERM INT

# the token: one per job, a private file in the home directory that all nodes share, never on a command line
umask 077
export RAY_AUTH_MODE=token
"$python" -c "from cluster.auth import create_token; create_token()"

srun --nodes=1 --ntasks=1 ${cpus:+"$cpus"} --nodelist="$head_host" --overlap \
    "$python" -m cluster.start head --node-address "$head_address" --port "$port" \
    --dashboard-port "$dashboard_port" --block &
nodes+=("$!")
up=""
for ((n = 0; n < 60 && ${#up} == 0; n++)); do
    sleep 2
    "$python" -c "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 2)" \
        "$head_address" "$port" 2>/dev/null && up=yes
done
[ -n "$up" ] || { echo "the head at $head_address:$port did not come up within two minutes" >&2; exit 3; }
for host in "${hosts[@]:1}"; do
    srun --nodes=1 --ntasks=1 ${cpus:+"$cpus"} --nodelist="$host" --overlap \
        "$python" -m cluster.start worker --address "$head_address:$port" --block &
    nodes+=("$!")
done

# a stage that starts before the others have joined gets no more than the head's GPUs
"$python" -m cluster.joined --address "$head_address:$port" "${hosts[@]}" &
waiting=$!
while kill -0 "$waiting" 2>/dev/null; do
    for n in "${!nodes[@]}"; do
        kill -0 "${nodes[n]}" 2>/dev/null || { echo "the node on ${hosts[n]} ended before the stage began" >&2; exit 3; }
    done
    sleep 1
done
code=0
wait "$waiting" || code=$?
waiting=""
[ "$code" -eq 0 ] || exit "$code"

RAY_ADDRESS="$head_address:$port" "$python" -m rlhf "$@" placement.ray_address="$head_address:$port" &
stage=$!
# a signal interrupts wait; the stage then still has its step to finish
code=0
wait "$stage" || code=$?
while kill -0 "$stage" 2>/dev/null; do
    code=0
    wait "$stage" || code=$?
done
exit "$code"
