# What the launch scripts share; sourced, not run.
# shellcheck shell=bash

set -euo pipefail

if ((BASH_VERSINFO[0] < 5)); then
  echo "error: bash ${BASH_VERSION}: 5 or later is needed (brew install bash)" >&2
  exit 2
fi

dry_run=false
keys=()    # names of environment variables, never their values
command=() # what stands after --

# die MESSAGE: refuses, with the exit code that the Python scripts use for it.
die() {
  printf 'error: %s\n' "$1" >&2
  exit 2
}

# usage FILE: the comment at its head.
usage() {
  awk 'NR == 1 { next } !/^#/ { exit } { sub(/^# ?/, ""); print }' "$1"
}

# unknown WORD: an argument that no option matches.
unknown() {
  case $1 in
  --*=*) die "${1%%=*}: no such option; see --help" ;;
  --*) die "$1: no such option, or it needs a value (--option=value); see --help" ;;
  *) die "$1: unexpected; options have the form --option=value, see --help" ;;
  esac
}

# need OPTION VALUE EXAMPLE: refuses an option that was not given.
need() {
  [[ -n $2 ]] || die "$1 is missing: give it, for example $1=$3"
}

# need_number OPTION VALUE
need_number() {
  [[ $2 =~ ^[1-9][0-9]*$ ]] || die "$1=$2: expected a whole number from 1"
}

# need_name OPTION VALUE LONGEST: what Google Cloud and Kubernetes take as a name.
need_name() {
  if ! [[ $2 =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] || ((${#2} > $3)); then
    die "$1=$2: expected at most $3 of a-z, 0-9 and -, beginning with a letter"
  fi
}

# need_tool TOOL REMEDY: not asked of a dry run, which starts nothing.
need_tool() {
  $dry_run || command -v "$1" >/dev/null || die "$1 is not installed: $2"
}

# quoted WORD...: one line that a shell reads back as the same words.
quoted() {
  local LC_ALL=C word out="" quote="'\\''"
  for word; do
    if [[ $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]]; then
      out+=" $word"
    else
      out+=" '${word//"'"/"$quote"}'"
    fi
  done
  printf '%s' "${out# }"
}

# run WORD...: the command, shown first; a dry run only prints it.
run() {
  if $dry_run; then
    printf '%s\n' "$(quoted "$@")"
  else
    printf '+ %s\n' "$(quoted "$@")" >&2
    "$@"
  fi
}

# run_line LINE: likewise for what needs a shell (pipes, redirections).
run_line() {
  if $dry_run; then
    printf '%s\n' "$1"
  else
    printf '+ %s\n' "$1" >&2
    eval "$1"
  fi
}

# note TEXT: for a person; a comment among the printed commands.
note() {
  if $dry_run; then printf '# %s\n' "$1"; else printf '%s\n' "$1" >&2; fi
}

# read_keys LIST: the names in A,B,..., each of which must be set.
read_keys() {
  local name
  IFS=, read -ra keys <<<"$1"
  for name in "${keys[@]}"; do
    [[ $name =~ ^[A-Z][A-Z0-9_]*$ ]] ||
      die "--keys: expected names of environment variables, as in GEMINI_API_KEY"
    [[ -n ${!name:-} ]] || die "--keys: $name is not set: export it first"
    [[ ${!name} != *$'\n'* ]] || die "--keys: $name holds a line break"
  done
}

# write_keys FILE FORMAT: a file that only its owner reads. The values pass from the
# environment to the file through a builtin, so that no command line holds them.
write_keys() {
  local names
  names=$(quoted "${keys[@]}")
  run_line "(umask 077; for name in $names; do\
 printf $(quoted "$2") \"\$name\" \"\${!name}\"; done >$(quoted "$1"))"
}

# check_command KIND: what stands after --. KIND says where a workdir must lie so that
# every host, and the run after a preemption, finds it: gs, or shared.
check_command() {
  local word workdir="" trains=false said=false
  ((${#command[@]})) ||
    die "the command is missing: put it last, after --: -- python launch/train.py ..."
  for word in "${command[@]}"; do
    case $word in
    *$'\n'*) die "the command holds a line break" ;;
    *_API_KEY=* | *_TOKEN=*)
      die "${word%%=*}: a key in a command is seen by all: use --keys"
      ;;
    *launch/train.py) trains=true ;;
    --workdir=*) workdir=${word#*=} ;;
    --distributed | --distributed=* | --nodistributed) said=true ;;
    --coordinator_address=*) said=true ;;
    esac
  done
  $trains || return 0
  case $1 in
  gs)
    [[ $workdir == gs://?* ]] ||
      die "--workdir=$workdir: expected --workdir=gs://BUCKET/FOLDER: the machine's own\
 disk goes with it, and the run could not resume"
    ;;
  shared)
    [[ $workdir == gs://?* || $workdir == /* ]] ||
      die "--workdir=$workdir: expected an absolute path that all nodes share, or gs://"
    ;;
  esac
  $said || command+=(--distributed)
}
