#!/usr/bin/env bash
# One run on the GPUs of one machine or of several: start the same line on each of them, from the project's folder.
#
#   NAME=first experiments/launch/torchrun.sh quickstart optim.steps=100
#   NAME=second NODES=2 HEAD=host0 GPUS=8 experiments/launch/torchrun.sh quickstart optim.batch_size=512
#
# NAME      what the run is called; started again with the same name and settings, it goes on where it stopped
# GPUS      processes on each machine (default: its GPUs, 1 without any)
# NODES     machines (default 1); HEAD is the name of one of them, PORT a free one there (default 29500)
# GRACE     seconds that processes have, once they are told to stop, to finish a step and save it (default 300)
# RESTARTS  how often torchrun may start the processes again when one of them fails (default 0)
# PYTHON    interpreter (default: python)
#
# torchrun ends with 1 where its processes end with 75 (docs/processes.md); what it says names their code.
set -euo pipefail

fail() {
    echo "error: $1" >&2
    exit 2
}

[[ -f train.py ]] || fail "start this in the folder that holds train.py"
[[ $# -gt 0 ]] || fail "name an experiment, such as quickstart"
[[ -n "${NAME:-}" ]] || fail "name the run: NAME=first $0 $*"

python=${PYTHON:-python}
nodes=${NODES:-1}
if [[ -z "${GPUS:-}" ]]; then
    GPUS=$({ nvidia-smi --list-gpus 2>/dev/null || true; } | wc -l)
    [[ $GPUS -gt 0 ]] || GPUS=1
fi
if [[ $nodes -eq 1 ]]; then
    endpoint=localhost:0
else
    [[ -n "${HEAD:-}" ]] || fail "NODES=$nodes: name one of the machines, HEAD=host0, the same on all of them"
    endpoint=$HEAD:${PORT:-29500}
fi

export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${GRACE:-300}
# A replaced shell hands Ctrl-C and SIGTERM to torchrun, and torchrun to its processes.
exec "$python" -m torch.distributed.run --nnodes "$nodes" --nproc-per-node "$GPUS" --max-restarts "${RESTARTS:-0}" \
    --rdzv-backend c10d --rdzv-endpoint "$endpoint" --rdzv-id "$NAME" \
    train.py "$@" "trainer.devices=$GPUS" "trainer.num_nodes=$nodes" --continue
