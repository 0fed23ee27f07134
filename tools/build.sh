#!/bin/sh
# SPDX-License-Identifier: MIT
# Builds the release into build/. Usage: build.sh [TARGET...]. A folder that was configured before
# keeps its options; a new one gets what a user wants: no tests, warnings are no errors.
set -eu
cd "$(dirname "$0")/.."
. tools/step.sh

if [ ! -f build/build.ninja ]; then
  step configure cmake --preset release -DVECINA_BUILD_TESTS=OFF -DVECINA_WERROR=OFF
fi
step build ninja -C build "$@"
