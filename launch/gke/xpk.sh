#!/usr/bin/env bash
# The xpk line: a run on a cluster that xpk made (pip install xpk).
#
#   launch/gke/xpk.sh --cluster=CLUSTER --name=NAME --tpu-type=v5litepod-16 \
#     --image=IMAGE [OPTIONS] -- COMMAND
#
#   --cluster=CLUSTER   made by `xpk cluster create`; required
#   --name=NAME         of the workload; required
#   --tpu-type=TYPE     for example v5litepod-16, v5p-8, v6e-16; required
#   --image=IMAGE       made by launch/image.sh with --user=root; required
#   --slices=N          default 1
#   --project=PROJECT --zone=ZONE   if not gcloud's own
#   --max-restarts=N    default 100: xpk starts again what exits with 143
#   --grace-seconds=N   time to save after SIGTERM, default 600
#   --dry-run           prints the command and runs nothing
#
# There is no --keys: xpk writes environment variables into the JobSet, where everybody
# with access to the cluster reads them. Judges that need a key go by submit.sh (a
# Kubernetes secret), or by judge.vertex_project, which needs none.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/shell.sh
. "$here/../shell.sh"

cluster="" name="" tpu_type="" image="" project="" zone=""
slices=1 max_restarts=100 grace_seconds=600
while (($#)); do
  case $1 in
  --cluster=*) cluster=${1#*=} ;;
  --name=*) name=${1#*=} ;;
  --tpu-type=*) tpu_type=${1#*=} ;;
  --image=*) image=${1#*=} ;;
  --slices=*) slices=${1#*=} ;;
  --project=*) project=${1#*=} ;;
  --zone=*) zone=${1#*=} ;;
  --max-restarts=*) max_restarts=${1#*=} ;;
  --grace-seconds=*) grace_seconds=${1#*=} ;;
  --dry-run) dry_run=true ;;
  --keys=*) die "--keys: xpk would show them to all: use launch/gke/submit.sh" ;;
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

need --cluster "$cluster" my-cluster
need --name "$name" my-run
need_name --name "$name" 40
need --tpu-type "$tpu_type" v5litepod-16
need --image "$image" us-docker.pkg.dev/PROJECT/REPOSITORY/mappa_jax:tpu
need_number --slices "$slices"
need_number --max-restarts "$max_restarts"
need_number --grace-seconds "$grace_seconds"
check_command gs
need_tool xpk "pip install xpk"

which=("--cluster=$cluster" "--workload=$name")
if [[ -n $project ]]; then which+=("--project=$project"); fi
if [[ -n $zone ]]; then which+=("--zone=$zone"); fi
run xpk workload create "${which[@]}" "--tpu-type=$tpu_type" "--num-slices=$slices" \
  "--docker-image=$image" "--max-restarts=$max_restarts" \
  "--termination-grace-period-seconds=$grace_seconds" \
  "--command=$(quoted "${command[@]}")"
note "end it: $(quoted xpk workload delete "${which[@]}")"
