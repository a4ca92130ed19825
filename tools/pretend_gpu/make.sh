#!/usr/bin/env bash
# Makes FOLDER with FOLDER/run, which runs Python on the pretend GPU (see README.md).
#
# Usage: make.sh FOLDER [PROJECT]     PROJECT: a checkout, for its requirements; the present folder if not given
#
# Needs gcc, g++, nm, Python 3.11 (or PYTHON=...), the package index and 6 GB. Doing it again costs seconds: the
# environment is kept, the stubs are made anew. The headers come from the wheels; CUDA_INCLUDE=DIR names others.
set -euo pipefail

tool="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
out="$(realpath -m "${1:?usage: make.sh FOLDER [PROJECT]}")"
project="$(realpath "${2:-.}")"
[ -e "$project/constraints.txt" ] || { echo "$project has no constraints.txt: run this in a checkout, or name one" >&2; exit 2; }
python="$out/venv/bin/python"
stubs="$out/stubs"

pinned() { sed -n "s/^$1==//p" "$project/constraints.txt"; }
pip() { "$python" -m pip install -qq --disable-pip-version-check -c "$project/constraints.txt" "$@"; }

make_environment() { # in the order of the project's Makefile, without what builds documents or looks at style
  "${PYTHON:-python3.11}" -m venv "$out/venv"
  # '===' compares the text: a wheel '2.13.0+cpu' that lies on some disk is no '2.13.0', whose wheel for Linux has CUDA.
  pip "torch===$(pinned torch)" numpy setuptools wheel
  pip --no-deps "torchvision===$(pinned torchvision)" mmengine
  pip --no-deps --no-build-isolation basicsr
  pip -r "$project/requirements.txt" pytest pytest-xdist hypothesis einops
  pip --no-deps spandrel
  # The libraries' headers include headers of the compiler and of CCCL, which torch does not ask for.
  pip "cuda-toolkit[crt,cccl]==$("$python" -c 'from importlib.metadata import version; print(version("cuda-toolkit"))')"
  touch "$out/venv/ready"
}

[ -e "$out/venv/ready" ] || make_environment
"$python" - <<'PY'
from importlib.util import find_spec
from pathlib import Path
found = Path(find_spec('torch').submodule_search_locations[0], 'version.py').read_text()
assert "cuda: Optional[str] = '" in found, f'this torch is no CUDA build:\n{found}'
PY

site="$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
include=()
for header in cuda_runtime_api.h crt/host_config.h nv/target cudnn.h cublas_v2.h; do
  file="$(find ${CUDA_INCLUDE:+"$CUDA_INCLUDE"} "$site/nvidia" -path "*/$header" -print -quit)"
  [ -n "$file" ] || { echo "$header is missing: install the CUDA toolkit and cuDNN and set CUDA_INCLUDE" >&2; exit 2; }
  include+=("-I${file%/"$header"}")
done

mkdir -p "$stubs" "$out/python"
compile=(g++ -std=c++17 -O2 -fPIC -Wall -Wno-unused-variable -Wno-deprecated-declarations "${include[@]}" -I"$tool")
torch=("$site"/torch/lib/lib{torch,c10,caffe2}*.so "$site"/torchvision/*.so)
for part in runtime libraries driver; do
  "${compile[@]}" -c "$tool/$part.cpp" -o "$stubs/$part.o"
done
# Whatever else these libraries import from CUDA gets a function that does nothing and says that it succeeded.
make_stubs() { "$python" "$tool/make_stubs.py" "$@"; }
make_stubs "${torch[@]}" --imports '(__)?(cuda|cublas|cudnn)[A-Z]\w+' --written "$stubs"/{runtime,libraries}.o \
  --out "$stubs/rest.cpp"
make_stubs "${torch[@]}" --imports 'cu(?!File)[A-Z]\w+' --written "$stubs/driver.o" --out "$stubs/driver_rest.cpp"
make_stubs "$site/torch/lib/libc10_cuda.so" --names 'nvml[A-Z]\w+' --out "$stubs/nvml.cpp"
"${compile[@]}" -shared "$stubs"/{runtime,libraries}.o "$stubs/rest.cpp" -o "$stubs/libpretendgpu.so"
"${compile[@]}" -shared "$stubs/driver.o" "$stubs/driver_rest.cpp" -o "$stubs/libcuda.so.1"
"${compile[@]}" -shared "$stubs/nvml.cpp" -o "$stubs/libnvidia-ml.so.1"
cp "$tool/pretend.py" "$out/python/"

cat >"$out/run" <<RUN
#!/usr/bin/env bash
# Runs Python on the pretend GPU, with the checkout in the present folder. Settings: FAKE_GB, FAKE_CC, FAKE_WORKSPACE_MB.
export LD_PRELOAD="$stubs/libpretendgpu.so" LD_LIBRARY_PATH="$stubs" PRETEND_GPU="$stubs/libpretendgpu.so"
export PYTHONPATH="\$PWD:$out/python\${PYTHONPATH:+:\$PYTHONPATH}" OMP_NUM_THREADS="\${OMP_NUM_THREADS:-1}"
exec "$python" "\$@"
RUN
chmod +x "$out/run"
(cd "$out" && ./run -c '
import torch
print(torch.__version__, "on", torch.cuda.get_device_name(), torch.ones(2, 3, device="cuda").sum().device)')
