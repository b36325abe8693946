#!/usr/bin/env bash
# The compiled modules under AddressSanitizer: their own tests and the differential ones, with every access to memory
# checked, and leaks at the end. It works in a copy of the tree and leaves nothing behind. About 2 minutes; needs gcc
# with its libasan, and in Python what the tests need, setuptools and Cython.
#
#   tests/asan.sh [arguments for pytest]         PYTHON chooses the interpreter
#
# The rule: what is checked must be seen. So the modules are built unoptimised (ZMQRAFT_DEBUG); they must turn out to be
# instrumented, and to be those that are loaded; and PYTHONMALLOC=malloc gives each object of Python memory of its own,
# since behind a bytes object in one of Python's pools comes the next one, and reading it would be no error.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset ZMQRAFT_NO_EXTENSIONS

libasan=$(gcc -print-file-name=libasan.so)
# Where it has none, gcc prints the name alone.
[ -e "$libasan" ] || { echo "asan.sh: no libasan.so beside gcc: install it" >&2; exit 1; }

mkdir "$work/tree"
tar -C "$root" --exclude=./.git --exclude=./.venv --exclude=./build --exclude=./dist --exclude='*.so' \
  --exclude=__pycache__ --exclude='./.*_cache' -c . | tar -C "$work/tree" -x
cd "$work/tree"
CC=gcc CFLAGS=-fsanitize=address LDFLAGS=-fsanitize=address ZMQRAFT_DEBUG=1 ZMQRAFT_REQUIRE_EXTENSIONS=1 \
  "$python" setup.py -q build_ext --inplace -j 2 >"$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
for source in _speedups/*.pyx; do
  name=$(basename "$source" .pyx)
  # Not in a pipe: grep would leave before nm is done.
  grep -q __asan_ <<<"$(nm -D "_speedups/$name".*.so)" || { echo "asan.sh: $name is not instrumented" >&2; exit 1; }
done

tests=(
  tests/protocol/test_entry.py tests/protocol/test_frames.py tests/protocol/test_frames_differential.py
  tests/protocol/test_log_index_differential.py tests/protocol/test_schema.py tests/storage/test_request_index.py
  tests/storage/test_checksums.py tests/server/test_commit_loop.py tests/protocol/test_zmq_io_differential.py
)
export PYTHONPATH=. PYTHONMALLOC=malloc ZMQRAFT_REQUIRE_EXTENSIONS=1
export ASAN_OPTIONS=detect_leaks=1
LD_PRELOAD=$libasan "$python" -c '
import pathlib, zmqraft, zmqraft._speedups.frames as frames
assert pathlib.Path(frames.__file__).is_relative_to(pathlib.Path.cwd()), frames.__file__'
# What the sanitizer writes before it ends the process must not be in a file that pytest would have shown later.
LD_PRELOAD=$libasan "$python" -m pytest -q --capture=sys -p no:cacheprovider "${tests[@]}" "$@"
