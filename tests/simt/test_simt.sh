#!/usr/bin/env bash
# test_simt.sh: the SIMT layer's own tests as one program of tests/run.sh. Last line: "N passed, N failed".
cd "$(dirname "$0")/../.." || exit 2
exec env -u MAKEFLAGS -u MAKELEVEL make -s -j2 -f tests/simt/simt.mk test-simt
