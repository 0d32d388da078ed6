#!/usr/bin/env bash
# A run on the GPUs of a Slurm cluster: submits itself, and inside the job starts one
# process per GPU.
#
#   launch/slurm.sh --nodes=N --gpus-per-node=G --time=HH:MM:SS [OPTIONS] -- COMMAND
#
#   --nodes=N --gpus-per-node=G --time=LIMIT   required
#   --name=NAME              of the job, default mappa_jax
#   --partition=P --account=A
#   --cpus-per-task=N        per GPU, default 8
#   --venv=PATH              with the requirements, on a shared disk; default .venv here
#   --container-image=IMAGE  or a container (needs the pyxis plugin)
#   --container-mounts=SRC:DST,...
#   --keys=NAME,...          API keys that the run needs; refused if one is not set.
#                            Slurm hands the environment of the submission to the job
#   --grace-seconds=N        SIGTERM comes so long before the limit, default 600
#   --sbatch-flag=FLAG       one more flag for sbatch; may be repeated
#   --dry-run                prints every command, those of the job too, and runs none
#
# Before the time limit, and at a preemption, each process gets SIGTERM, saves and exits
# with 143; the job goes back into the queue, and the same command goes on from its
# --workdir. `scancel JOB` ends it for good.

# Slurm runs a copy of this script from a folder of its own, so the job is told where
# the repository is.
if [[ ${1:-} == --root=* ]]; then
  root=${1#--root=}
  shift
else
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
fi
# shellcheck source=launch/shell.sh
. "$root/launch/shell.sh"

nodes="" gpus="" limit="" name=mappa_jax partition="" account="" venv="" image=""
mounts="" cpus=8 grace_seconds=600 in_job=false
sbatch_flags=()
while (($#)); do
  case $1 in
  --nodes=*) nodes=${1#*=} ;;
  --gpus-per-node=*) gpus=${1#*=} ;;
  --time=*) limit=${1#*=} ;;
  --name=*) name=${1#*=} ;;
  --partition=*) partition=${1#*=} ;;
  --account=*) account=${1#*=} ;;
  --cpus-per-task=*) cpus=${1#*=} ;;
  --venv=*) venv=${1#*=} ;;
  --container-image=*) image=${1#*=} ;;
  --container-mounts=*) mounts=${1#*=} ;;
  --keys=*) read_keys "${1#*=}" ;;
  --grace-seconds=*) grace_seconds=${1#*=} ;;
  --sbatch-flag=*) sbatch_flags+=("${1#*=}") ;;
  --dry-run) dry_run=true ;;
  --in-job) in_job=true ;;
  -h | --help)
    usage "$0"
    exit
    ;;
  --)
    shift
    command=("$@")
    break
    ;;
  *) unknown "$1" ;;
  esac
  shift
done

need --nodes "$nodes" 2
need --gpus-per-node "$gpus" 8
need --time "$limit" 24:00:00
need_number --nodes "$nodes"
need_number --gpus-per-node "$gpus"
need_number --cpus-per-task "$cpus"
need_number --grace-seconds "$grace_seconds"
((grace_seconds <= 65535)) || die "--grace-seconds=$grace_seconds: expected up to 65535"
check_command shared
if [[ -n $venv && -n $image ]]; then
  die "--venv, --container-image: give one of them"
fi
if [[ -n $mounts && -z $image ]]; then
  die "--container-image is missing: --container-mounts belongs to it"
fi
if [[ -z $image && -z $venv ]]; then venv=$root/.venv; fi
if [[ -n $venv ]] && ! $dry_run && [[ ! -x $venv/bin/python ]]; then
  die "--venv=$venv: no bin/python there: make it, or use --container-image"
fi

# What both halves need to know.
size=("--nodes=$nodes" "--gpus-per-node=$gpus" "--cpus-per-task=$cpus")

submit() {
  local flags=("--job-name=$name" "${size[@]}" "--ntasks-per-node=$gpus" "--time=$limit"
    # To the processes of the run, and not to the script: Slurm's default.
    "--signal=TERM@$grace_seconds" --requeue --open-mode=append
    --output=%x-%j.log "--chdir=$root" --export=ALL)
  local again=("--root=$root" --in-job "${size[@]}" "--time=$limit")
  if [[ -n $partition ]]; then flags+=("--partition=$partition"); fi
  if [[ -n $account ]]; then flags+=("--account=$account"); fi
  if [[ -n $venv ]]; then again+=("--venv=$venv"); fi
  if [[ -n $image ]]; then again+=("--container-image=$image"); fi
  if [[ -n $mounts ]]; then again+=("--container-mounts=$mounts"); fi
  need_tool sbatch "run this on a login node of the cluster"
  run sbatch "${flags[@]}" "${sbatch_flags[@]}" "$root/launch/slurm.sh" "${again[@]}" \
    -- "${command[@]}"
}

# jax.distributed takes from Slurm one process per GPU: the process of local rank i uses
# GPU i, so each must see all GPUs of its node. A process that has saved and left must
# not take with it those that still save, whatever the cluster's default is.
in_job() {
  local code=0
  local flags=("${size[@]}" "--ntasks-per-node=$gpus" --gpu-bind=none
    --kill-on-bad-exit=0)
  if [[ -n $image ]]; then
    flags+=("--container-image=$image" --container-workdir=/app)
    if [[ -n $mounts ]]; then flags+=("--container-mounts=$mounts"); fi
  else
    export PATH=$venv/bin:$PATH
  fi
  run srun "${flags[@]}" "${command[@]}" || code=$?
  if $dry_run; then
    note "if that exits with 143 (saved, to go on):"
    run_line "scontrol requeue Incomplete \"\$SLURM_JOB_ID\""
  elif ((code == 143)); then
    # Incomplete: a job that was cancelled stays so.
    run scontrol requeue Incomplete "$SLURM_JOB_ID"
  fi
  exit "$code"
}

if $in_job; then
  in_job
fi
submit
if $dry_run; then
  note "in the job:"
  in_job
fi
