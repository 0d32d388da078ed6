#!/usr/bin/env bash
# Fills in launch/gke/jobset.yaml and applies it: a run on TPU slices of a GKE cluster.
#
#   launch/gke/submit.sh --name=NAME --image=IMAGE --accelerator=v5e --topology=4x4 \
#     [OPTIONS] -- COMMAND
#
#   --name=NAME            of the JobSet; required
#   --image=IMAGE          made and pushed by launch/image.sh; required
#   --accelerator=GEN      v4, v5e, v5p or v6e; required
#   --topology=AxB[xC]     of one slice; required
#   --slices=N             default 1; several need slices of several hosts
#   --chips-per-host=N     default 4 (or all, if fewer); 8 for a 2x4 on one host
#   --spot                 on spot nodes
#   --keys=NAME,...        API keys to take from the environment, as GEMINI_API_KEY;
#                          they become the Kubernetes secret NAME-keys
#   --secret=NAME          or a secret that is there; its entries become environment
#   --service-account=NAME Kubernetes service account with the right to the buckets
#   --max-restarts=N       default 100
#   --grace-seconds=N      time to save after SIGTERM, default 600
#   --namespace=NAME       default: default
#   --context=NAME         of kubectl, if not its current one
#   --out=FILE             writes the manifest there, and applies nothing
#   --dry-run              prints every command and runs none
#
# Needs a cluster with JobSet (0.6 or later) and node pools of that accelerator and
# topology: see docs/launching.md.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/shell.sh
. "$here/../shell.sh"

name="" image="" generation="" topology="" chips_per_host="" secret="" context="" out=""
service_account="" spot=false slices=1 max_restarts=100 grace_seconds=600
namespace=default
while (($#)); do
  case $1 in
  --name=*) name=${1#*=} ;;
  --image=*) image=${1#*=} ;;
  --accelerator=*) generation=${1#*=} ;;
  --topology=*) topology=${1#*=} ;;
  --slices=*) slices=${1#*=} ;;
  --chips-per-host=*) chips_per_host=${1#*=} ;;
  --spot) spot=true ;;
  --keys=*) read_keys "${1#*=}" ;;
  --secret=*) secret=${1#*=} ;;
  --service-account=*) service_account=${1#*=} ;;
  --max-restarts=*) max_restarts=${1#*=} ;;
  --grace-seconds=*) grace_seconds=${1#*=} ;;
  --namespace=*) namespace=${1#*=} ;;
  --context=*) context=${1#*=} ;;
  --out=*) out=${1#*=} ;;
  --dry-run) dry_run=true ;;
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

need --name "$name" my-run
need_name --name "$name" 40
need --image "$image" us-docker.pkg.dev/PROJECT/REPOSITORY/mappa_jax:tpu
[[ $image =~ ^[A-Za-z0-9_./:@-]+$ ]] || die "--image=$image: not the name of an image"
need --accelerator "$generation" v5e
need --topology "$topology" 4x4
need_number --slices "$slices"
need_number --max-restarts "$max_restarts"
need_number --grace-seconds "$grace_seconds"
need_name --namespace "$namespace" 63
if [[ -n $service_account ]]; then need_name --service-account "$service_account" 63; fi
if [[ -n $secret ]]; then need_name --secret "$secret" 63; fi
if [[ -n $secret ]] && ((${#keys[@]})); then
  die "--secret, --keys: give one of them"
fi
check_command gs

# https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus
case $generation in
v4) accelerator=tpu-v4-podslice axes=3 ;;
v5e) accelerator=tpu-v5-lite-podslice axes=2 ;;
v5p) accelerator=tpu-v5p-slice axes=3 ;;
v6e) accelerator=tpu-v6e-slice axes=2 ;;
*) die "--accelerator=$generation: expected v4, v5e, v5p or v6e" ;;
esac
if ((axes == 2)); then
  [[ $topology =~ ^(1x1|2x2|2x4|4x4|4x8|8x8|8x16|16x16)$ ]] ||
    die "--topology=$topology: expected 1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16 or 16x16"
else
  [[ $topology =~ ^[1-9][0-9]*x[1-9][0-9]*x[1-9][0-9]*$ ]] ||
    die "--topology=$topology: expected three axes, as in 2x2x4"
fi
chips=$((${topology//x/*}))
if [[ -z $chips_per_host ]]; then chips_per_host=$((chips < 4 ? chips : 4)); fi
need_number --chips-per-host "$chips_per_host"
if ((chips_per_host == 8)); then
  [[ $topology == 2x4 ]] || die "--chips-per-host=8: hosts of 8 chips come as 2x4 only"
elif ((chips_per_host != (chips < 4 ? chips : 4))); then
  die "--chips-per-host=$chips_per_host: expected 4 (or 8 for 2x4 on one host)"
fi
((chips % chips_per_host == 0)) ||
  die "--topology=$topology: $chips chips do not fill hosts of $chips_per_host"
hosts=$((chips / chips_per_host))
((slices == 1 || hosts > 1)) ||
  die "--slices=$slices: GKE joins slices of several hosts only: enlarge --topology"

# json WORD...: a list that YAML reads too. Kubernetes would expand $(NAME).
json() {
  local word text=""
  for word; do
    word=${word//"\\"/"\\\\"}
    word=${word//'"'/'\"'}
    # shellcheck disable=SC2016
    word=${word//'$('/'$$('}
    text+=", \"$word\""
  done
  printf '[%s]' "${text#, }"
}

# fill NAME VALUE: in the manifest.
fill() {
  if [[ -n $2 ]]; then
    manifest=${manifest//"@$1@"/"$2"}
  else
    manifest=$(grep -v "^ *@$1@\$" <<<"$manifest")
  fi
}

if ((${#keys[@]})); then secret=$name-keys; fi
manifest=$(<"$here/jobset.yaml")
fill NAME "$name"
fill MAX_RESTARTS "$max_restarts"
fill SLICES "$slices"
fill HOSTS "$hosts"
fill GRACE_SECONDS "$grace_seconds"
fill SERVICE_ACCOUNT "${service_account:+serviceAccountName: $service_account}"
fill ACCELERATOR "$accelerator"
fill TOPOLOGY "$topology"
if $spot; then fill SPOT 'cloud.google.com/gke-spot: "true"'; else fill SPOT ""; fi
fill IMAGE "$image"
fill KEYS "${secret:+"envFrom: [{secretRef: {name: $secret}}]"}"
fill CHIPS_PER_HOST "$chips_per_host"
fill COMMAND "$(json "${command[@]}")" # last: it may hold an @NAME@ of its own
manifest=$(grep -v '^#' <<<"$manifest")

if [[ -n $out ]]; then
  run_line "cat >$(quoted "$out") <<'MANIFEST'
$manifest
MANIFEST"
  exit
fi
need_tool kubectl "see https://kubernetes.io/docs/tasks/tools/"
cluster=("--namespace=$namespace")
if [[ -n $context ]]; then cluster+=("--context=$context"); fi
if ((${#keys[@]})); then
  work=$HOME/.cache/mappa_jax/launch/$name
  run install -d -m 700 "$work"
  if ! $dry_run; then trap 'rm -rf "$work"' EXIT; fi
  write_keys "$work/keys" '%s=%s\n'
  run kubectl delete secret "$secret" --ignore-not-found "${cluster[@]}"
  run kubectl create secret generic "$secret" "--from-env-file=$work/keys" \
    "${cluster[@]}"
  run rm -rf "$work"
fi
run_line "$(quoted kubectl apply --filename=- "${cluster[@]}") <<'MANIFEST'
$manifest
MANIFEST"
note "follow it: $(quoted kubectl logs --follow \
"--selector=jobset.sigs.k8s.io/jobset-name=$name,jobset.sigs.k8s.io/job-index=0,\
batch.kubernetes.io/job-completion-index=0" "${cluster[@]}")"
note "end it: $(quoted kubectl delete jobset "$name" "${cluster[@]}")"
