#!/usr/bin/env bash
# The charting library of report.html from npm, by name and version, with its licences. Needs npm.
# Observable Plot (ISC) is made of D3 (ISC) and bundles isoformat (ISC), interval-tree-1d and
# binary-search-bounds (MIT).
set -euo pipefail
cd "$(dirname "$0")/.."
target=kvx/report/page/vendor
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fetch() { # name@version, then file and target name in pairs
  local archive
  archive=$(cd "$work" && npm pack --silent "$1" | tail -n 1)
  mkdir "$work/$archive.d"
  tar -xzf "$work/$archive" -C "$work/$archive.d" --strip-components=1
  shift
  while [ $# -gt 0 ]; do
    cp "$work/$archive.d/$1" "$target/$2"
    shift 2
  done
}
mkdir -p "$target"
fetch d3@7.9.2 dist/d3.min.js d3.min.js LICENSE LICENSE-d3.txt
fetch @observablehq/plot@0.6.17 dist/plot.umd.min.js plot.umd.min.js LICENSE LICENSE-plot.txt
fetch isoformat@0.2.1 LICENSE LICENSE-isoformat.txt
fetch interval-tree-1d@1.0.4 LICENSE LICENSE-interval-tree-1d.txt
fetch binary-search-bounds@2.0.5 LICENSE LICENSE-binary-search-bounds.txt
chmod 644 "$target"/*
(cd "$target" && sha256sum -- *.js LICENSE-* > SHA256SUMS)
