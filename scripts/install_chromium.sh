#!/usr/bin/env bash
# Chromium from Debian's packages, for the tests of report.html. Needs root.
set -euo pipefail
have() { command -v chromium > /dev/null; }
have && exit 0
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium > /dev/null
have
