# shellcheck shell=bash
# One line a step, with the seconds since the container's start, on stderr. Sourced.

# R: root of every path; not empty only in tests.
R=${DIND_K3S_TEST_ROOT-}
RUN=$R/run/dind-k3s
STARTED=${EPOCHREALTIME/[.,]/}

say() { # STEP TEXT
  local now=${EPOCHREALTIME/[.,]/}
  local ms=$(((now - STARTED) / 1000))
  printf 'dind-k3s %3d.%03ds  %-9s %s\n' $((ms / 1000)) $((ms % 1000)) "$1" "$2" >&2
}

warn() { # STEP TEXT
  say "$1" "warning: $2"
}

# Exit code 2: what was asked for cannot be done here; starting again does not help.
die() { # STEP TEXT
  say "$1" "error: $2"
  exit 2
}

# Whether a switch is on, by the words of plan.py. variables.py has refused every other word.
asked() { # NAME [DEFAULT]
  local value=${!1:-${2-0}}
  case ${value,,} in
    0 | false | no | off) return 1 ;;
  esac
}

# Print what a step did: it leaves its words in RESULT.
step() { # NAME FUNCTION [ARGUMENT...]
  local name=$1
  shift
  RESULT=
  "$@"
  say "$name" "$RESULT"
}

# A fact for the programs that run later (configure.py, doctor): KEY=VALUE lines.
note() { # KEY VALUE
  printf '%s=%s\n' "$1" "$2" >>"$RUN/facts"
}
