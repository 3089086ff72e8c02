#!/usr/bin/env bash
# Usage: scripts/docs.sh [--dry-run] [build | reference | figures | serve]
#
# The documentation site. `build`, the default, writes it to SITE from docs/ and mkdocs.yml: a folder that works
# without a server and asks nothing of any (open SITE/index.html). A link or heading that is not there, and a page
# that the navigation lacks, are errors.
# `reference` writes what the code says of itself into docs/: reference/, and the table of methods in methods.md.
# Run it after a change of flags, commands or scripts; a test says where it was forgotten.
# `figures` fills the tables of README and docs/ that tell results from docs/results (scripts/cls_books.sh reports).
# `serve` shows the site at ADDRESS and builds it again at each change.
#
# `EXTRAS=dev,docs bash scripts/setup.sh` installs what it needs.
#
# Knobs (environment variables):
#   SITE=site                  folder of the built site, default site/ in the project
#   ADDRESS=127.0.0.1:8000     of serve
#   PYTHON=                    the Python to build with, default that of the active environment, else .venv
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
parse_args "$@"
[ "${#EXTRA[@]}" = 0 ] || die "takes no flags of fairseq-train; see --help"

SITE=${SITE:-$ROOT/site}             # the built site
ADDRESS=${ADDRESS:-127.0.0.1:8000}   # where serve shows it
case $SITE in
  /*) ;;
  *) SITE=$PWD/$SITE ;;
esac
export NO_MKDOCS_2_WARNING=1 # mkdocs is pinned

needs_mkdocs() {
  "$PYTHON" -c 'import material' 2>/dev/null || [ "$DRY_RUN" = 1 ] ||
    die "mkdocs-material is not installed for $PYTHON; run EXTRAS=dev,docs bash scripts/setup.sh first"
}
case ${ARGS[*]+"${ARGS[*]}"} in
  '' | build)
    needs_mkdocs
    run "$PYTHON" -m mkdocs build --strict --config-file "$ROOT/mkdocs.yml" --site-dir "$SITE"
    ;;
  serve)
    needs_mkdocs
    run "$PYTHON" -m mkdocs serve --strict --config-file "$ROOT/mkdocs.yml" --dev-addr "$ADDRESS"
    ;;
  reference)
    peft_cli methods --write "$ROOT/docs/methods.md"
    run env "PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH}" "$PYTHON" "$ROOT/docs/tools/reference.py"
    ;;
  figures) run env "PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH}" "$PYTHON" "$ROOT/docs/tools/figures.py" ;;
  *) die "'${ARGS[*]}' is unknown; known are build, reference, figures and serve" ;;
esac
