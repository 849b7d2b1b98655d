#!/usr/bin/env bash
# Everything that must hold before a change lands: linters, types, C warnings, then the tests.
# On a fresh Debian or Ubuntu, as root or with sudo, it installs what is missing. Arguments go to pytest and leave the
# linters out.
set -euo pipefail
cd "$(dirname "$0")/.."
. examples/setup.sh

# Tests that may be skipped on a machine that has everything. Raise it only with a reason in the changelog.
SKIP_BUDGET=5

# What only the tests need: "command package" each.
missing=()
while read -r tool package; do
    command -v "$tool" >/dev/null || missing+=("$package")
done <<'TOOLS'
clang clang
ip iproute2
TOOLS
[ ${#missing[@]} = 0 ] || pccl_apt "${missing[@]}"
pccl_setup test

if [ $# -gt 0 ]; then
    exec python -m pytest "$@"
fi

echo "== ruff"
ruff check .
ruff format --check .

echo "== mypy"
mypy --strict pccl

echo "== clang"
read -ra dependency_flags <<<"$(pkg-config --cflags libuv libcrypto libxxhash)"
find csrc -name '*.c' -print0 |
    xargs -0 -n 8 -P 2 clang -fsyntax-only -std=c11 -D_GNU_SOURCE=1 -pthread -Icsrc "${dependency_flags[@]}" \
        -Wall -Wextra -Wconversion -Wshadow -Wstrict-prototypes -Werror

status=0
reports=$(mktemp -d)
trap 'rm -rf "$reports"' EXIT

# run_pytest NAME ARGUMENT...: 5 means that no test was chosen.
run_pytest() {
    local name=$1 code=0
    shift
    echo "== pytest: $name"
    python -m pytest -q --junit-xml="$reports/$name.xml" "$@" || code=$?
    [ $code = 0 ] || [ $code = 5 ] || status=$code
}
run_pytest parallel -m "not serial" -n 2
run_pytest serial -m serial

echo "== skipped"
python - "$SKIP_BUDGET" "$reports"/*.xml <<'COUNT' || status=1
import sys
from xml.etree import ElementTree

budget, reports = int(sys.argv[1]), sys.argv[2:]
cases = [case for report in reports for case in ElementTree.parse(report).iter("testcase")]
skipped = [(case, skip) for case in cases for skip in case.iter("skipped")]
for case, skip in skipped:
    print(f"{case.get('classname')}::{case.get('name')}: {skip.get('message')}")
print(f"{len(cases)} tests, {len(skipped)} skipped, budget {budget}")
sys.exit(len(skipped) > budget)
COUNT
exit $status
