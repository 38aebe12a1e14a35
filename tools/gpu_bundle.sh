#!/bin/bash
# gpu_bundle.sh - builds build/gpu-bundle/: one folder, at most 55 MiB, that tests and times stagediff's CUDA kernels on any
# x86-64 Linux machine with an NVIDIA driver and CUDA 13's libraries, and needs nothing else of ours there.
# Host code is built for x86-64-v3 and linked statically but for libc, libm, libgomp (all there with glibc 2.36) and
# cuBLASLt; cmocka's small library travels along. The cpu side uses plain loops for its products (no BLAS travels).
set -e
cd "$(dirname "$0")/.."
out=build/gpu-bundle obj=build/bundle-obj
command -v "${NVCC:-/usr/local/cuda/bin/nvcc}" >/dev/null || { echo "gpu-bundle: needs nvcc (CUDA 13)" >&2; exit 2; }
commit=$(git rev-parse --short HEAD)$(git diff --quiet HEAD || echo +changes)
static="-l:libjansson.a -l:libsqlite3.a -l:libjpeg.a -l:libpng16.a -l:libpcre2-8.a -l:libz.a -static-libgcc -static-libstdc++ -fopenmp -lm -ldl -lpthread '-Wl,-rpath,\$\$ORIGIN/../lib'"
programs="$obj/cpu/stagediff $obj/cpu/tools/gpu_bundle/compare $obj/cuda/stagediff $obj/cuda/bench"
for t in tests/kernels/test_*.c; do programs="$programs $obj/cuda/${t%.c}"; done
make --no-print-directory -s -j"$(nproc)" B=$obj ARCH_FLAGS=-march=x86-64-v3 EXTRA_CFLAGS=-DSTAGEDIFF_NO_BLAS LIBS="$static" \
    GENCODE="-gencode arch=compute_90a,code=sm_90a -gencode arch=compute_80,code=compute_80" \
    CUDA_LIBS="-L${CUDA_HOME:-/usr/local/cuda}/lib64 -lcublasLt -l:libcudart_static.a -lrt" $programs

rm -rf $out
mkdir -p $out/bin $out/tests $out/lib $out/peers
cp $obj/cpu/stagediff $out/bin/stagediff-cpu
cp $obj/cuda/stagediff $out/bin/stagediff-cuda
cp $obj/cuda/bench $obj/cpu/tools/gpu_bundle/compare $out/bin/
cp $obj/cuda/tests/kernels/test_* $out/tests/
rm -f $out/tests/*.o $out/tests/*.d $out/tests/*.log $out/tests/*.status
strip $out/bin/* $out/tests/*
cp -L "$(ldconfig -p | awk '/libcmocka.so.0/ { print $NF; exit }')" $out/lib/
cp bench/peers/*.py $out/peers/
mkdir -p $out/world/data/images $out/tests/golden
cp -r tools/tinyworld/world/{clip,vlm} $out/world/
head -8 tools/tinyworld/world/data/vqa_test.jsonl >$out/world/data/few.jsonl
sed -n 's/.*"image": *"\([^"]*\)".*/\1/p' $out/world/data/few.jsonl | sort -u | while read -r f; do
    mkdir -p "$(dirname "$out/world/data/$f")" && cp "tools/tinyworld/world/data/$f" "$out/world/data/$f"
done
cp tests/golden/*.* $out/tests/golden/
cp tools/gpu_bundle/{run.sh,real_size.py,README.md} $out/
echo "$commit" >$out/COMMIT
chmod +x $out/run.sh
size=$(du -sm $out | cut -f1)
echo "gpu-bundle: $out, $size MiB, commit $commit. On the GPU machine: ./run.sh OUT [MINUTES]"
[ "$size" -le 55 ] || { echo "gpu-bundle: $size MiB is more than 55" >&2; exit 2; }
