# make train : everything from nothing to a trained model on the bundled photographs
# make progressive : the same with crops and discriminator that grow in mid-run
# make test  : everything from nothing to passed tests
# make pretend-gpu : the tests of the GPU that look at no values, on stubs of the CUDA libraries
PYTHON ?= python3
PRETEND_GPU_FOLDER ?= .pretend_gpu
VENV ?= .venv
BIN := $(VENV)/bin
PIP_FLAGS := --quiet --disable-pip-version-check -c constraints.txt
PIP := $(BIN)/python -m pip install $(PIP_FLAGS)
MMAGIC_PIP := $(VENV)-mmagic/bin/python -m pip install $(PIP_FLAGS)

.PHONY: train progressive test slow pretend-gpu lint clean

train: $(VENV)/ready datasets/bundled/ready
	$(BIN)/python tools/train.py -opt options/quickstart.yml

progressive: $(VENV)/ready datasets/bundled/ready
	$(BIN)/python tools/train.py -opt options/progressive_quickstart.yml

test: $(VENV)/ready
	$(BIN)/python -m pytest -n 2

slow: $(VENV)/ready $(VENV)-mmagic/ready
	$(BIN)/python -m pytest -m slow -n 2
	$(VENV)-mmagic/bin/python -m pytest -m slow tests/mmagic

pretend-gpu:
	tools/pretend_gpu/test.sh $(PRETEND_GPU_FOLDER)

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mkdocs build --quiet --strict  # checks the links between the pages

# BasicSR's build wants torch at hand, and BasicSR and mmengine ask for an OpenCV that needs a desktop: hence the order.
$(VENV)/ready: constraints.txt requirements.txt setup.py
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch numpy setuptools wheel
	$(PIP) --no-deps torchvision mmengine
	$(PIP) --no-deps --no-build-isolation basicsr
	$(PIP) -r requirements.txt pytest pytest-xdist hypothesis ruff mypy types-PyYAML types-jsonschema mkdocs-material \
	  onnx onnxscript onnxruntime einops lightning accelerate 'mkdocstrings[python]'
	$(PIP) --no-deps spandrel
	$(PIP) --no-deps --no-build-isolation -e .
	touch $@

# mmagic's super-resolution part, without what its diffusion models need; see tests/mmagic/importable.py.
$(VENV)-mmagic/ready: constraints.txt requirements.txt
	$(PYTHON) -m venv $(VENV)-mmagic
	$(MMAGIC_PIP) torch numpy setuptools wheel
	$(MMAGIC_PIP) --no-deps torchvision mmengine mmcv-lite==2.1.0 mmagic==1.2.0 lpips==0.1.4
	$(MMAGIC_PIP) --no-deps --no-build-isolation basicsr
	$(MMAGIC_PIP) -r requirements.txt pytest hypothesis click packaging imageio albumentations==2.0.8
	$(MMAGIC_PIP) --no-deps --no-build-isolation -e .
	touch $@

datasets/bundled/ready: $(VENV)/ready sr_bigbatch/tasks/prepare.py
	rm -rf datasets/bundled
	$(BIN)/python tools/prepare_data.py --bundled --out datasets/bundled
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-mmagic $(PRETEND_GPU_FOLDER) datasets/bundled
