#!/usr/bin/env bash
# The half of tpu_vm.sh that runs on each host of a TPU.
#
#   worker.sh install [--python=3.11] [--dry-run]
#   worker.sh start [--dry-run] -- COMMAND   in a session of its own: it outlives ssh
#   worker.sh idle                           succeeds if nothing runs
#   worker.sh state                          never started, running or exited: a line
#   worker.sh log                            from its beginning, and on
#   worker.sh stop [--dry-run]               SIGTERM: the run saves and exits with 143
#
# Keeps in ~/.mappa_jax: venv, keys.env (0600), run.log, run.pid, child.pid, exit_code.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/shell.sh
. "$here/shell.sh"
root=$(dirname "$here")

state=$HOME/.mappa_jax
python=3.11
subcommand=${1:-}
(($#)) && shift
while (($#)); do
  case $1 in
  --python=*) python=${1#*=} ;;
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

# The pid of the run, if it is alive and is ours: numbers are used again.
running() {
  local pid
  pid=$(cat "$state/run.pid" 2>/dev/null) || return 1
  [[ -n $pid && -r /proc/$pid/cmdline ]] &&
    tr '\0' ' ' <"/proc/$pid/cmdline" | grep -q 'worker.sh supervise' &&
    echo "$pid"
}

install_all() {
  # The images of TPU VMs have an older Python: uv brings its own.
  run mkdir -p -m 700 "$state"
  run sudo apt-get -o DPkg::Lock::Timeout=600 update -qq
  run sudo apt-get -o DPkg::Lock::Timeout=600 install -y -qq bubblewrap libseccomp2
  run env PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
  run python3 -m uv venv --quiet --clear --python="$python" "$state/venv"
  run python3 -m uv pip install --quiet --python="$state/venv/bin/python" \
    --requirement "$root/requirements.txt" --editable "${root}[tpu]"
  run touch "$state/installed"
}

start() {
  local pid _
  ((${#command[@]})) || die "the command is missing: put it last, after --"
  idle
  run mkdir -p -m 700 "$state"
  run rm -f "$state/run.pid" "$state/child.pid" "$state/exit_code"
  run_line "setsid --fork bash $(quoted "$here/worker.sh" supervise -- "${command[@]}")\
 >>$(quoted "$state/run.log") 2>&1 </dev/null"
  if $dry_run; then return; fi
  for _ in {1..100}; do
    if pid=$(running); then
      echo "running, process $pid"
      return
    fi
    [[ ! -e $state/exit_code ]] || break
    sleep 0.1
  done
  show_state
}

# In the session of its own: the command, its keys, and what became of it.
supervise() {
  local child code=0
  echo $$ >"$state/run.pid"
  cd "$root"
  if [[ -e $state/keys.env ]]; then
    chmod 600 "$state/keys.env"
    # shellcheck source=/dev/null
    . "$state/keys.env"
  fi
  export PATH=$state/venv/bin:$PATH
  echo "== $(date -u +%FT%TZ): $(quoted "${command[@]}")"
  # A host that shuts down signals every process, the run too, which should be asked
  # once: so this one only lives on until it is through. That ends `wait` early.
  trap : TERM
  "${command[@]}" &
  child=$!
  echo "$child" >"$state/child.pid"
  while kill -0 "$child" 2>/dev/null; do wait "$child" || true; done
  wait "$child" || code=$?
  echo "== $(date -u +%FT%TZ): exit code $code"
  echo "$code" >"$state/exit_code"
}

idle() {
  local pid
  if pid=$(running); then
    die "$(hostname): a run is under way (process $pid): let it end, or stop it first"
  fi
}

show_state() {
  local pid
  if pid=$(running); then
    echo "$(hostname): running, process $pid"
  elif [[ -e $state/exit_code ]]; then
    echo "$(hostname): exited with $(<"$state/exit_code")"
  elif [[ -e $state/run.log ]]; then
    echo "$(hostname): ended without an exit code (the host went down)"
  else
    echo "$(hostname): never started"
  fi
}

stop() {
  local pid
  if $dry_run; then
    run_line "kill -TERM \"\$(cat $(quoted "$state/child.pid"))\""
    return
  fi
  if pid=$(running); then
    while [[ ! -s $state/child.pid ]] && running >/dev/null; do sleep 0.1; done
    run kill -TERM "$(<"$state/child.pid")" || true # it may have ended just now
    while running >/dev/null; do sleep 0.2; done
  fi
  show_state
}

case $subcommand in
install) install_all ;;
start) start ;;
supervise) supervise ;;
idle) idle ;;
state) show_state ;;
log) run tail -n +1 -F "$state/run.log" ;;
stop) stop ;;
-h | --help) usage "$0" ;;
*)
  die "${subcommand:-no subcommand}: expected install, start, idle, state, log or stop"
  ;;
esac
