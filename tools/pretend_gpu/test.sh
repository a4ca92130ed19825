#!/usr/bin/env bash
# The tests of tests/gpu that look at no values, on the pretend GPU; those of memory at several sizes of the GPU.
#
# Usage: test.sh FOLDER      FOLDER holds the environment, which is made if it is not there
#
# Ends with status 0 and one line where the environment cannot be had. No part can hang: each has its time.
set -uo pipefail
tool="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
folder="$(realpath -m "${1:?usage: test.sh FOLDER}")"
without() { echo "pretend-gpu: not run: $1"; exit 0; }

cd "$tool/../.."
if [ ! -x "$folder/run" ]; then
  for needed in g++ nm "${PYTHON:-python3.11}"; do
    command -v "$needed" >/dev/null || without "there is no $needed"
  done
  mkdir -p "$folder"
  timeout 300 "$tool/make.sh" "$folder" >"$folder/make.log" 2>&1 || {
    tail -n 3 "$folder/make.log"
    without "the environment could not be made in 5 minutes (see $folder/make.log)"
  }
fi

failed=0
tests() { # seconds, gigabytes, files
  local seconds="$1" gigabytes="$2"; shift 2
  echo "pretend-gpu: $gigabytes GB: $*"
  FAKE_GB="$gigabytes" timeout --kill-after=10 "$seconds" "$folder/run" -m pretend -m pytest -q -m gpu --show-capture=no \
    --tb=short -p no:cacheprovider "$@" || failed=1
}
tests 420 24 tests/gpu
for gigabytes in 4 8 12; do
  tests 120 "$gigabytes" tests/gpu/test_memory.py
done
exit "$failed"
