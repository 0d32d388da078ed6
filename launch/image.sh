#!/usr/bin/env bash
# The container image: see the Dockerfile.
#
#   launch/image.sh build --image=IMAGE [--accelerator=cpu|tpu|cuda] [--user=root]
#   launch/image.sh push --image=IMAGE
#   launch/image.sh run --image=IMAGE [OPTIONS] -- COMMAND
#
#   --image=IMAGE        for example us-docker.pkg.dev/PROJECT/REPOSITORY/mappa_jax:tpu
#   --accelerator=KIND   default cpu
#   --user=NAME          build: who runs in it, default mappa (not root)
#   --runs=FOLDER        run: becomes /app/runs; user 1000 must be able to write there
#   --keys=NAME,...      run: API keys to take from the environment, as GEMINI_API_KEY
#   --dry-run            prints every command and runs none

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
# shellcheck source=launch/shell.sh
. "$here/shell.sh"

image="" accelerator=cpu user=mappa runs=""
subcommand=${1:-}
(($#)) && shift
while (($#)); do
  case $1 in
  --image=*) image=${1#*=} ;;
  --accelerator=*) accelerator=${1#*=} ;;
  --user=*) user=${1#*=} ;;
  --runs=*) runs=${1#*=} ;;
  --keys=*) read_keys "${1#*=}" ;;
  --dry-run) dry_run=true ;;
  -h | --help) subcommand=--help ;;
  --)
    shift
    command=("$@")
    break
    ;;
  *) unknown "$1" ;;
  esac
  shift
done

check_options() {
  need --image "$image" mappa_jax:cpu
  [[ $accelerator =~ ^(cpu|tpu|cuda)$ ]] ||
    die "--accelerator=$accelerator: expected cpu, tpu or cuda"
  [[ $user == mappa || $user == root ]] || die "--user=$user: expected mappa or root"
  need_tool docker "see https://docs.docker.com/engine/install/"
}

# The sandbox makes namespaces inside the container: Docker's seccomp and AppArmor
# profiles forbid that, and so does its masked /proc.
run_it() {
  local flags=(--rm --init --security-opt=seccomp=unconfined
    --security-opt=apparmor=unconfined --security-opt=systempaths=unconfined) name
  case $accelerator in
  cuda) flags+=(--gpus=all) ;;
  tpu) flags+=(--privileged --network=host --user=root) ;; # its devices are root's
  esac
  if [[ -n $runs ]]; then flags+=("--volume=$runs:/app/runs"); fi
  for name in "${keys[@]}"; do flags+=("--env=$name"); done # the name: docker reads it
  run docker run "${flags[@]}" "$image" "${command[@]}"
}

case $subcommand in
build)
  check_options
  run docker build "--build-arg=ACCELERATOR=$accelerator" "--build-arg=RUN_AS=$user" \
    "--tag=$image" "$root"
  ;;
push)
  check_options
  run docker push "$image"
  ;;
run)
  check_options
  ((${#command[@]})) || die "the command is missing: put it last, after --"
  [[ -z $runs || $runs == /* ]] || die "--runs=$runs: expected an absolute path"
  run_it
  ;;
-h | --help) usage "$0" ;;
*) die "${subcommand:-no subcommand}: expected build, push or run" ;;
esac
