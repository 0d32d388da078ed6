#!/usr/bin/env bash
# A run on a Cloud TPU VM, or on a queued resource of one or more slices.
#
#   launch/tpu_vm.sh SUBCOMMAND --name=NAME --zone=ZONE [OPTIONS] [-- COMMAND]
#
#   create    the TPU VM, or with --queued the request, then waits until it is there
#   copy      this repository to every host, as ~/mappa_jax
#   install   Python, the requirements and bubblewrap on every host
#   run       COMMAND on every host, in a session that outlives the ssh connection
#   log       host 0's log, from its beginning and on (Ctrl-C leaves the run alone)
#   status    of the resource, and of the run on every host
#   stop      SIGTERM on every host: the run saves and exits with 143
#   resume    after a preemption: recreates what is gone, copies, installs, and runs
#             COMMAND again, which goes on from its --workdir
#   delete    the resource; only this ends the costs
#
# Options of all:
#   --name=NAME --zone=ZONE   of the TPU; required
#   --project=PROJECT         if not gcloud's own
#   --queued                  NAME is a queued resource; the same for every subcommand
#   --internal-ip             ssh to internal addresses (from within the network)
#   --dry-run                 prints every command and runs none
# Options of create and resume:
#   --accelerator-type=TYPE   for example v5litepod-16, v5p-8, v6e-8; required
#   --runtime-version=V       if not the one that suits the type
#   --spot                    cheaper, and may be taken away at any time
#   --slices=N                with --queued: N slices in one run
#   --service-account=EMAIL   with the right to the buckets
#   --create-flag=FLAG        one more flag for gcloud's create; may be repeated
# Options of copy and resume:
#   --source=head|tree        the last commit (default), or the files as they are now
# Options of install and resume:
#   --python=VERSION          default 3.11
# Options of run and resume:
#   --keys=NAME,...           API keys to take from the environment, as GEMINI_API_KEY;
#                             they go to a file that only its owner reads, on each host

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
# shellcheck source=launch/shell.sh
. "$here/shell.sh"

name="" zone="" project="" accelerator_type="" runtime_version="" service_account=""
queued=false spot=false internal_ip=false source=head python=3.11 slices=1
create_flags=()
subcommand=${1:-}
(($#)) && shift
while (($#)); do
  case $1 in
  --name=*) name=${1#*=} ;;
  --zone=*) zone=${1#*=} ;;
  --project=*) project=${1#*=} ;;
  --accelerator-type=*) accelerator_type=${1#*=} ;;
  --runtime-version=*) runtime_version=${1#*=} ;;
  --service-account=*) service_account=${1#*=} ;;
  --create-flag=*) create_flags+=("${1#*=}") ;;
  --queued) queued=true ;;
  --spot) spot=true ;;
  --slices=*) slices=${1#*=} ;;
  --internal-ip) internal_ip=true ;;
  --source=*) source=${1#*=} ;;
  --python=*) python=${1#*=} ;;
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

at=()       # which project and zone
kind=()     # the gcloud group
everyone=() # flags for every host
first=()    # flags for host 0
work=$HOME/.cache/mappa_jax/launch/$name
worker='bash ~/mappa_jax/launch/worker.sh' # on a host

check_options() {
  need --name "$name" my-tpu
  need_name --name "$name" 40
  need --zone "$zone" us-west4-a
  need_number --slices "$slices"
  [[ $source =~ ^(head|tree)$ ]] || die "--source=$source: expected head or tree"
  $queued || ((slices == 1)) ||
    die "--slices=$slices: several slices come as a queued resource: add --queued"
  need_tool gcloud "see https://cloud.google.com/sdk/docs/install"
  at=("--zone=$zone")
  if [[ -n $project ]]; then at+=("--project=$project"); fi
  everyone=(--worker=all) first=(--worker=0)
  if $queued; then
    kind=(queued-resources)
    everyone+=(--node=all) first+=(--node=0)
  else
    kind=(tpu-vm)
  fi
  if $internal_ip; then everyone+=(--internal-ip) first+=(--internal-ip); fi
}

check_create() {
  need --accelerator-type "$accelerator_type" v5litepod-16
  if [[ -n $runtime_version ]]; then return; fi
  # https://cloud.google.com/tpu/docs/runtimes
  case $accelerator_type in
  v6e-*) runtime_version=v2-alpha-tpuv6e ;;
  v5p-*) runtime_version=v2-alpha-tpuv5 ;;
  v5litepod-*) runtime_version=v2-alpha-tpuv5-lite ;;
  v4-* | v3-* | v2-*) runtime_version=tpu-ubuntu2204-base ;;
  *) die "--runtime-version is missing: none is known for $accelerator_type" ;;
  esac
}

tpus() { run gcloud compute tpus "${kind[@]}" "$@" "${at[@]}"; }

# on WHOM COMMAND: WHOM is everyone or first.
on() {
  local -n whom=$1
  tpus ssh "$name" "${whom[@]}" --command="$2"
}

# A list and not a describe: an empty answer means gone, where an error means an error.
read_state() {
  local field=state
  if $queued; then field=state.state; fi
  gcloud compute tpus "${kind[@]}" list "--filter=name~/$name\$" \
    "--format=value($field)" "${at[@]}"
}

create() {
  local flags=("--accelerator-type=$accelerator_type")
  if $spot; then flags+=(--spot); fi
  if [[ -n $service_account ]]; then
    flags+=("--service-account=$service_account"
      --scopes=https://www.googleapis.com/auth/cloud-platform)
  fi
  flags+=("${create_flags[@]}")
  if ! $queued; then
    tpus create "$name" "--version=$runtime_version" "${flags[@]}"
  elif ((slices == 1)); then
    tpus create "$name" "--node-id=$name" "--runtime-version=$runtime_version" \
      "${flags[@]}"
  else
    tpus create "$name" "--node-count=$slices" "--node-prefix=$name" \
      "--runtime-version=$runtime_version" "${flags[@]}"
  fi
  await_ready
  local same=("--name=$name" "${at[@]}")
  if $queued; then same+=(--queued); fi
  note "it costs money until: launch/tpu_vm.sh delete $(quoted "${same[@]}")"
}

await_ready() {
  local now
  if $dry_run; then
    note "every 30 seconds, until it says READY (TPU VM) or ACTIVE (queued resource):"
    show_resource
    return
  fi
  while now=$(read_state); do
    case $now in
    READY | ACTIVE) return ;;
    FAILED | SUSPENDED | PREEMPTED | TERMINATED)
      die "$name is $now: see status, then resume (which creates it anew) or delete"
      ;;
    "") die "$name is gone: create it again" ;;
    esac
    note "$name: $now"
    sleep 30
  done
  die "gcloud could not say what became of $name"
}

show_resource() {
  if $queued; then
    tpus describe "$name" "--format=value(state.state)"
  else
    tpus describe "$name" "--format=value(state,health)"
  fi
}

delete() {
  local flags=(--quiet)
  if $queued; then flags+=(--force); fi # its nodes too
  tpus delete "$name" "${flags[@]}"
}

begin_work() {
  run install -d -m 700 "$work"
  if ! $dry_run; then trap 'rm -rf "$work"' EXIT; fi
}

copy() {
  local archive=$work/code.tar.gz deleted=""
  begin_work
  if [[ $source == head ]]; then
    run git -C "$root" archive --format=tar.gz "--output=$archive" HEAD
  else
    if ! $dry_run; then deleted=$(git -C "$root" ls-files --deleted); fi
    [[ -z $deleted ]] ||
      die "--source=tree: ${deleted%%$'\n'*} is gone: git rm it, or restore it"
    # What git ignores (.venv, runs, .cache, files with keys) stays here.
    run_line "git -C $(quoted "$root") ls-files -z --cached --others\
 --exclude-standard | tar --create --gzip --file=$(quoted "$archive")\
 --directory=$(quoted "$root") --null --files-from=-"
  fi
  on everyone "if [ -e ~/mappa_jax ]; then $worker idle; fi"
  tpus scp "$archive" "$name:mappa_jax.tar.gz" "${everyone[@]}"
  on everyone "rm -rf ~/mappa_jax && mkdir ~/mappa_jax &&\
 tar -xzf ~/mappa_jax.tar.gz -C ~/mappa_jax"
  run rm -rf "$work"
}

install_all() {
  on everyone "$worker install $(quoted "--python=$python")"
}

send_keys() {
  begin_work
  write_keys "$work/keys.env" 'export %s=%q\n'
  on everyone 'mkdir -p -m 700 ~/.mappa_jax && rm -f ~/.mappa_jax/keys.env'
  tpus scp "$work/keys.env" "$name:.mappa_jax/keys.env" "${everyone[@]}"
  run rm -rf "$work"
}

run_command() {
  on everyone "$worker idle" # before any host starts
  if ((${#keys[@]})); then send_keys; fi
  on everyone "$worker start -- $(quoted "${command[@]}")"
}

resume() {
  local now=""
  if $dry_run; then
    note "asked first; what follows is done if the answer is empty, PREEMPTED,"
    note "TERMINATED, FAILED or SUSPENDED (the delete, unless it is empty):"
    run gcloud compute tpus "${kind[@]}" list "--filter=name~/$name\$" "${at[@]}"
    delete
  else
    now=$(read_state)
    while [[ $now == *ING* && $now != *WAITING* ]]; do # SUSPENDING, DELETING, ...
      note "$name: $now"
      sleep 30
      now=$(read_state)
    done
  fi
  case $now in
  "") create ;;
  PREEMPTED | TERMINATED | FAILED | SUSPENDED)
    delete
    create
    ;;
  READY | ACTIVE | ACCEPTED | WAITING_FOR_RESOURCES) await_ready ;;
  *) die "$name is $now: start it or delete it, then resume" ;;
  esac
  if $dry_run || ! on everyone 'test -e ~/.mappa_jax/installed'; then
    copy
    install_all
  fi
  run_command
}

case $subcommand in
create)
  check_options
  check_create
  create
  ;;
copy | delete)
  check_options
  "$subcommand"
  ;;
install)
  check_options
  install_all
  ;;
run)
  check_options
  check_command gs
  run_command
  ;;
resume)
  check_options
  check_create
  check_command gs
  resume
  ;;
log)
  check_options
  on first "$worker log"
  ;;
status)
  check_options
  show_resource
  on everyone "$worker state"
  ;;
stop)
  check_options
  on everyone "$worker stop"
  ;;
-h | --help) usage "$0" ;;
*)
  die "${subcommand:-no subcommand}: expected create, copy, install, run, log, status,\
 stop, resume or delete"
  ;;
esac
