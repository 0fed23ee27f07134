# shellcheck shell=sh
# SPDX-License-Identifier: MIT
# Sourced by the scripts of ./dev: runs a long command with one line of result and signs of life.
# Output goes to a log; a terminal sees the log's last line in place, anything else a line every
# 15 seconds.
logs=${VECINA_LOGS:-build/logs}
mkdir -p "$logs"
step_watcher=
trap 'if [ -n "$step_watcher" ]; then kill -KILL "$step_watcher" 2>/dev/null || true; fi' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

step_seconds() { echo $(($(date +%s) - step_start)); }

step_watch() {
  step_pause=15
  if [ -t 1 ]; then step_pause=1; fi
  # The sleep must not keep a pipe open after the script has ended.
  while sleep $step_pause >/dev/null 2>&1 && kill -0 $$ 2>/dev/null; do
    step_last=$(tail -c 300 "$step_log" 2>/dev/null | tr '\r' '\n' | grep . | tail -n 1 |
      cut -c 1-64) || true
    if [ -t 1 ]; then
      printf '\r        %s: %s s  %s\033[K' "$step_label" "$(step_seconds)" "$step_last"
    else
      printf '        %s: %s s  %s\n' "$step_label" "$(step_seconds)" "$step_last"
    fi
  done
}

# step LABEL COMMAND [ARGUMENT...]: status of the command; its output is in $step_log.
step() {
  step_label=$1
  shift
  step_log=$logs/$(printf '%s' "$step_label" | tr -c 'A-Za-z0-9' '_').log
  step_start=$(date +%s)
  step_status=0
  step_watch &
  step_watcher=$!
  "$@" >"$step_log" 2>&1 </dev/null || step_status=$?
  # KILL: a shell that has only just started the watcher can lose TERM to a trap of its own.
  kill -KILL "$step_watcher" 2>/dev/null || true
  wait "$step_watcher" 2>/dev/null || true
  step_watcher=
  if [ -t 1 ]; then printf '\r\033[K'; fi
  if [ $step_status = 0 ]; then
    step_note=$(sed -n 's/^not checked/, &/p' "$step_log" | head -n 1)
    printf 'ok      %s (%s s)%s\n' "$step_label" "$(step_seconds)" "$step_note"
  else
    # Without what ninja says of its successes.
    grep -vE '^\[[0-9]+/[0-9]+\] [A-Z][a-z]+ing ' "$step_log" | tail -n 60 || true
    printf 'FAILED  %s (%s s), log in %s\n' "$step_label" "$(step_seconds)" "$step_log"
  fi
  return $step_status
}
