PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export TF_CPP_MIN_LOG_LEVEL := 3
# The watch set is a file in this package; nothing of its code runs, nor what that depends on.
WATCH := $(BIN)/python -m pip install --quiet --no-deps 'seglearn==1.2.5'

.PHONY: demo test convert-env bench lint type format clean demo-bundle test-slow test-tflite \
	parity-aarch64 test-tools test-triton soak

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.runtime: setup.cfg | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.convert: $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet --editable '.[convert]'
	touch $@

$(VENV)/.dev: $(VENV)/.convert
	$(BIN)/python -m pip install --quiet --editable '.[convert,dev]'
	$(WATCH)
	touch $@

$(VENV)/.bench: $(VENV)/.convert
	$(BIN)/python -m pip install --quiet --editable '.[convert,bench]'
	$(WATCH)
	touch $@

demo: $(VENV)/.runtime
	$(BIN)/python examples/demo.py

convert-env: $(VENV)/.convert

demo-bundle: $(VENV)/.runtime
	$(BIN)/infi-convert train "$$($(BIN)/python examples/assets.py clip)" \
		--model "$$($(BIN)/python examples/assets.py model)" --decoder blazeface \
		--task detect:person --same iou:0.7 --end 0.75 --kind light --target-accuracy 0.9 \
		-o examples/demo.infi

# What the tests of the daemon need from Debian, as root: without it they skip and say so.
TOOLS := alsa-utils chromium chromium-driver ffmpeg gir1.2-gst-rtsp-server-1.0 \
	gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-ugly \
	gstreamer1.0-tools libasound2-plugins libportaudio2 mosquitto pulseaudio \
	python3-gi python3-venv systemd

test-tools:
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $(TOOLS)
	-DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends libpython3.11

test: $(VENV)/.dev .venv-server/.installed
	$(BIN)/python -m pytest -m "not slow and not triton"

test-slow: $(VENV)/.dev .venv-server/.installed
	$(BIN)/python -m pytest -m "slow and not triton"

# The inference server that the tests of offloading talk to. Without it they skip and say so.
.venv-server/.installed: setup.cfg
	$(PYTHON) -m venv .venv-server
	.venv-server/bin/python -m pip install --quiet --upgrade pip
	if $(PYTHON) -c 'import sys; sys.exit(sys.version_info >= (3, 13))'; \
	then .venv-server/bin/python -m pip install --quiet --editable '.[server]'; \
	else echo "MLServer is not there for Python 3.13 yet: its tests skip"; fi
	touch $@

# A real Triton on the CPU: about 570 MB, Debian 12's own Python 3.11 and its shared library.
test-triton: $(VENV)/.dev .venv-triton/.installed
	$(BIN)/python -m pytest -m triton

.venv-triton/.installed: deploy/server/triton/install
	deploy/server/triton/install .venv-triton
	touch $@

# The runtime alone on tflite-runtime 2.14: NumPy 1 and the last OpenCV that takes it.
test-tflite: .venv-tflite/.installed
	INFI_EDGE_RUNTIME=tflite_runtime .venv-tflite/bin/python -m pytest tests/infi_edge

.venv-tflite/.installed: setup.cfg
	$(PYTHON) -m venv .venv-tflite
	.venv-tflite/bin/python -m pip install --quiet 'numpy<2' 'opencv-python-headless<4.12' \
		'tflite-runtime>=2.14' 'click>=8.1' 'imagesize>=1.4' 'msgspec>=0.18' 'pytest>=8' \
		'hypothesis>=6.100' 'psutil>=5.9' \
		'sounddevice>=0.4.6' 'soxr>=0.3' 'smbus2>=0.4' 'pyserial>=3.5' 'paho-mqtt>=2' 'prometheus-client>=0.17' \
		'waitress>=3' 'tritonclient[grpc,http]>=2.40' 'tenacity>=8.2'
	.venv-tflite/bin/python -m pip install --quiet --no-deps --editable .
	touch $@

# The filter on this machine and on an emulated 64-bit Arm one, compared (Debian 12, as root).
parity-aarch64: $(VENV)/.runtime
	PYTHON=$(BIN)/python benchmarks/parity-aarch64.sh

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.watch
	$(BIN)/python -m benchmarks.daemon
	$(BIN)/python -m benchmarks.offload
	$(BIN)/python -m benchmarks.online

# Memory over a million inputs, all the kills, an outage of a minute; about 35 minutes.
soak: $(VENV)/.dev
	$(BIN)/python -m benchmarks.daemon --soak 1000000
	$(BIN)/python -m benchmarks.offload --outage 60
	INFI_EDGE_KILLS=200 $(BIN)/python -m pytest -m slow -k kill

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(VENV)/.dev
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .venv-tflite .venv-server .venv-triton build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
