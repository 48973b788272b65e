#!/usr/bin/env bash
# One training on several machines. Run this on each of them, with the number of the machine (0, 1, ...) as NODE_RANK:
#
#   RUN=first NODES=2 NODE_RANK=0 MAIN=host0 GPUS=4 bash recipes/examples/torchrun.sh data=cifar10 F=0.3
#   RUN=first NODES=2 NODE_RANK=1 MAIN=host0 GPUS=4 bash recipes/examples/torchrun.sh data=cifar10 F=0.3
#
# or once under SLURM, which says all of it but RUN and GPUS:
#
#   RUN=first GPUS=4 sbatch --nodes 2 --ntasks-per-node 1 --gpus-per-node 4 --cpus-per-task 32 \
#       --wrap "srun bash recipes/examples/torchrun.sh data=cifar10 F=0.3"
#
# Killed: the same commands with ckpt_path=last go on. Each machine needs the data, this environment, and data.batch_size counts the samples of one process: the step of 2 x 4 processes
# sees 8 times as many (lr_batch_size scales the learning rate). A sample is trained and hidden by one process in an epoch.
set -euo pipefail

NODES=${NODES:-${SLURM_NNODES:-}} NODE_RANK=${NODE_RANK:-${SLURM_NODEID:-}}
: "${RUN:?is a name for the run, the same on every machine: its folder is outputs/RUN}"
: "${GPUS:?is the number of processes on each machine, one for each GPU}"
: "${NODES:?is the number of machines}" "${NODE_RANK:?is the number of this machine, from 0}"
if [ -z "${MAIN:-}" ] && [ -n "${SLURM_JOB_NODELIST:-}" ]; then
    MAIN=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
fi
: "${MAIN:?is the host name of machine 0, which the others reach}"
PORT=${PORT:-29500} # a free port of that machine
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # a pool of threads in each process would fight for the cores

# torchrun starts the processes, so Lightning starts none: it checks that there are num_nodes x devices of them.
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes "$NODES" --node-rank "$NODE_RANK" --nproc-per-node "$GPUS" --master-addr "$MAIN" --master-port "$PORT" \
    -m kakurenbo_recipes.train hydra.run.dir="outputs/$RUN" trainer.strategy=ddp trainer.devices="$GPUS" trainer.num_nodes="$NODES" "$@"
