#!/usr/bin/env bash
# Proves that the package works once it is installed, from a folder that knows
# nothing of the checkout: through mim, through its own command, and as the
# base of a user's config. Once installed from the wheel that the sdist gives,
# once editable (without `mim run`, which looks for scripts in site-packages,
# where an editable install has none).
#
#     tests/packaging/prove_mim.sh [PYTHON]
#
# PYTHON, .venv/bin/python by default, is one that can run the package. The
# environments made here see its packages through a .pth file, for torch alone
# would take gigabytes; what is installed here comes before them. The checkout
# stays as it is: everything happens in copies of it.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
python=$(realpath -s "${1:-$root/.venv/bin/python}")
config=brecq/resnet/brecq_resnet18_w4a4_fashion-mnist.py
checkpoint=demo/resnet18_fashion-mnist.pth

here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
cd "$here"
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf '\n== %s\n' "$*"; }

copy_of_checkout() {  # FOLDER
    mkdir "$1"
    (cd "$root" && cp -r mmrazor_brecq configs tools demo \
        setup.py pyproject.toml MANIFEST.in model-index.yml LICENSE README.md \
        "$here/$1")
    rm -rf "$1/mmrazor_brecq/.mim"
}

environment() {  # FOLDER
    "$python" -m venv "$1"
    "$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
        > "$(echo "$1"/lib/python*/site-packages)/base.pth"
}

works_from_anywhere() {  # the bin folder of an environment
    say 'its command'
    "$1/mmrazor-brecq" ptq --help
    local status=0
    "$1/mmrazor-brecq" no-such-tool 2> message || status=$?
    cat message
    [[ $status == 2 ]]
    grep -q "'no-such-tool'.* ptq" message

    say "a config with _base_ = ['mmrazor_brecq::...']"
    echo "_base_ = ['mmrazor_brecq::$config']" > mine.py
    "$1/python" - <<END
import mmrazor_brecq
from mmengine.config import Config

assert not mmrazor_brecq.__file__.startswith('$root'), mmrazor_brecq.__file__
print(mmrazor_brecq.__file__, Config.fromfile('mine.py').model.type)
END
}

say 'sdist, and its wheel'
copy_of_checkout source
(cd source && "$python" setup.py -q sdist -d "$here/dist")
"$python" -m pip wheel -q --no-deps --no-build-isolation -w dist dist/*.tar.gz
"$python" - dist/*.whl <<END
import sys
from zipfile import ZipFile

names = ZipFile(sys.argv[1]).namelist()
for name in ('tools/ptq.py', 'configs/$config', 'model-index.yml'):
    assert f'mmrazor_brecq/.mim/{name}' in names, f'the wheel lacks {name}'
assert 'mmrazor_brecq/py.typed' in names, 'the wheel lacks py.typed'
tops = {name.split('/')[0] for name in names if '.dist-info' not in name}
assert tops == {'mmrazor_brecq'}, f'the wheel holds more: {tops}'
print(len(names), 'files')
END

say 'a normal install, beside openmim'
environment normal
normal/bin/pip install -q --no-deps --ignore-installed dist/*.whl
normal/bin/pip install -q openmim
# openmim brings a setuptools that is too old for the rest.
normal/bin/pip install -q 'setuptools>=77.0.3,<82'
mkdir unrelated
cd unrelated
cp -r "$here/source/demo" .
works_from_anywhere ../normal/bin

say 'mim run'
# Without the --, mim answers for itself, and knows its own house alone.
../normal/bin/mim run mmrazor_brecq ptq -- --help
../normal/bin/mim run mmrazor_brecq ptq mine.py "$checkpoint" --work-dir out \
    --cfg-options model.reconstructor.iterations=2 \
    test_cfg.calibration.num_images=64 test_dataloader.dataset.indices=256
ls out/*.pth

say 'mim search, over the metafiles'
../normal/bin/mim search mmrazor_brecq
cd ..

say 'an editable install'
copy_of_checkout checkout
environment editable
editable/bin/pip install -q --no-deps --no-build-isolation -e checkout
mkdir elsewhere
cd elsewhere
works_from_anywhere ../editable/bin
echo 'edited = True' >> "../checkout/configs/$config"
../editable/bin/python - <<END
import mmrazor_brecq
from mmengine.config import Config

assert Config.fromfile('mine.py').edited, 'an edited config goes unnoticed'
END
cd ..

say 'all of it works'
