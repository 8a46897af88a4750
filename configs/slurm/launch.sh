#!/bin/bash
# launch.command: bash configs/slurm/launch.sh. Within a Slurm allocation: one torchrun per machine, one process per GPU.
# All machines must see the project's folder. A process that dies is started again with all others, up to 3 times, by
# torchrun; a machine that dies ends this command, and launch.retries starts it again if the allocation still has enough.
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun --ntasks-per-node 1 torchrun \
    --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}" --max-restarts 3 \
    --rdzv-backend c10d --rdzv-endpoint "$head:${EMU_PORT:-29500}" --rdzv-id "$SLURM_JOB_ID" "$@" &
srun=$!
# srun passes TERM on to the processes, but not INT, which `emu` sends
trap 'kill -TERM "$srun"' INT TERM
wait "$srun"
code=$?
while kill -0 "$srun" 2> /dev/null; do # the trap ended the wait before
    wait "$srun"
    code=$?
done
exit "$code"
